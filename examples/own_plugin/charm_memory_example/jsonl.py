"""Messages only: one file of JSON lines per thread."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from charm_checkpoint import BaseMemoryStore


class JsonLines(BaseMemoryStore):
    """Keeps each thread's messages in a file of its own.

    Args:
        config: `folder`: where the files are, by default `messages`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._folder = Path(config.get("folder") or "messages")

    def load_messages(self, thread_id: str) -> list[dict[str, Any]]:
        try:
            text = self._path(thread_id).read_text("utf-8")
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines()]

    def save_messages(self, thread_id: str, messages: list[dict[str, Any]]) -> None:
        path = self._path(thread_id)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Whoever reads meanwhile sees the old list or the new one, and a crash leaves one of them.
        new = path.with_suffix(f".{os.getpid()}.new")
        new.write_text("".join(json.dumps(message) + "\n" for message in messages), "utf-8")
        new.chmod(0o600)
        new.replace(path)

    def _path(self, thread_id: str) -> Path:
        # An id is no file name: it may be "../../etc/passwd".
        return self._folder / f"{hashlib.sha256(str(thread_id).encode()).hexdigest()}.jsonl"
