"""One checkpointer for LangGraph and Charm agents, over any database.

A thread stops on one device and goes on at another, loses nothing, and costs in proportion to what changed. Start with
`open_store`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from charm_checkpoint.backend import Backend
    from charm_checkpoint.encryption import Encryption
    from charm_checkpoint.graph_types import announce_graph_types
    from charm_checkpoint.history import MessageHistory
    from charm_checkpoint.manager import StorageManager, open_store
    from charm_checkpoint.messages import to_dicts, to_messages
    from charm_checkpoint.moving import copy_threads, export_threads, from_saver, import_threads
    from charm_checkpoint.policy import RetentionPolicy
    from charm_checkpoint.saver import CheckpointSaver
    from charm_checkpoint.store import (
        BaseMemoryStore,
        CheckpointStore,
        SaverStore,
        ThreadInfo,
        store_from_saver,
    )

__all__ = [
    "Backend",
    "BaseMemoryStore",
    "CheckpointSaver",
    "CheckpointStore",
    "Encryption",
    "MessageHistory",
    "RetentionPolicy",
    "SaverStore",
    "StorageManager",
    "ThreadInfo",
    "announce_graph_types",
    "copy_threads",
    "export_threads",
    "from_saver",
    "import_threads",
    "open_store",
    "store_from_saver",
    "to_dicts",
    "to_messages",
]

# Everything is imported on first use, so that importing the package costs nothing that is not needed.
_HOMES = {
    "Backend": "backend",
    "BaseMemoryStore": "store",
    "CheckpointSaver": "saver",
    "CheckpointStore": "store",
    "Encryption": "encryption",
    "MessageHistory": "history",
    "RetentionPolicy": "policy",
    "SaverStore": "store",
    "StorageManager": "manager",
    "ThreadInfo": "store",
    "announce_graph_types": "graph_types",
    "copy_threads": "moving",
    "export_threads": "moving",
    "from_saver": "moving",
    "import_threads": "moving",
    "open_store": "manager",
    "store_from_saver": "store",
    "to_dicts": "messages",
    "to_messages": "messages",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in ("CheckpointSaver", "CheckpointStore", "StorageManager", "open_store"):
        # Whoever imports these may compile a graph, or part of one, before opening a store.
        importlib.import_module(f"{__name__}.graph_types").announce_graph_types()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
