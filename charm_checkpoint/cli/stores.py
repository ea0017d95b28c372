"""Opens the store that a command is about, and finds threads in it, without making anything."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from charm_checkpoint import open_store
from charm_checkpoint.codec import valid_id
from charm_checkpoint.config import mask
from charm_checkpoint.errors import BackendError, ConfigError, ThreadNotFoundError
from charm_checkpoint.replica import ReplicaBackend, ReplicaStore
from charm_checkpoint.sqlite import SqliteBackend
from charm_checkpoint.store import BaseMemoryStore, CheckpointStore, ThreadInfo

__all__ = ["is_made", "known_thread", "not_made", "opened", "opened_replica", "quiet", "store_name"]

KEY_VARIABLE = "CHARM_ENCRYPTION_KEY"
"""Where a store that is named finds the key to its values, or several with commas between. The configured store has
them in its config."""


@contextmanager
def opened(
    named: str | None, replica: str | None = None, *, make: bool = False
) -> Iterator[CheckpointStore]:
    """The store that is named, else the configured one; closed at the end.

    Args:
        named: A provider or URL.
        replica: Of that one, as in a config; `None` for none.
        make: Whether its file or its tables may be missing, and are made by the first use.

    Raises:
        ConfigError: There is no such store, or it keeps no checkpoints.
    """
    with _open(named, replica) as store:
        if not isinstance(store, CheckpointStore):
            raise ConfigError(
                f"{type(store).__name__} keeps messages only; this command needs a store that keeps checkpoints"
            )
        if named and not make and not is_made(store):
            raise ConfigError(not_made(store))
        yield store


@contextmanager
def opened_replica(
    named: str | None, replica: str | None, *, asks: bool = False, make: bool = False
) -> Iterator[ReplicaStore]:
    """The replica of the store that is named, else the configured one; closed at the end.

    Args:
        named: A provider or URL.
        replica: Its file; `None` for the usual one.
        asks: Whether the store behind has to be there.
        make: Whether the file may be missing, and is made.

    Raises:
        ConfigError: There is no such store, or it has no replica on this device.
    """
    with quiet(), _open(named, replica or ("true" if named else None)) as store:
        if not isinstance(store, ReplicaStore):
            raise ConfigError(
                "the configured store has no replica on this device: put replica: true into its config in charm.yaml, "
                "or name the store behind with --store URL"
            )
        if asks and not is_made(store.remote):
            raise ConfigError(not_made(store.remote))
        if not make and not is_made(store):
            raise ConfigError(
                f"{store_name(store)} does not exist: nothing on this device has used it yet. An agent's first run "
                "makes it, and so does sync pull"
            )
        yield store


@contextmanager
def quiet() -> Iterator[None]:
    """What a replica logs of the store behind is what these commands report."""
    log = logging.getLogger("charm_checkpoint.replica")
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = False


def _open(named: str | None, replica: str | None) -> BaseMemoryStore:
    if not named:
        if replica:
            raise ConfigError("--replica says more about --store, which is missing")
        return open_store()
    options: dict[str, Any] = {}
    if keys := list(filter(None, os.environ.get(KEY_VARIABLE, "").split(","))):
        options["encryption"] = {"key": keys, "accept_plaintext": True}
    # Local files in the place of a provider that is not installed would answer for the wrong database.
    return open_store(named, strict=True, replica=replica, **options)


def store_name(store: CheckpointStore) -> str:
    """Where its threads are, without secrets."""
    return str(mask(store.get_langgraph_checkpointer().engine.backend.name))


def is_made(store: CheckpointStore) -> bool:
    """False if its file or its tables are still to be made, by the first use."""
    tell = getattr(store.get_langgraph_checkpointer().engine.backend, "is_made", None)
    try:
        return tell is None or bool(tell())
    except BackendError:
        return True  # whoever asks it for threads is told


def not_made(store: CheckpointStore) -> str:
    """Says that it is not `is_made`."""
    backend = store.get_langgraph_checkpointer().engine.backend
    is_file = isinstance(backend, (SqliteBackend, ReplicaBackend))
    return f"{store_name(store)} {'does not exist' if is_file else 'has no tables yet'}"


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
