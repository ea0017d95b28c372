"""What this process last wrote and read of each channel: what the next value can be sent as a change to."""

from __future__ import annotations

import hashlib
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from charm_checkpoint import delta
from charm_checkpoint.backend import BlobRow
from charm_checkpoint.forks import ForkAware

__all__ = ["Bases", "Change"]

# A change to a smaller value would save nothing.
_MIN_BYTES = 1024
_RECENT_BYTES = 32 * 1024 * 1024
_FIELDS = struct.Struct(">IIIIII")


class Change(NamedTuple):
    """A value as ranges of an earlier version with new bytes around them, as `charm_checkpoint.delta` has it."""

    base: str
    """The earlier version."""
    md5: str
    """Of the whole value, in hex."""
    head: int
    start: int
    length: int
    rest: int
    data: bytes
    """`head` bytes, and the others that are new."""


class Bases(ForkAware):
    """Bounded, thread-safe. Whether the server still holds a base is found out by using it."""

    def __init__(self) -> None:
        super().__init__()
        self._recent: OrderedDict[tuple[str, str, str], BlobRow] = OrderedDict()
        self._size = 0
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()

    def remember(self, thread_id: str, namespace: str, blobs: Iterable[BlobRow]) -> None:
        """Keep values, of each channel the one told last."""
        with self._lock:
            for blob in blobs:
                if len(blob.data) < _MIN_BYTES or len(blob.data) > _RECENT_BYTES:
                    continue
                key = (thread_id, namespace, blob.channel)
                before = self._recent.pop(key, None)
                self._size += len(blob.data) - (len(before.data) if before else 0)
                self._recent[key] = blob
                while self._size > _RECENT_BYTES:
                    self._size -= len(self._recent.popitem(last=False)[1].data)

    def change(self, thread_id: str, namespace: str, blob: BlobRow) -> Change | None:
        """Tell `blob` as a change to what is remembered, if that saves at least half."""
        if len(blob.data) < _MIN_BYTES:
            return None
        with self._lock:
            base = self._recent.get((thread_id, namespace, blob.channel))
        if base is None or base.version == blob.version:
            return None
        encoded = delta.diff(base.data, blob.data)
        if encoded is None:
            return None
        _, _, head, start, length, rest = _FIELDS.unpack_from(encoded)
        digest = hashlib.md5(blob.data, usedforsecurity=False).hexdigest()
        return Change(base.version, digest, head, start, length, rest, encoded[_FIELDS.size :])
