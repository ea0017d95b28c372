"""How calls reach a backend: group commit, futures for async callers, retries, flush, fork.

Writers that arrive while a write is in flight go together in the next one. There is no timer: an idle engine writes at
once. A synchronous caller that finds nobody writing writes itself, on its own thread, everything that is waiting; an
asynchronous caller waits on a future that the engine's own thread completes. So no call ever needs an event loop, and
none is bound to one.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from charm_checkpoint.backend import Backend, Outcome, Unit
from charm_checkpoint.errors import BackendError, BackendUnavailable
from charm_checkpoint.forks import ForkAware

__all__ = ["Engine", "RetryPolicy"]

logger = logging.getLogger("charm_checkpoint.engine")
T = TypeVar("T")

# One transaction should not hold everybody up for long; callers beyond this go in the next.
_MAX_UNITS = 512
_READERS = 4
# Seconds without work after which the engine's thread ends; the next call that needs one starts another.
_IDLE = 5.0


class RetryPolicy(NamedTuple):
    """How long a call that meets `BackendUnavailable` is repeated. Times in seconds."""

    budget: float = 30.0
    """No new attempt begins later than this after the first."""
    first_pause: float = 0.05
    max_pause: float = 2.0


class _Waiting(NamedTuple):
    unit: Unit
    future: Future[Outcome]


class Engine(ForkAware):
    """Runs a backend for any number of threads, tasks and event loops.

    Args:
        backend: Prepared on the first call, not before.
        retry: What to do while the backend is unavailable.
    """

    def __init__(self, backend: Backend, *, retry: RetryPolicy | None = None) -> None:
        super().__init__()
        self.backend = backend
        self._retry = retry or RetryPolicy()
        self._closed = False
        self._ready = False
        self.after_fork_in_child()
        _engines.add(self)

    def after_fork_in_child(self) -> None:
        """Begin with no threads, no locks held and nothing waiting: what waited is the parent's to write."""
        self._lock = threading.Lock()
        self._setup_lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._queue: list[_Waiting] = []
        self._handed = 0
        self._answered = 0
        self._writing = False
        self._writer: threading.Thread | None = None
        self._readers: ThreadPoolExecutor | None = None

    # -- writing ---------------------------------------------------------------------------------------------------

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
        """Queue a unit. True if the caller has to lead: nobody is writing, and it may or has to."""
        with self._lock:
            self._check_open()
            self._queue.append(_Waiting(unit, future))
            self._handed += 1
            if not may_lead and self._start_writer():
                return False
            lead = not self._writing
            self._writing = True
            return lead

    def _start_writer(self) -> bool:
        """Have the engine's thread take the queue; False when the interpreter allows no new thread. Holds the lock."""
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
                while not self._queue or self._writing:
                    # It ends when idle, so that an engine nobody holds any more can go.
                    if not self._wake.wait(_IDLE) and not self._queue:
                        self._writer = None
                        return
                self._writing = True
            self._write_until(None)

    def _write_until(self, mine: Future[Outcome] | None) -> None:
        """Write batches until `mine` is answered (for `None`: until nothing waits), then let somebody else lead."""
        batch: list[_Waiting] = []
        try:
            while not (mine is not None and mine.done()):
                with self._lock:
                    self._answered = self._handed - len(self._queue)
                    self._wake.notify_all()
                    batch = self._queue[:_MAX_UNITS]
                    del self._queue[:_MAX_UNITS]
                if not batch:
                    break
                self._write_batch(batch)
        finally:
            # On an interrupt (Ctrl-C hits whoever leads) what was not answered goes back, for the engine's thread.
            with self._lock:
                self._queue[:0] = [w for w in batch if not w.future.done()]
                self._answered = self._handed - len(self._queue)
                self._writing = False
                self._wake.notify_all()
                deserted = bool(self._queue) and not self._start_writer()
                self._writing = deserted
        if deserted:
            self._write_until(None)

    def _write_batch(self, batch: Sequence[_Waiting]) -> None:
        units = [waiting.unit for waiting in batch]
        try:
            outcomes = self._attempt(lambda: self.backend.write(units))
            answers = list(zip(batch, outcomes, strict=True))
        except BaseException as caught:  # noqa: BLE001 - goes to whoever waits for it
            error: Exception
            if isinstance(caught, Exception):
                error = caught
            else:
                # A cancellation or an exit let out by a backend would be taken for the waiting caller's own.
                error = BackendError(f"{self.backend.name}: the write was broken off ({caught!r})")
                error.__cause__ = caught
            if len(batch) > 1 and not isinstance(error, BackendUnavailable):
                # One bad unit must not fail the others: find it by writing them one by one.
                for waiting in batch:
                    self._write_batch([waiting])
                return
            for waiting in batch:
                waiting.future.set_exception(error)
            return
        for waiting, outcome in answers:
            waiting.future.set_result(outcome)

    # -- reading and everything else -------------------------------------------------------------------------------

    def call(self, function: Callable[[Backend], T], *, repeat: bool = True) -> T:
        """Run `function` with the backend on this thread.

        Args:
            function: What to do.
            repeat: Whether it may be done again when the backend was unavailable, though it may have been done.
        """
        self._check_open()
        return self._attempt(lambda: function(self.backend), repeat=repeat)

    async def acall(self, function: Callable[[Backend], T], *, repeat: bool = True) -> T:
        """Like `call`, on a thread of a small pool."""
        self._check_open()
        try:
            future = self._pool().submit(self.call, function, repeat=repeat)
        except RuntimeError:
            # The interpreter is shutting down and starts no more threads.
            return self.call(function, repeat=repeat)
        return await asyncio.wrap_future(future)

    def _pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._readers is None:
                self._readers = ThreadPoolExecutor(_READERS, "charm-checkpoint-reader")
            return self._readers

    def _attempt(self, action: Callable[[], T], *, repeat: bool = True) -> T:
        deadline = time.monotonic() + self._retry.budget
        pause = self._retry.first_pause
        while True:
            try:
                if not self._ready:
                    self._setup()
                return action()
            except BackendUnavailable:
                if not repeat or time.monotonic() + pause > deadline:
                    raise
                # Jitter, so that clients a restart threw out do not come back together.
                time.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, self._retry.max_pause)

    def _setup(self) -> None:
        with self._setup_lock:
            if not self._ready:
                self.backend.setup()
                self._ready = True

    # -- ending ----------------------------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything handed over so far is answered. False if `timeout` (seconds) ran out."""
        with self._lock:
            target = self._handed
            lead = bool(self._queue) and not self._start_writer() and not self._writing
            self._writing = self._writing or lead
        if lead:
            self._write_until(None)
        with self._lock:
            return self._wake.wait_for(lambda: self._answered >= target, timeout)

    def close(self) -> None:
        """Write what is waiting, then release the backend. Idempotent; later calls raise `BackendError`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            readers, self._readers = self._readers, None
        self.flush()
        if readers is not None:
            readers.shutdown(wait=True)
        self.backend.close()
        _engines.discard(self)

    def _settle(self) -> None:
        """Write what is waiting and let the backend put its files in order; it may still be called after that."""
        self.flush()
        self.backend.close()

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError(f"{self.backend.name} was closed; open the store again")


def _on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _settle_all() -> None:
    # Not closed: exit handlers of the program that run after this one may still save.
    for engine in list(_engines):
        try:
            engine._settle()
        except Exception:
            logger.exception("%s could not be put in order at exit", engine.backend.name)


atexit.register(_settle_all)
