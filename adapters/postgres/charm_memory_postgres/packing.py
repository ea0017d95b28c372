"""Old values in less room: one channel of a thread after the other, in transactions that nobody waits long for.

What is done stays done, and looking anew for what is left finds the rest, so that it can end at any time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from charm_checkpoint.errors import BackendCorrupt

__all__ = ["PACK_AFTER", "pack"]

PACK_AFTER = 20
"""How many of each namespace's newest checkpoints stay whole in LangGraph's tables, unless somebody says otherwise."""

logger = logging.getLogger("charm_checkpoint.postgres")

# How many threads are looked at in one call.
_THREADS = 500

Call = Callable[..., Any]
"""Calls a function of the server in a transaction of its own, and returns its answer."""


def pack(call: Call, keep: int) -> tuple[int, int]:
    """Pack what only checkpoints older than the newest `keep` have, in all threads.

    Returns:
        How many bytes all values took, and how many less they take.

    Raises:
        BackendCorrupt: A thread is damaged; the others were packed.
    """
    room = freed = looked_at = 0
    damage: BackendCorrupt | None = None
    last: str | None = ""
    while last is not None:
        page = call("charm_packable_v1(%s, %s)", last, _THREADS)
        last = page["last"]
        room += page["room"]
        for place in page["places"] or ():
            try:
                freed += _pack_channel(call, place, keep)
            except BackendCorrupt as error:
                logger.warning("thread %r is not packed: %s", place[0], error)
                damage = damage or error
        looked_at += page["threads"]
        logger.info("looked at %d threads, whose values take %d bytes less", looked_at, freed)
    if damage is not None:
        raise damage
    return room, freed


def _pack_channel(call: Call, place: tuple[str, str, str], keep: int) -> int:
    freed, below, more = 0, None, True
    while more:
        done = call("charm_pack_v1(%s, %s, %s, %s::integer, %s::text)", *place, keep, below)
        freed += done["freed"]
        below = done["below"]
        more = below is not None
    return freed
