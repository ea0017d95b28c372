"""What runs of this process have read, so that a write can be checked against it.

LangGraph gives a saver no run to hold on to: a put only says which checkpoint it grew from. A checkpoint that was asked
for by id while it was not the head (time travel) is handed out with a marked id (`codec.PastId`), so that a run which
merely began there and was overtaken is not taken for one. What no config can carry is that a read found
nothing: that is remembered here.
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
    """Remembers, per thread and namespace, reads that found nothing. Bounded: what was forgotten is not fenced."""

    def __init__(self, size: int = 200_000) -> None:
        self._empty: Bounded[tuple[str, str], bool] = Bounded(size)
        self._replayed: Bounded[tuple[str, str], bool] = Bounded(size)

    def read_empty(self, thread_id: str, namespace: str) -> None:
        """The newest checkpoint was asked for and there was none: a first checkpoint must find none either."""
        self._empty.set((thread_id, namespace), True)

    def replayed_nothing(self, thread_id: str, namespace: str) -> None:
        """A replay found no checkpoint before its point: a second first checkpoint is meant."""
        self._replayed.set((thread_id, namespace), True)

    def fenced(self, thread_id: str, namespace: str, parent_id: str | None) -> bool:
        """Whether a put on `parent_id` must find it at the head (for `None`: must find no head)."""
        if parent_id is not None:
            return True
        key = (thread_id, namespace)
        return bool(self._empty.get(key)) and not self._replayed.get(key)
