"""Sends what waits in the outbox: in order, in batches, by one process of the device at a time."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from charm_checkpoint.backend import Backend, Outcome, PutCheckpoint, Scan, ThreadQuery, Unit
from charm_checkpoint.errors import BackendError, BackendUnavailable
from charm_checkpoint.forks import ForkAware
from charm_checkpoint.replica.front import Front
from charm_checkpoint.replica.lock import ProcessLock
from charm_checkpoint.replica.outbox import Entry
from charm_checkpoint.replica.remote import Remote

__all__ = ["Shipper"]

logger = logging.getLogger("charm_checkpoint.replica")

# Seconds without work after which the thread ends; the next entry starts another.
_IDLE = 5.0
# A step is followed by the next within milliseconds; sent together they are there sooner than one behind the other, and
# the run has the interpreter to itself. So sending begins when nothing came for a moment, or after some moments.
_MOMENT, _MOMENTS = 0.01, 0.03
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
        on_conflict: Told of threads that another device moved on first.
        on_deleted: Told of threads that turned out to be deleted elsewhere.
    """

    def __init__(
        self,
        front: Front,
        remote: Remote,
        *,
        on_conflict: Callable[[str], None],
        on_deleted: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._on_conflict = on_conflict
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
        self._steps = 0
        self._thread: threading.Thread | None = None
        self._refused: dict[str, _Refusal] = {}

    def kick(self, *, reopen: bool = True) -> bool:
        """Something was added to the outbox, or the remote is back. After `close` only `reopen` starts it again.

        Returns:
            False if there is no thread to do it: the interpreter is shutting down and starts no more.
        """
        with self._changed:
            if self._closed and not reopen:
                return False
            self._due = True
            self._closed = False
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="charm-checkpoint-shipper", daemon=True
                )
                try:
                    self._thread.start()
                except RuntimeError:
                    self._thread = None
            self._changed.notify_all()
            return self._thread is not None

    def wait(self, thread_id: str | None, timeout: float | None) -> bool:
        """Wait until nothing of a thread (or at all) waits any more. False if `timeout` (seconds) ran out."""
        return self.wait_for(lambda: not self._front.is_waiting(thread_id), timeout)

    def wait_for(self, done: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until enough was sent, as `done` tells. False if `timeout` (seconds) ran out."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            self._hurry = True
        at_work = self.kick()
        while True:
            seen = self._steps
            if not at_work:
                with suppress(BackendUnavailable):
                    self._take_turn()
            if done():
                return True
            left = _LOOK if deadline is None else min(_LOOK, deadline - time.monotonic())
            if left <= 0:
                return False
            with self._changed:
                # Another process may be the one that sends: its acknowledgements are seen in the file only.
                self._changed.wait_for(lambda seen=seen: self._steps != seen, left)  # type: ignore[misc]

    def close(self, timeout: float) -> None:
        """End the thread after the request it is in, if that takes no longer than `timeout` seconds.

        `kick` starts another.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    @property
    def closed(self) -> bool:
        """Whether nothing was asked of it since it was closed."""
        return self._closed

    def refusals(self) -> dict[str, Exception]:
        """By thread, why the remote does not take what waits."""
        return {thread_id: refusal.error for thread_id, refusal in dict(self._refused).items()}

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._due and not self._closed and self._changed.wait(_IDLE):
                    pass
                if not self._due or self._closed:
                    self._thread = None
                    break
                self._due = False
                self._let_them_gather()
            try:
                self._ship_all()
            except Exception:
                # The file cannot be read or written: what waits stays, and is looked at again after a while.
                logger.exception("%s: the outbox cannot be worked on", self._front.name)
                with self._changed:
                    self._due = not self._closed
                    self._changed.wait_for(lambda: self._closed, _MAX_PAUSE)
        if self._closed:
            # Its last request may have come to an end after everything else was closed.
            self._front.close()

    def _let_them_gather(self) -> None:
        deadline = time.monotonic() + _MOMENTS
        while not self._hurry and not self._closed and time.monotonic() < deadline:
            self._due = False
            if not self._changed.wait(_MOMENT) and not self._due:
                return

    def _ship_all(self) -> None:
        pause = _FIRST_PAUSE
        while not self._closed:
            with self._changed:
                hurry, self._hurry, self._due = self._hurry, False, False
            if hurry:
                self._refused = {t: r._replace(retry_at=0.0) for t, r in self._refused.items()}
            try:
                rest = 0.0
                if waiting := self._front.is_waiting():
                    taken = self._take_turn()
                    if taken is None:
                        self._pause(_LOOK)
                        continue
                    rest = taken
                if self._remote.offline is not None:
                    self._probe()
                elif not waiting:
                    return
                pause = _FIRST_PAUSE
                self._pause(rest, or_news=True)
            except BackendUnavailable as error:
                self._pause(max(pause * random.uniform(0.5, 1.0), error.retry_after))
                pause = min(pause * 2, _MAX_PAUSE)

    def _probe(self) -> None:
        """Find out whether the remote is back. One that refuses is: whoever asks it next is told."""
        try:
            self._remote.call(lambda backend: backend.threads(ThreadQuery(limit=1)))
        except BackendUnavailable:
            raise
        except BackendError as error:
            self._front.note(last_error=str(error))

    def _take_turn(self) -> float | None:
        """Send what goes. Returns how long to leave the rest alone, in seconds; `None`: another process is at it."""
        if not self._turn.acquire():
            return None
        try:
            return self._ship_while_it_goes()
        finally:
            self._turn.release()

    def _pause(self, seconds: float, *, or_news: bool = False) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._hurry or self._closed or (or_news and self._due), seconds
            )

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
                for entry in entries:
                    self._refused.pop(entry.thread_id, None)
            except BackendUnavailable:
                raise
            except Exception:  # noqa: BLE001 - the same comes again below, and is told there
                # One bad unit must not hold up the others: find it by sending them one by one.
                self._ship_singly(entries)
            with self._changed:
                self._steps += 1
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
                if refusal is None or str(refusal.error) != str(error):
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
        for conflict in self._front.acknowledge(entries, told):
            self._on_conflict(conflict.thread_id)
            if conflict.namespace == "":
                logger.warning(
                    "thread %r was moved on by device %r first; what this device did in it since is a branch, listed "
                    "by conflicts()",
                    conflict.thread_id,
                    conflict.head_device,
                )
        for thread_id in {
            entry.thread_id
            for entry, outcome in zip(entries, told, strict=True)
            if outcome.status == "deleted"
        }:
            # While more of it waits, it cannot be taken over: that is for the last batch, or the next wake.
            if not self._front.is_waiting(thread_id):
                self._on_deleted(thread_id)

    def _settled(self, entry: Entry, outcome: Outcome) -> Outcome:
        if outcome.status != "orphaned" or not isinstance(entry.unit, PutCheckpoint):
            return outcome
        known = self._front.known(entry.thread_id)
        there = self._remote.call(lambda backend: backend.pull(entry.thread_id, known.held))
        here = known.tombstone
        if there.tombstone and (here is None or there.tombstone.deleted_at != here.deleted_at):
            # It grew from a step that was refused, since the thread was deleted meanwhile: its id lies above all that
            # was deleted, so that the remote takes it for one whose parent was pruned.
            return Outcome("deleted")
        # What it grew from was pruned there. Nothing that was acknowledged here is lost for that.
        whole = self._front.whole(entry)
        return outcome if whole.unit is None else self._send([whole.unit])[0]

    def _send(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        if not units:
            return []
        return self._remote.call(lambda backend: backend.write(units))


def _delete(backend: Backend, entry: Entry) -> None:
    # Deleted by another device, too, or by this one and the answer was lost: the thread may have begun anew since.
    place = (entry.thread_id, entry.namespace, entry.checkpoint_id)
    if not entry.checkpoint_id or not _was_deleted(backend, *place):
        backend.delete(entry.thread_id, at=entry.at)


def _was_deleted(backend: Backend, thread_id: str, namespace: str, checkpoint_id: str) -> bool:
    """Whether a checkpoint that was at the remote has gone with its thread."""
    through = backend.read(thread_id, "", _NO_CHECKPOINT).deleted_through
    if through is None or through < checkpoint_id:
        return False
    # The id alone does not tell: a device with a slow clock that did not know of the deletion may have begun anew.
    query = Scan(thread_id, namespace, checkpoint_id, limit=1, values=False)
    return not backend.scan(query).entries
