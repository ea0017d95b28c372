"""The store that `replica` in a config makes of any other one."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from charm_checkpoint.config import mask, number
from charm_checkpoint.erasure import Site
from charm_checkpoint.errors import BackendError, ConfigError
from charm_checkpoint.replica.backend import ReplicaBackend, settle_name
from charm_checkpoint.replica.conflicts import Conflict
from charm_checkpoint.replica.front import Front
from charm_checkpoint.replica.options import ReplicaOptions
from charm_checkpoint.replica.status import SyncStatus
from charm_checkpoint.sqlite.store import memory_folder
from charm_checkpoint.store import BaseMemoryStore, CheckpointStore

__all__ = ["ReplicaStore"]

_DEFAULTS = ReplicaOptions()


class ReplicaStore(CheckpointStore):
    """Threads on this device, and behind it in another store that other devices share.

    What was answered is durable in this device's file; it is sent in the background. Before a run goes on with a
    thread, the store behind is asked whether it moved on elsewhere.

    Args:
        remote: The store behind; closed with this one.
        config: `replica`: `True`, or the path of this device's file; the fields of `ReplicaOptions`; and what every
            `CheckpointStore` takes.

    Raises:
        ConfigError: The configuration is not valid, or `remote` is no `CheckpointStore`.
    """

    options = frozenset({"replica", *ReplicaOptions._fields})

    def __init__(self, remote: BaseMemoryStore, config: dict[str, Any]) -> None:
        try:
            if not isinstance(remote, CheckpointStore):
                raise ConfigError(
                    f"{type(remote).__name__} keeps messages only; a replica needs a store of checkpoints behind it"
                )
            self._remote = remote
            # A replica has waited for its remote as long as `wake_timeout` says, and for its file, too.
            super().__init__({"retry_timeout": 0, **config})
        except BaseException:
            remote.close()
            raise

    def open_backend(self) -> ReplicaBackend:
        config = self.config
        remote = self._remote.get_langgraph_checkpointer().engine.backend
        offline = config.get("on_offline") or _DEFAULTS.on_offline
        if offline not in ("serve", "raise"):
            raise ConfigError(f"on_offline={offline!r} is not one of serve, raise")
        numbers = {
            key: type(default)(number(config, key, default, least=0))
            for key, default in _DEFAULTS._asdict().items()
            if key != "on_offline"
        }
        path = config["replica"]
        if path is True:
            settle_name(remote, _remotes)
            path = default_path(remote.name)
        self._backend = ReplicaBackend(
            Path(path).expanduser(), remote, ReplicaOptions(on_offline=offline, **numbers)
        )
        return self._backend

    @property
    def remote(self) -> CheckpointStore:
        """The store behind."""
        return self._remote

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything is at the store behind. False if `timeout` (seconds) ran out."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if not super().flush(timeout):
            return False
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        return bool(self._call(lambda backend: backend.flush(left)))

    def wait_synced(self, thread_id: str, timeout: float | None = None) -> bool:
        """Wait until all of a thread is at the store behind. False if `timeout` (seconds) ran out."""
        return bool(self._call(lambda backend: backend.wait_synced(thread_id, timeout)))

    def wait_sent(self, threads: Iterable[str], timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        return all(
            self.wait_synced(thread_id, max(0.0, deadline - time.monotonic()))
            for thread_id in threads
        )

    def sites(self) -> list[Site]:
        """This device's file, and the store behind."""
        remote = self._remote.get_langgraph_checkpointer().engine.backend
        return [
            Site(str(self._backend.path), lambda look: self._call(lambda b: b.here(look))),
            Site(str(mask(remote.name)), lambda look: self._call(lambda b: b.there(look))),
        ]

    def sync_status(self) -> SyncStatus:
        """Tell what waits, of which threads, and since when the store behind is away. Asks nobody."""
        status: SyncStatus = self._call(lambda backend: backend.sync_status())
        threads = {t: w._replace(error=mask(w.error)) for t, w in status.threads.items()}
        return status._replace(
            remote=str(mask(status.remote)), last_error=mask(status.last_error), threads=threads
        )

    def refresh(self, thread_id: str, timeout: float | None = None) -> None:
        """Bring where a thread is now to this device, so that it can be gone on with offline.

        Raises:
            BackendUnavailable: The store behind cannot be asked within `timeout` seconds (by default `wake_timeout`).
        """
        self._call(lambda backend: backend.refresh(thread_id, timeout))

    def conflicts(self, thread_id: str | None = None) -> list[Conflict]:
        """Branches that this device made because another was first, the oldest first."""
        return list(self._call(lambda backend: backend.conflicts(thread_id)))

    def promote(self, conflict: Conflict) -> None:
        """Make the branch of a conflict what the thread goes on from; what it is now stays as a branch.

        Raises:
            ThreadConflictError: Another device moved the thread on at the same moment; look again.
            BackendUnavailable: The store behind cannot be asked.
        """
        device = self.get_langgraph_checkpointer().device
        self._call(lambda backend: backend.promote(conflict, device=device))

    def dismiss(self, conflict: Conflict) -> None:
        """Take a conflict off the list; its branch stays in the thread's history."""
        self._call(lambda backend: backend.dismiss(conflict))

    def close(self) -> None:
        """Wait for what is being sent, `flush_timeout` seconds at most, and release everything."""
        super().close()
        self._remote.close()

    def _call(self, function: Any) -> Any:
        # Through the engine, which prepares the file on first use.
        engine = self.get_langgraph_checkpointer().engine
        return engine.call(lambda _: function(self._backend), repeat=False)


def default_path(remote: str) -> Path:
    """Where the replica of a store is kept: a file of its own in the workspace for each store behind.

    Args:
        remote: The name of its backend.
    """
    words = re.sub(r"[^A-Za-z0-9]+", "-", remote).strip("-")[:40]
    digest = hashlib.sha256(remote.encode()).hexdigest()[:12]
    return _folder() / f"{words}-{digest}.db"


def _folder() -> Path:
    return memory_folder() / "replicas"


def _remotes() -> list[str]:
    """The names of the remotes that there are replicas of at default paths."""
    names = []
    for path in sorted(_folder().glob("*.db")):
        if not path.stat().st_size:
            continue  # not one yet
        front = Front(path)
        with closing(front), suppress(BackendError):  # no replica's file, or of a newer release
            front.setup()
            names.append(front.state().get("remote", ""))
    return names
