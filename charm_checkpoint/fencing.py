"""What runs of this process have read, so that a write can be checked against it.

LangGraph gives a saver no run to hold on to: a put only says which checkpoint it grew from. That is enough with three
facts per thread and namespace: which checkpoints were asked for by id while they were not the head (time travel, so a
fork is meant), whether a replay found nothing before its point (so a second root is meant), and whether the thread was
read as empty (so a second root is a collision).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

from charm_checkpoint.forks import ForkAware

K = TypeVar("K")
V = TypeVar("V")


class Bounded(ForkAware, Generic[K, V]):
    """A thread-safe mapping that forgets the entry longest unused beyond `size`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self._items: OrderedDict[K, V] = OrderedDict()
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            value = self._items.get(key)
            if value is not None:
                self._items.move_to_end(key)
            return value

    def set(self, key: K, value: V) -> None:
        with self._lock:
            self._items[key] = value
            self._items.move_to_end(key)
            if len(self._items) > self._size:
                self._items.popitem(last=False)


class ReadLog:
    """Remembers reads, and tells whether a put has to find its parent at the head.

    Bounded. What it forgets makes a put fail that would have been a fork, except for a thread read as empty, so of
    those it remembers most.
    """

    def __init__(self, *, asked: int = 20_000, empty: int = 200_000) -> None:
        self._asked: Bounded[tuple[str, str, str | None], bool] = Bounded(asked)
        self._empty: Bounded[tuple[str, str], bool] = Bounded(empty)

    def read_empty(self, thread_id: str, namespace: str) -> None:
        """The newest checkpoint was asked for and there was none."""
        self._empty.set((thread_id, namespace), True)

    def asked(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> None:
        """A checkpoint that is not the head was asked for by id; `None`: a replay found none."""
        self._asked.set((thread_id, namespace, checkpoint_id), True)

    def fenced(self, thread_id: str, namespace: str, parent_id: str | None) -> bool:
        """Whether a put on `parent_id` must find it at the head (for `None`: must find no head)."""
        if self._asked.get((thread_id, namespace, parent_id)):
            return False
        return parent_id is not None or bool(self._empty.get((thread_id, namespace)))
