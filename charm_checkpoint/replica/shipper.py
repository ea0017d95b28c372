"""Sends what waits in the outbox: in order, in batches, by one process of the device at a time."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from charm_checkpoint.backend import Backend, Outcome, PutCheckpoint, Unit
from charm_checkpoint.errors import BackendUnavailable
from charm_checkpoint.forks import ForkAware
from charm_checkpoint.replica.front import Front
from charm_checkpoint.replica.lock import ProcessLock
from charm_checkpoint.replica.outbox import Entry
from charm_checkpoint.replica.remote import Remote

__all__ = ["Shipper"]

logger = logging.getLogger("charm_checkpoint.replica")

# Seconds without work after which the thread ends; the next entry starts another.
_IDLE = 5.0
# How often to look whether another process that ships is done, or gone.
_LOOK = 0.05
# Pauses while the remote cannot be reached, in seconds.
_FIRST_PAUSE, _MAX_PAUSE = 0.1, 2.0
# How long a thread whose rows the remote does not take is left alone.
_REFUSED_PAUSE = 30.0
# No checkpoint has this id; asking for it tells about the thread and reads no row.
_NO_CHECKPOINT = "-"


class _Refusal(NamedTuple):
    error: Exception
    retry_at: float
    """By the monotonic clock."""


class Shipper(ForkAware):
    """A thread that empties the outbox while the remote answers.

    Args:
        front: Whose outbox.
        remote: Where to.
        on_deleted: Told of threads that turned out to be deleted elsewhere.
    """

    def __init__(self, front: Front, remote: Remote, on_deleted: Callable[[str], None]) -> None:
        super().__init__()
        self._front = front
        self._remote = remote
        self._on_deleted = on_deleted
        path = front.path
        self._turn = ProcessLock(path.with_name(f"{path.name}-shipper"))
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        self._changed = threading.Condition()
        self._due = False
        self._hurry = False
        self._closed = False
        self._thread: threading.Thread | None = None
        self._refused: dict[str, _Refusal] = {}

    def kick(self) -> None:
        """Something was added to the outbox, or the remote is back."""
        with self._changed:
            self._due = True
            self._closed = False
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="charm-checkpoint-shipper", daemon=True
                )
                try:
                    self._thread.start()
                except RuntimeError:
                    # The interpreter is shutting down. What waits is sent at the next start.
                    self._thread = None
            self._changed.notify_all()

    def wait(self, thread_id: str | None, timeout: float | None) -> bool:
        """Wait until nothing of a thread (or at all) waits any more. False if `timeout` (seconds) ran out."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            self._hurry = True
        self.kick()
        while self._front.is_waiting(thread_id):
            left = _LOOK if deadline is None else min(_LOOK, deadline - time.monotonic())
            if left <= 0:
                return False
            with self._changed:
                # Another process may be the one that sends: its acknowledgements are seen in the file only.
                self._changed.wait(left)
        return True

    def wait_for_progress(self, timeout: float) -> bool:
        """Wait until something more is at the remote. False if `timeout` (seconds) ran out."""
        self.kick()
        with self._changed:
            return timeout > 0 and self._changed.wait(timeout)

    def close(self) -> None:
        """End the thread after the request it is in; `kick` starts another."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_IDLE)

    def refusals(self) -> dict[str, Exception]:
        """By thread, why the remote does not take what waits."""
        return {thread_id: refusal.error for thread_id, refusal in self._refused.items()}

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._due and not self._closed and self._changed.wait(_IDLE):
                    pass
                if not self._due or self._closed:
                    self._thread = None
                    return
                self._due = False
            try:
                self._ship_all()
            except Exception:
                # The file cannot be read or written: what waits stays, and the program hears of it from its own calls.
                logger.exception("%s: the outbox cannot be worked on", self._front.name)

    def _ship_all(self) -> None:
        pause = _FIRST_PAUSE
        while not self._closed:
            try:
                if self._front.is_waiting():
                    if not self._turn.acquire():
                        self._pause(_LOOK)
                        continue
                    try:
                        rest = self._ship_while_it_goes()
                    finally:
                        self._turn.release()
                elif self._remote.offline is not None:
                    rest = 0.0
                    self._remote.call(lambda backend: backend.threads(limit=1))
                else:
                    return
                pause = _FIRST_PAUSE
            except BackendUnavailable:
                rest = pause * random.uniform(0.5, 1.0)
                pause = min(pause * 2, _MAX_PAUSE)
            if rest:
                self._pause(rest)

    def _pause(self, seconds: float) -> None:
        with self._changed:
            if not self._hurry and not self._closed:
                self._changed.wait_for(lambda: self._hurry or self._closed, seconds)
            self._hurry = False

    def _ship_while_it_goes(self) -> float:
        """Send until nothing is left that can be sent. Returns how long to leave the rest alone, in seconds."""
        while not self._closed:
            now = time.monotonic()
            skip = [t for t, refusal in self._refused.items() if refusal.retry_at > now]
            entries = self._front.batch(skip=skip)
            if not entries:
                retries = [self._refused[t].retry_at for t in skip]
                return max(0.0, min(retries, default=now) - now)
            try:
                self._ship(entries)
            except BackendUnavailable:
                raise
            except Exception:  # noqa: BLE001 - the same comes again below, and is told there
                # One bad unit must not hold up the others: find it by sending them one by one.
                self._ship_singly(entries)
            with self._changed:
                self._changed.notify_all()
        return 0.0

    def _ship_singly(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            refusal = self._refused.get(entry.thread_id)
            if refusal is not None and refusal.retry_at > time.monotonic():
                continue
            try:
                self._ship([entry])
                self._refused.pop(entry.thread_id, None)
            except BackendUnavailable:
                raise
            except Exception as error:
                logger.exception(
                    "thread %r: %s does not take checkpoint %s; it stays on this device and is tried again",
                    entry.thread_id,
                    self._remote.backend.name,
                    entry.checkpoint_id,
                )
                self._front.note(last_error=f"thread {entry.thread_id!r}: {error}")
                self._refused[entry.thread_id] = _Refusal(error, time.monotonic() + _REFUSED_PAUSE)

    def _ship(self, entries: Sequence[Entry]) -> None:
        if entries[0].kind == "delete":
            self._remote.call(lambda backend: _delete(backend, entries[0]))
            self._front.acknowledge(entries, [Outcome("stored")])
            return
        outcomes = self._send([entry.unit for entry in entries if entry.unit is not None])
        answered = iter(outcomes)
        told = [
            Outcome("stored") if entry.unit is None else self._settled(entry, next(answered))
            for entry in entries
        ]
        self._front.acknowledge(entries, told)
        for thread_id in {
            entry.thread_id
            for entry, outcome in zip(entries, told, strict=True)
            if outcome.status == "deleted"
        }:
            self._on_deleted(thread_id)

    def _settled(self, entry: Entry, outcome: Outcome) -> Outcome:
        if outcome.status == "orphaned" and isinstance(entry.unit, PutCheckpoint):
            # What it grew from was pruned there. Nothing that was acknowledged here is lost for that.
            whole = self._front.whole(entry)
            if whole.unit is not None:
                return self._send([whole.unit])[0]
        return outcome

    def _send(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        if not units:
            return []
        return self._remote.call(lambda backend: backend.write(units))


def _delete(backend: Backend, entry: Entry) -> None:
    there = backend.read(entry.thread_id, "", _NO_CHECKPOINT).deleted_through
    if entry.checkpoint_id and there is not None and there >= entry.checkpoint_id:
        # Deleted by another device, too, or by this one and the answer was lost: the thread may have begun anew since.
        return
    backend.delete(entry.thread_id, at=entry.at)
