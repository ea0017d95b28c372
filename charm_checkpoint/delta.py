"""What changed between two values, as bytes: ranges of the earlier one and the new bytes around them.

Channel values mostly grow at their end, or change in one place. So a delta has one form:
`head + base[start : start + length] + middle + base[-rest:]`, where `head` is a few bytes, since msgpack's arrays begin
with their number of elements.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

__all__ = ["apply", "diff", "parts"]

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
    parsed: list[_Parsed] = []
    size = len(base)
    for delta in deltas:
        parsed.append(_parse(delta, size))
        size = parsed[-1].size
    # From the last to the first: of each value only what is left of it in the end is looked for.
    found: list[tuple[int, memoryview]] = []
    wanted = [
        (0, 0, size)
    ]  # where it goes, and from where to where it is in the value that is looked at
    for own, head, kept, tail, shift, tail_shift, _ in reversed(parsed):
        further: list[tuple[int, int, int]] = []
        for to, begin, end in wanted:
            offset = to - begin
            if begin < head:
                stop = min(end, head)
                found.append((offset + begin, own[begin:stop]))
                begin = stop
            if begin < end and begin < kept:
                stop = min(end, kept)
                further.append((offset + begin, begin + shift, stop + shift))
                begin = stop
            if begin < end and begin < tail:
                stop = min(end, tail)
                found.append((offset + begin, own[begin - kept + head : stop - kept + head]))
                begin = stop
            if begin < end:
                further.append((offset + begin, begin + tail_shift, end + tail_shift))
        wanted = further
    whole = memoryview(base)
    found += [(to, whole[begin:end]) for to, begin, end in wanted]
    found.sort(key=_place)
    return b"".join([piece for _, piece in found])


class _Parsed(NamedTuple):
    own: memoryview
    head: int
    kept: int
    """Where what follows `head` from the base ends."""
    tail: int
    """Where what is taken from the end of the base begins."""
    shift: int
    """From a place before `kept` to the same in the base."""
    tail_shift: int
    """From a place behind `tail` to the same in the base."""
    size: int


def _parse(delta: bytes, size: int) -> _Parsed:
    try:
        base_size, new_size, head, start, length, rest = _FIELDS.unpack_from(delta)
    except struct.error as error:
        raise ValueError(f"a delta of {len(delta)} bytes has no header") from error
    if base_size != size:
        raise ValueError(f"a delta to {base_size} bytes does not fit a base of {size}")
    own = memoryview(delta)[_FIELDS.size :]
    gives = len(own) + length + rest
    if gives != new_size or head > len(own) or start + length > size or rest > size:
        raise ValueError(f"a delta to {new_size} bytes gives {gives}")
    tail = new_size - rest
    return _Parsed(own, head, head + length, tail, start - head, size - new_size, new_size)


def _place(piece: tuple[int, memoryview]) -> int:
    return piece[0]


def parts(base: bytes, new: bytes) -> list[bytes | tuple[int, int]] | None:
    """Tell `new` as its parts: new bytes, and ranges of `base` as `(start, length)`; `None` as in `diff`."""
    encoded = diff(base, new)
    if encoded is None:
        return None
    _, _, head, start, length, rest = _FIELDS.unpack_from(encoded)
    own = encoded[_FIELDS.size :]
    found: list[bytes | tuple[int, int]] = []
    if own[:head]:
        found.append(own[:head])
    if length:
        found.append((start, length))
    if own[head:]:
        found.append(own[head:])
    if rest:
        found.append((len(base) - rest, rest))
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
