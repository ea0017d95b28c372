from __future__ import annotations

import os
from typing import Any

from charm.core.storage import StorageManager


def listen(input: str, history: list[dict[str, Any]], thread_id: str) -> str:
    # As the Charm docs tell an agent to find its memory: it is the adapter's.
    store = StorageManager.get_provider(os.getenv("CHARM_MEMORY_PROVIDER", "local"), {})
    assert store.load_messages(thread_id) == history
    earlier = [message["content"] for message in history if message["role"] == "user"]
    return f"{input}, after {earlier} ({type(store).__name__})"
