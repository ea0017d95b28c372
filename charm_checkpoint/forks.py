"""Objects that survive `os.fork`: parent and child go on with locks nobody holds and connections of their own."""

from __future__ import annotations

import os
import threading
import weakref

__all__ = ["ForkAware"]


class ForkAware:
    """Base of objects that hold locks, threads or connections."""

    def __init__(self) -> None:
        _alive.add(self)

    def before_fork(self) -> None:
        """Put down what must not be open or held at the fork. Runs in the parent, on the forking thread."""

    def after_fork_in_parent(self) -> None:
        """Take it up again."""

    def after_fork_in_child(self) -> None:
        """Replace what another thread of the parent may have held. Runs before any other code of the child."""


_alive: weakref.WeakSet[ForkAware] = weakref.WeakSet()
# Those that were told before the fork, and so have to be told after it: other threads may add some meanwhile.
_told: list[ForkAware] = []
_one_at_a_time = threading.Lock()


def _before() -> None:
    _one_at_a_time.acquire()
    for each in list(_alive):
        _told.append(each)
        each.before_fork()


def _after_in_parent() -> None:
    while _told:
        _told.pop().after_fork_in_parent()
    _one_at_a_time.release()


def _after_in_child() -> None:
    _told.clear()
    _one_at_a_time.release()
    for each in list(_alive):
        each.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
    )
