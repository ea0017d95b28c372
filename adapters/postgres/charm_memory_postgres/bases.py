"""What this process last wrote and read of each channel.

The next value can be sent as a change to it, and if it is still the one that is stored, it need not be read.
"""

from __future__ import annotations

import base64
import hashlib
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from charm_checkpoint import delta
from charm_checkpoint.backend import SEALED, BlobRow
from charm_checkpoint.forks import ForkAware
from charm_memory_postgres.steps import Steps

__all__ = ["Bases", "Change", "Held", "digest"]

# Of a smaller value, what it takes to tell about it is not worth it.
_MIN_BYTES = 1024
# Bytes reach a server on this machine sooner than it is found out which of them are new.
_MIN_BYTES_NEAR = 32 * 1024
_RECENT_BYTES = 32 * 1024 * 1024
_FIELDS = struct.Struct(">IIIIII")


class Held(NamedTuple):
    """A value as it was stored."""

    blob: BlobRow
    xid: str | None
    """The transaction that stored it: whatever else is ever stored in its place has another. `None`: not known."""


class Change(NamedTuple):
    """A value as ranges of an earlier version with new bytes around them, as `charm_checkpoint.delta` has it."""

    base: str
    """The earlier version."""
    digest: str
    """Of the whole value."""
    head: int
    start: int
    length: int
    rest: int
    data: bytes
    """`head` bytes, and the others that are new."""


def digest(pieces: Iterable[bytes]) -> str:
    """What bytes are known by that are rebuilt on the server: the first 15 of their SHA-256, in base64."""
    hashed = hashlib.sha256()
    for piece in pieces:
        hashed.update(piece)
    return base64.b64encode(hashed.digest()[:15]).decode()


class Bases(ForkAware):
    """Bounded, thread-safe. Whether the server still holds a base is found out by using it."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = Steps()
        self._recent: OrderedDict[tuple[str, str], dict[str, Held]] = OrderedDict()
        self._size = 0
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()

    def remember(self, thread_id: str, namespace: str, blob: BlobRow, xid: str | None) -> None:
        """Keep a value: of each channel the one told last."""
        if not _MIN_BYTES <= len(blob.data) <= _RECENT_BYTES:
            return
        place = (thread_id, namespace)
        with self._lock:
            channels = self._recent.setdefault(place, {})
            self._recent.move_to_end(place)
            before = channels.get(blob.channel)
            self._size += len(blob.data) - (len(before.blob.data) if before else 0)
            channels[blob.channel] = Held(blob, xid)
            while self._size > _RECENT_BYTES:
                _, oldest = self._recent.popitem(last=False)
                self._size -= sum(len(held.blob.data) for held in oldest.values())

    def held(self, thread_id: str, namespace: str) -> Mapping[str, Held]:
        """What is remembered, by channel."""
        with self._lock:
            return dict(self._recent.get((thread_id, namespace), {}))

    def change(self, thread_id: str, namespace: str, blob: BlobRow, *, near: bool) -> Change | None:
        """Tell `blob` as a change to what is remembered, if that saves at least half.

        Args:
            thread_id: Where it belongs.
            namespace: Where it belongs.
            blob: The new value.
            near: The server is on this machine.
        """
        if len(blob.data) < (_MIN_BYTES_NEAR if near else _MIN_BYTES) or blob.type.endswith(SEALED):
            return None
        base = self.held(thread_id, namespace).get(blob.channel)
        if base is None or base.blob.version == blob.version:
            return None
        encoded = delta.diff(base.blob.data, blob.data)
        if encoded is None:
            return None
        _, _, head, start, length, rest = _FIELDS.unpack_from(encoded)
        data = encoded[_FIELDS.size :]
        return Change(base.blob.version, digest([blob.data]), head, start, length, rest, data)
