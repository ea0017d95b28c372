"""What this process last wrote and read of each channel.

The next value can be sent and stored as a change to it, and if it is still the one that is stored, it need not be read.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

from charm_checkpoint.backend import BlobRow
from charm_checkpoint.forks import ForkAware

__all__ = ["MIN_BYTES", "Bases", "Held"]

# Of a smaller value, what it takes to tell about it is not worth it.
MIN_BYTES = 1024
_RECENT_BYTES = 32 * 1024 * 1024


class Held(NamedTuple):
    """A value as it is stored."""

    blob: BlobRow
    version: bytes
    """Channel and version, as parts."""
    stamp: bytes
    """What it is known by there: equal stamps mean the same value, stored the same way."""


class Bases(ForkAware):
    """Bounded, thread-safe. Whether the server still holds a base is found out by using it."""

    def __init__(self) -> None:
        super().__init__()
        self._recent: OrderedDict[str, dict[str, dict[str, Held]]] = OrderedDict()
        self._size = 0
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()

    def remember(self, thread_id: str, namespace: str, held: Held) -> None:
        """Keep a value: of each channel the one told last."""
        size = len(held.blob.data)
        if not MIN_BYTES <= size <= _RECENT_BYTES:
            return
        with self._lock:
            channels = self._recent.setdefault(thread_id, {}).setdefault(namespace, {})
            self._recent.move_to_end(thread_id)
            before = channels.get(held.blob.channel)
            self._size += size - (len(before.blob.data) if before else 0)
            channels[held.blob.channel] = held
            while self._size > _RECENT_BYTES:
                _, oldest = self._recent.popitem(last=False)
                self._size -= sum(len(h.blob.data) for ns in oldest.values() for h in ns.values())

    def held(
        self, thread_id: str, namespace: str | None = None
    ) -> Mapping[str, Mapping[str, Held]]:
        """What is remembered of a namespace, or of all, by namespace and channel."""
        with self._lock:
            found = self._recent.get(thread_id, {})
            return {ns: dict(all) for ns, all in found.items() if namespace in (None, ns)}
