"""The far database as a replica sees it: asked within a time, and known to be away or there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

from charm_checkpoint.backend import Backend
from charm_checkpoint.errors import BackendError, BackendUnavailable
from charm_checkpoint.forks import ForkAware

__all__ = ["Remote"]

logger = logging.getLogger("charm_checkpoint.replica")
T = TypeVar("T")


class Remote(ForkAware):
    """Calls a backend that may be far away, slow, or not there.

    Args:
        backend: Prepared on the first call that reaches it.
        on_change: Told whenever it went (with the error) or came back (with `None`), and what was found at first.
    """

    def __init__(
        self, backend: Backend, on_change: Callable[[BackendUnavailable | None], None]
    ) -> None:
        super().__init__()
        self.backend = backend
        self.offline: BackendUnavailable | None = None
        """Why it could not be reached the last time; `None` while it answers."""
        self._on_change = on_change
        self._asked = False
        self._ready = False
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
        # Another one: a remote that hangs in its `setup` must not hold up whoever notes that it does not answer.
        self._setup_lock = threading.Lock()

    @property
    def answers(self) -> bool:
        """Whether the last call of this process reached it."""
        return self._asked and self.offline is None

    def call(self, function: Callable[[Backend], T]) -> T:
        """Call the backend on this thread, for as long as its driver allows.

        Raises:
            BackendUnavailable: It could not be reached.
        """
        try:
            if not self._ready:
                with self._setup_lock:
                    if not self._ready:
                        self.backend.setup()
                        self._ready = True
            answer = function(self.backend)
        except BackendUnavailable as error:
            self._note(error)
            raise
        except BackendError:
            self._note(None)  # it is there, and says no
            raise
        self._note(None)
        return answer

    def ask(self, function: Callable[[Backend], T], timeout: float) -> T:
        """Call the backend, and wait no longer than `timeout` seconds for the answer.

        Raises:
            BackendUnavailable: It could not be reached, or did not answer in time.
        """
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(self.call(function))
            except BaseException as error:  # noqa: BLE001 - goes to whoever waits for it
                future.set_exception(error)

        # A thread of its own: a driver that hangs must not take a pool's with it, nor hold up the end of the program.
        try:
            threading.Thread(target=run, name="charm-checkpoint-remote", daemon=True).start()
        except RuntimeError:
            # The interpreter is shutting down and starts no more threads.
            return self.call(function)
        try:
            return future.result(max(timeout, 0.0))
        except FutureTimeoutError as late:
            error = BackendUnavailable(
                f"{self.backend.name} did not answer within {timeout:.2g} s (wake_timeout)"
            )
            self._note(error)
            raise error from late

    def _note(self, error: BackendUnavailable | None) -> None:
        with self._lock:
            before, self.offline = self.offline, error
            known, self._asked = self._asked, True
        if known and (error is None) == (before is None):
            return
        if error is not None:
            logger.warning(
                "%s; going on with what is on this device, and sending what is done here when it is back",
                error,
            )
        elif before is not None:
            logger.info("%s answers again", self.backend.name)
        self._on_change(error)
