"""Keeps checkpoint ids in causal order across devices whose clocks disagree.

LangGraph names checkpoints by `uuid6`, which carries the writer's clock and is monotonic only within one process. A
device whose clock is behind would name its next checkpoint *before* the one it has just read. `observe` tells this
process's `uuid6` of every id it reads, as a hybrid logical clock does: later ids made here sort after it.

The head pointer alone decides what is newest; the clock keeps listings (`list`, `before=`) in the same order.
"""

from __future__ import annotations

from langgraph.checkpoint.base import id as _uuid6

# Room left below the greatest 60-bit timestamp, so that following a forged id cannot make uuid6 overflow.
_CEILING = (1 << 60) - (1 << 52)


def timestamp(checkpoint_id: str) -> int | None:
    """Read the 60-bit timestamp (100 ns ticks since 1582-10-15) of a version 6 UUID, `None` for any other id."""
    if len(checkpoint_id) != 36 or checkpoint_id[14] != "6":
        return None
    try:
        return int(checkpoint_id[0:8] + checkpoint_id[9:13] + checkpoint_id[15:18], 16)
    except ValueError:
        return None


def observe(checkpoint_id: str | None) -> None:
    """Make ids created from now on in this process sort after `checkpoint_id`."""
    if checkpoint_id is None:
        return
    seen = timestamp(checkpoint_id)
    if seen is None or seen >= _CEILING:
        return
    last = _uuid6._last_v6_timestamp
    if last is None or seen > last:
        _uuid6._last_v6_timestamp = seen  # type: ignore[assignment]
