"""Group commit: writers that arrive while a write is in flight go together in the next one.

There is no timer: an idle lane writes at once. A synchronous caller that finds nobody writing writes itself, on its own
thread, everything that is waiting; an asynchronous caller waits on a future that the lane's own thread completes. So no
call ever needs an event loop, and none is bound to one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import NamedTuple

from charm_checkpoint.backend import Outcome, Unit
from charm_checkpoint.errors import BackendError, BackendUnavailable

__all__ = ["Lane"]

# One transaction should not hold everybody up for long; callers beyond this go in the next.
_MAX_UNITS = 512
# Seconds without work after which the lane's thread ends; the next call that needs one starts another.
_IDLE = 5.0


class _Waiting(NamedTuple):
    unit: Unit
    future: Future[Outcome]


class Lane:
    """A queue of units, and who writes it.

    Args:
        write: Writes a batch, with whatever repeating there is.
        width: How many batches may be in flight at once. Whoever waits for an answer before going on finds what it did
            before done; in which order the units of others are written is not defined.
    """

    def __init__(
        self, write: Callable[[Sequence[Unit]], Sequence[Outcome]], *, width: int = 1
    ) -> None:
        self._write = write
        self._width = width
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._queue: list[_Waiting] = []
        self._unanswered: set[Future[Outcome]] = set()
        self._leaders = 0
        self._writer: threading.Thread | None = None
        self._closed = ""

    def write(self, unit: Unit) -> Outcome:
        """Store one unit; returns when it is durable or refused.

        Raises:
            BackendError: It was not stored, or (`BackendUnavailable`) that is not known.
        """
        future: Future[Outcome] = Future()
        if not _on_main_thread():
            if self._hand_over(unit, future, may_lead=True):
                self._write_until(future)
            return future.result()
        # Ctrl-C reaches the main thread between any two steps: before it could let go of the lead, or within the locks
        # of a future. So it never leads while there can be another thread, and waits on a lock that nobody else needs.
        answered = threading.Lock()
        answered.acquire()
        future.add_done_callback(lambda _: answered.release())
        if self._hand_over(unit, future, may_lead=False):
            self._write_until(future)
        with answered:
            return future.result()

    async def awrite(self, unit: Unit) -> Outcome:
        """Like `write`, without a thread. Cancelling the caller does not take the unit back."""
        future: Future[Outcome] = Future()
        # A running future cannot be cancelled: what was handed over is stored whole, whoever still waits.
        future.set_running_or_notify_cancel()
        if self._hand_over(unit, future, may_lead=False):
            self._write_until(future)
        return await asyncio.wrap_future(future)

    def _hand_over(self, unit: Unit, future: Future[Outcome], *, may_lead: bool) -> bool:
        """Queue a unit. True if the caller has to lead: not enough are writing, and it may or has to."""
        with self._lock:
            if self._closed:
                raise BackendError(self._closed)
            self._queue.append(_Waiting(unit, future))
            self._unanswered.add(future)
            if not may_lead and self._start_writer():
                return False
            lead = self._leaders < self._width
            self._leaders += lead
            return lead

    def _start_writer(self) -> bool:
        """Have the lane's thread take the queue; False when the interpreter allows no new thread. Holds the lock."""
        if self._writer is None:
            writer = threading.Thread(
                target=self._run_writer, name="charm-checkpoint-writer", daemon=True
            )
            try:
                writer.start()
            except RuntimeError:
                return False
            self._writer = writer
        self._wake.notify()
        return True

    def _run_writer(self) -> None:
        while True:
            with self._lock:
                while not self._queue or self._leaders >= self._width:
                    # It ends when idle, so that a lane nobody holds any more can go.
                    if not self._wake.wait(_IDLE) and not self._queue:
                        self._writer = None
                        return
                self._leaders += 1
            self._write_until(None)

    def _write_until(self, mine: Future[Outcome] | None) -> None:
        """Write batches until `mine` is answered (for `None`: until nothing waits), then let somebody else lead."""
        batch: list[_Waiting] = []
        try:
            while not (mine is not None and mine.done()):
                with self._lock:
                    batch = self._queue[:_MAX_UNITS]
                    del self._queue[:_MAX_UNITS]
                if not batch:
                    break
                self._write_batch(batch)
        finally:
            # On an interrupt (Ctrl-C hits whoever leads) what was not answered goes back, for the lane's thread.
            with self._lock:
                self._queue[:0] = [w for w in batch if not w.future.done()]
                self._leaders -= 1
                self._wake.notify_all()
                deserted = bool(self._queue) and not self._start_writer()
                self._leaders += deserted
        if deserted:
            self._write_until(None)

    def _write_batch(self, batch: Sequence[_Waiting]) -> None:
        units = [waiting.unit for waiting in batch]
        try:
            outcomes = self._write(units)
            answers = list(zip(batch, outcomes, strict=True))
        except BaseException as caught:  # noqa: BLE001 - goes to whoever waits for it
            error: Exception
            if isinstance(caught, Exception):
                error = caught
            else:
                # A cancellation or an exit let out by a backend would be taken for the waiting caller's own.
                error = BackendError(f"the write was broken off ({caught!r})")
                error.__cause__ = caught
            if len(batch) > 1 and not isinstance(error, BackendUnavailable):
                # One bad unit must not fail the others: find it by writing them one by one.
                for waiting in batch:
                    self._write_batch([waiting])
                return
            for waiting in batch:
                waiting.future.set_exception(error)
                self._unanswered.discard(waiting.future)
            return
        for waiting, outcome in answers:
            waiting.future.set_result(outcome)
            self._unanswered.discard(waiting.future)

    @property
    def unanswered(self) -> int:
        """How many units were handed over and are not answered."""
        return len(self._unanswered)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything handed over so far is answered. False if `timeout` (seconds) ran out."""
        with self._lock:
            waited_for = list(self._unanswered)
            lead = bool(self._queue) and not self._start_writer() and self._leaders < self._width
            self._leaders += lead
        if lead:
            self._write_until(None)
        return not wait_for(waited_for, timeout).not_done

    def close(self, message: str) -> None:
        """Take no more units: they are refused with a `BackendError`."""
        with self._lock:
            self._closed = message


def _on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
