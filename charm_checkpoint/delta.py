"""What changed between two values, as bytes: ranges of the earlier one and the new bytes around them.

Channel values mostly grow at their end, or change in one place. So a delta has one form:
`head + base[start : start + length] + middle + base[-rest:]`, where `head` is a few bytes, since msgpack's arrays begin
with their number of elements.
"""

from __future__ import annotations

import struct

__all__ = ["apply", "diff"]

_FIELDS = struct.Struct(">IIIIII")
"""Lengths of base and result, of `head`; `start` and `length`; `rest`. Then `head` and `middle`."""

_CHUNK = 1 << 16


def diff(base: bytes, new: bytes) -> bytes | None:
    """Encode `new` as a delta to `base`, `None` if that would save less than half."""
    head, start = _array_header(new), _array_header(base)
    length = _common_prefix(base, start, new, head)
    rest = _common_suffix(base, start + length, new, head + length)
    if len(new) - length - rest + _FIELDS.size > len(new) // 2:
        return None
    middle = new[head + length : len(new) - rest]
    return _FIELDS.pack(len(base), len(new), head, start, length, rest) + new[:head] + middle


def apply(base: bytes, *deltas: bytes) -> bytes:
    """Rebuild the value that `diff` encoded, through a chain of deltas each made against the one before.

    Raises:
        ValueError: A delta was not made against what it is applied to, or is damaged.
    """
    # Pieces of the inputs, joined once at the end: a chain costs hardly more than its last value.
    pieces, size = [memoryview(base)], len(base)
    for delta in deltas:
        try:
            base_size, new_size, head, start, length, rest = _FIELDS.unpack_from(delta)
        except struct.error as error:
            raise ValueError(f"a delta of {len(delta)} bytes has no header") from error
        if base_size != size:
            raise ValueError(f"a delta to {base_size} bytes does not fit a base of {size}")
        own = memoryview(delta)[_FIELDS.size :]
        kept, tail = _cut(pieces, start, length), _cut(pieces, size - rest, rest)
        pieces = [own[:head], *kept, own[head:], *tail]
        size = sum(map(len, pieces))
        if size != new_size:
            raise ValueError(f"a delta to {new_size} bytes gives {size}")
    return b"".join(pieces)


def _cut(pieces: list[memoryview], start: int, length: int) -> list[memoryview]:
    """The part of a value in pieces that begins at `start`."""
    found: list[memoryview] = []
    for piece in pieces:
        if length <= 0:
            break
        if start >= len(piece):
            start -= len(piece)
            continue
        part = piece[start : start + length]
        found.append(part)
        length -= len(part)
        start = 0
    return found


def _array_header(data: bytes) -> int:
    """How many bytes msgpack's array header takes, 0 if this is no array."""
    first = data[0] if data else 0
    if first & 0xF0 == 0x90:
        return 1
    return {0xDC: 3, 0xDD: 5}.get(first, 0)


def _common_prefix(a: bytes, i: int, b: bytes, j: int) -> int:
    """The number of equal bytes from `a[i:]` and `b[j:]` on."""
    limit = min(len(a) - i, len(b) - j)
    same = 0
    while same < limit and a[i + same : i + same + _CHUNK] == b[j + same : j + same + _CHUNK]:
        same += _CHUNK
    # Within the chunk that differs, halve.
    low, high = min(same, limit), min(same + _CHUNK, limit)
    while low < high:
        middle = (low + high + 1) // 2
        if a[i + low : i + middle] == b[j + low : j + middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _common_suffix(a: bytes, i: int, b: bytes, j: int) -> int:
    """The number of equal bytes at the ends of `a[i:]` and `b[j:]`."""
    limit = min(len(a) - i, len(b) - j)
    same = 0
    while same < limit:
        step = min(_CHUNK, limit - same)
        if a[len(a) - same - step : len(a) - same] != b[len(b) - same - step : len(b) - same]:
            break
        same += step
    low, high = same, min(same + _CHUNK, limit)
    while low < high:
        middle = (low + high + 1) // 2
        if a[len(a) - middle : len(a) - low] == b[len(b) - middle : len(b) - low]:
            low = middle
        else:
            high = middle - 1
    return low
