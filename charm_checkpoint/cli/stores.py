"""Opens the store that a command is about, and finds threads in it, without making anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from charm_checkpoint import open_store
from charm_checkpoint.codec import valid_id
from charm_checkpoint.config import mask
from charm_checkpoint.errors import ConfigError, ThreadNotFoundError
from charm_checkpoint.sqlite import SqliteBackend
from charm_checkpoint.store import CheckpointStore, ThreadInfo

__all__ = ["is_made", "known_thread", "opened", "store_name"]


@contextmanager
def opened(named: str | None) -> Iterator[CheckpointStore]:
    """The store that is named, else the configured one; closed at the end.

    Raises:
        ConfigError: There is no such store, or it keeps no checkpoints.
    """
    # Local files in the place of a provider that is not installed would answer for the wrong database.
    with open_store(named, strict=True) if named else open_store() as store:
        if not isinstance(store, CheckpointStore):
            raise ConfigError(
                f"{type(store).__name__} keeps messages only; this command needs a store that keeps checkpoints"
            )
        if named and not is_made(store):
            raise ConfigError(f"{store_name(store)} does not exist")
        yield store


def store_name(store: CheckpointStore) -> str:
    """Where its threads are, without secrets."""
    return str(mask(store.get_langgraph_checkpointer().engine.backend.name))


def is_made(store: CheckpointStore) -> bool:
    """False if its file is still to be made, by the first use."""
    backend = store.get_langgraph_checkpointer().engine.backend
    return not isinstance(backend, SqliteBackend) or backend.path.exists()


def known_thread(store: CheckpointStore, thread_id: str) -> ThreadInfo:
    """Find a thread.

    Raises:
        ThreadNotFoundError: It has no checkpoints.
        InvalidIdError: No thread can have this id.
    """
    thread_id = valid_id(thread_id, "thread id")
    found = store.thread(thread_id) if is_made(store) else None
    if found is None:
        raise ThreadNotFoundError(f"there is no thread {thread_id!r} in {store_name(store)}")
    return found
