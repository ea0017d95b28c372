"""A lock between the processes of one machine that goes when its holder does, however it ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from charm_checkpoint.forks import ForkAware

__all__ = ["ProcessLock"]


class ProcessLock(ForkAware):
    """Held by at most one process (and one object in it) at a time.

    Args:
        path: A file for nothing else; made when missing.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._held: int | None = None

    def after_fork_in_child(self) -> None:
        # The lock stays the parent's.
        descriptor, self._held = self._held, None
        if descriptor is not None:
            os.close(descriptor)

    def acquire(self) -> bool:
        """Take it; False if somebody else has it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._held = descriptor
        return True

    def release(self) -> None:
        """Give it up; nothing happens if it is not held."""
        descriptor, self._held = self._held, None
        if descriptor is not None:
            if sys.platform != "win32":
                import fcntl

                # A child forked in the middle of `acquire` has the descriptor, too, and no way to know of it.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)
