"""What a step tells is said several times over: texts in a write and again in a channel, names and versions anywhere.

A request holds such bytes once, and where they have to be copied to.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Packed", "pack"]

# Shorter copies cost more to tell than they save.
_LEAST = 12
_STRIDE = 4
# What is behind that is sent as it is: most of it is one large value, which `bases` has looked at.
_WINDOW = 64 * 1024


class Packed(NamedTuple):
    """Bytes as `charm_unpack_v1` takes them."""

    data: bytes
    """What is not copied."""
    moves: list[int]
    """By threes: take that many bytes of `data`, then copy from there, so many, of what was made so far."""


def pack(data: bytes) -> Packed:
    """Find what is repeated in the first 64 KiB."""
    end = min(len(data), _WINDOW) - _LEAST
    places: dict[bytes, int] = {}
    kept: list[bytes] = []
    moves: list[int] = []
    at = taken = placed = 0
    while at <= end:
        while placed + _LEAST <= at:
            places[data[placed : placed + _LEAST]] = placed
            placed += _STRIDE
        source = places.get(data[at : at + _LEAST])
        if source is None:
            at += 1
            continue
        length = _LEAST
        # Never into what is being made.
        while (
            source + length < at
            and at + length < len(data)
            and data[source + length] == data[at + length]
        ):
            length += 1
        while source and taken < at > source + length and data[source - 1] == data[at - 1]:
            source, at, length = source - 1, at - 1, length + 1
        kept.append(data[taken:at])
        moves += (at - taken, source, length)
        at = taken = at + length
    kept.append(data[taken:])
    return Packed(b"".join(kept), moves)
