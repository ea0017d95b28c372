"""How calls reach a backend, in both colours: repeated where it is unavailable, and across forks and the program's end.

Writes go through lanes, where those that meet share one transaction; reads on the caller's thread or a small pool.
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
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from charm_checkpoint.backend import Backend, Outcome, PutWrites, Unit
from charm_checkpoint.errors import BackendError, BackendUnavailable
from charm_checkpoint.forks import ForkAware
from charm_checkpoint.lane import Lane

__all__ = ["Engine", "RetryPolicy"]

logger = logging.getLogger("charm_checkpoint.engine")
T = TypeVar("T")

_READERS = 4


class RetryPolicy(NamedTuple):
    """How long a call that meets `BackendUnavailable` is repeated. Times in seconds."""

    budget: float = 30.0
    """No new attempt begins later than this after the first."""
    first_pause: float = 0.05
    max_pause: float = 2.0


class Engine(ForkAware):
    """Runs a backend for any number of threads, tasks and event loops.

    Args:
        backend: Prepared on the first call, not before.
        retry: What to do while the backend is unavailable.
        through: Makes the door that all calls go through, of the backend.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        retry: RetryPolicy | None = None,
        through: Callable[[Backend], Backend] | None = None,
    ) -> None:
        super().__init__()
        self.backend = backend
        self._door = backend if through is None else through(backend)
        self._retry = retry or RetryPolicy()
        self._closed = False
        self._ready = False
        self.after_fork_in_child()
        _engines.add(self)

    def after_fork_in_child(self) -> None:
        """Begin with no threads, no locks held and nothing waiting: what waited is the parent's to write."""
        self._lock = threading.Lock()
        self._setup_lock = threading.Lock()
        self._main = self._aside = Lane(self._write)
        if self._width > 1:
            # Where a write is a journey, LangGraph's next checkpoint should not wait for one with pending writes only.
            self._aside = Lane(self._write, width=self._width - 1)
        self._lanes = {self._main, self._aside}
        self._readers: ThreadPoolExecutor | None = None

    # -- writing ---------------------------------------------------------------------------------------------------

    def write(self, unit: Unit) -> Outcome:
        """Store one unit; returns when it is durable or refused.

        Raises:
            BackendError: It was not stored, or (`BackendUnavailable`) that is not known.
        """
        return self._lane(unit).write(unit)

    async def awrite(self, unit: Unit) -> Outcome:
        """Like `write`, without a thread. Cancelling the caller does not take the unit back."""
        return await self._lane(unit).awrite(unit)

    def _lane(self, unit: Unit) -> Lane:
        # Asked each time: how far away the backend is, and so how many writes it takes at once, may be found out later.
        if isinstance(unit, PutWrites) and not unit.fenced and self._width > 1:
            return self._aside
        return self._main

    @property
    def _width(self) -> int:
        return getattr(self.backend, "parallel_writes", 1)

    def _write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        return self._attempt(lambda: self._door.write(units), late=True)

    @property
    def unanswered(self) -> int:
        """How many units were handed over and are not answered."""
        return sum(lane.unanswered for lane in self._lanes)

    # -- reading and everything else -------------------------------------------------------------------------------

    def call(self, function: Callable[[Backend], T], *, repeat: bool = True) -> T:
        """Run `function` with the backend on this thread.

        Args:
            function: What to do.
            repeat: Whether it may be done again when the backend was unavailable, though it may have been done.
        """
        return self._attempt(lambda: function(self._door), repeat=repeat)

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

    def _attempt(self, action: Callable[[], T], *, repeat: bool = True, late: bool = False) -> T:
        """Run `action`; `late`: also after the engine was closed, which else ends a call that is being repeated."""
        deadline = time.monotonic() + self._retry.budget
        pause = self._retry.first_pause
        while True:
            if not late:
                self._check_open()
            try:
                if not self._ready:
                    self._setup()
                return action()
            except BackendUnavailable as error:
                if not repeat or time.monotonic() + max(pause, error.retry_after) > deadline:
                    raise
                # Jitter, so that clients a restart threw out do not come back together.
                time.sleep(max(pause * random.uniform(0.5, 1.0), error.retry_after))
                pause = min(pause * 2, self._retry.max_pause)

    def _setup(self) -> None:
        with self._setup_lock:
            if not self._ready:
                self.backend.setup()
                self._ready = True

    # -- ending ----------------------------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything handed over so far is answered. False if `timeout` (seconds) ran out."""
        deadline = None if timeout is None else time.monotonic() + timeout
        return all(
            lane.flush(None if deadline is None else max(0.0, deadline - time.monotonic()))
            for lane in self._lanes
        )

    def close(self) -> None:
        """Write what is waiting, then release the backend. Idempotent; later calls raise `BackendError`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            readers, self._readers = self._readers, None
        for lane in self._lanes:
            lane.close(self._closed_message)
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
            raise BackendError(self._closed_message)

    @property
    def _closed_message(self) -> str:
        return f"{self.backend.name} was closed; open the store again"


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _settle_all() -> None:
    # Not closed: exit handlers of the program that run after this one may still save.
    for engine in list(_engines):
        try:
            engine._settle()
        except Exception:
            logger.exception("%s could not be put in order at exit", engine.backend.name)


atexit.register(_settle_all)
