"""The list of all threads, and the recency index that it is read from.

The index is a sorted set of thread ids by when one of their heads moved last. It has every thread with checkpoints, and
may have some that are gone, which are taken out where they are met. On a single server each script keeps it exact. In a
cluster it lives in a slot of its own and is written beside the thread, and set right where the thread tells another
time: a time can be raised at any moment, but lowered or taken out only if nobody changed it meanwhile and, unless its
writer does so, only when it is old, since a write may be under way that it was noted for.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from charm_checkpoint.backend import (
    Labels,
    MoveHead,
    PutCheckpoint,
    ThreadCursor,
    ThreadQuery,
    ThreadRow,
    Unit,
)
from charm_checkpoint.errors import BackendError, BackendUnavailable
from charm_checkpoint.rules import has_labels
from charm_memory_redis import wire
from charm_memory_redis.connections import Call, Connections
from charm_memory_redis.keys import Keys, part, raw, text
from charm_memory_redis.scripts import script

__all__ = ["THREADS_AT_ONCE", "Listing"]

THREADS_AT_ONCE = 200
"""How many are asked with one trip."""

# After so many new threads that will end by themselves, the index is looked through for some that did, twice as many.
_BEGINNINGS = 64
# Seconds: longer than a write is under way, with what the clocks of two devices may differ by.
_OLD = 3600.0


# See `status_of`.
_CHANNELS = {"interrupted": "__interrupt__", "failed": "__error__"}
_PLAIN = re.compile(r"[A-Za-z0-9_.:@ -]*")


class _Listed(NamedTuple):
    """A thread as the index has it."""

    thread_id: str
    score: bytes

    @property
    def cursor(self) -> ThreadCursor:
        return float(self.score), self.thread_id


class Listing:
    """Lists threads.

    Args:
        connections: Runs the scripts.
        keys: Names the keys.
    """

    def __init__(self, connections: Connections, keys: Keys) -> None:
        self._connections = connections
        self._keys = keys
        self._beginnings = 0

    # -- threads ---------------------------------------------------------------------------------------------------

    def threads(self, query: ThreadQuery) -> list[ThreadRow]:
        """As `Backend.threads`. Threads that a filter leaves out are read, too, the newest first."""
        if query.thread_id is not None:
            [told] = self._connections.run(self._thread(query.thread_id))
            row = wire.thread_row(query.thread_id, told)
            return [] if row is None or not _fits(query, row) else [row][: query.limit]
        # By their ids: one that is set right is met again further down.
        reached: dict[str, ThreadRow] = {}  # whose place is on the pages that were read
        beyond: dict[str, ThreadRow] = {}  # whose place is further down
        late: dict[str, bytes] = {}
        for page, end in self._pages(query, late):
            for row in page:
                if _fits(query, row):
                    reached.pop(row.thread_id, None)
                    beyond[row.thread_id] = row
            arrived = {id: row for id, row in beyond.items() if _cursor(row) >= end}
            beyond = {id: row for id, row in beyond.items() if id not in arrived}
            reached |= arrived
            if len(reached) >= query.limit:
                break
        found = [*reached.values(), *beyond.values()]
        rows = sorted(found, key=_cursor, reverse=True)[: query.limit]
        ids = [row.thread_id for row in rows if row.thread_id in late]
        self._repair([self._note(id, late[id]) for id in ids])
        return rows

    def _pages(
        self, query: ThreadQuery, late: dict[str, bytes]
    ) -> Iterator[tuple[list[ThreadRow], ThreadCursor]]:
        """Threads as the index has them, the one moved last first; with how far in the index they reach."""
        after, filtered = query.after, query.status is not None or bool(query.labels)
        size = THREADS_AT_ONCE if filtered else max(1, min(query.limit, THREADS_AT_ONCE))
        place = [b"", b""] if after is None else [wire.seconds(after[0]), raw(after[1])]
        channel = _CHANNELS.get(query.status or "", "")
        wanted = [channel and part(channel), wire.packed(_texts(query.labels))]
        while True:
            if self._connections.is_cluster:
                call = Call(script("recent"), [self._keys.index], [*place, size])
                [found] = self._connections.run(call)
                listed = _listed(found)
                rows = self._rows(listed, after, late)
            else:
                arguments = [raw(self._keys.prefix), *place, size, *wanted]
                call = Call(script("page"), [self._keys.index], arguments)
                [(found, told)] = self._connections.run(call)
                listed = _listed(found)
                rows = [
                    wire.thread_row(each.thread_id, facts)
                    for each, facts in zip(listed, told, strict=True)
                ]
            if listed:
                yield [row for row in rows if row is not None], listed[-1].cursor
            if len(listed) < size:
                return
            place = [listed[-1].score, raw(listed[-1].thread_id)]
            size = THREADS_AT_ONCE

    def _rows(
        self, listed: Sequence[_Listed], after: ThreadCursor | None, late: dict[str, bytes]
    ) -> list[ThreadRow | None]:
        """In a cluster, the threads that the index has, which is set right where they tell otherwise.

        A thread has the time it was found under, so that it is on one page and not on two, if that is too early for a
        place behind `after` (it is then in `late`, with the right one), or cannot be set right yet.
        """
        answers = self._connections.run(*(self._thread(each.thread_id) for each in listed))
        rows, repairs = [], []
        for each, told in zip(listed, answers, strict=True):
            row, score = wire.thread_row(each.thread_id, told), float(each.score)
            updated = (told[1] or told[0]) if told else b""
            found = row and row._replace(updated_at=score)
            if updated and float(updated) > score:
                if after is not None and (float(updated), each.thread_id) >= after:
                    row, late[each.thread_id] = found, updated
                else:
                    repairs.append(self._note(each.thread_id, updated))
            elif not updated or float(updated) < score:
                if _is_old(score):
                    repairs.append(self._amend(each.thread_id, each.score, updated))
                else:
                    row = found
            rows.append(row)
        self._repair(repairs)
        return rows

    def _thread(self, thread_id: str) -> Call:
        return Call(script("thread"), self._keys.thread(thread_id)[:2], [])

    # -- keeping the index small -----------------------------------------------------------------------------------

    def begun(self, units: Iterable[Unit]) -> None:
        """Now and then forget threads that ended by themselves: nobody may ever list them."""
        self._beginnings += sum(
            isinstance(u, PutCheckpoint) and u.row.parent_id is None and not u.namespace
            for u in units
        )
        if self._beginnings < _BEGINNINGS:
            return
        self._beginnings = 0
        # What was written is written, whatever becomes of this.
        with suppress(BackendError):
            if self._connections.is_cluster:
                [found] = self._connections.run(
                    Call(script("some"), [self._keys.index], [2 * _BEGINNINGS])
                )
                self._rows(_listed(found), None, {})
            else:
                arguments = [raw(self._keys.prefix), 2 * _BEGINNINGS]
                self._connections.run(Call(script("sweep"), [self._keys.index], arguments))

    # -- keeping the index, in a cluster ---------------------------------------------------------------------------

    def times(self, units: Iterable[Unit]) -> dict[str, float]:
        """When units move heads of their threads."""
        times: dict[str, float] = {}
        for unit in units:
            if (at := _moved_at(unit)) is not None:
                times[unit.thread_id] = max(at, times.get(unit.thread_id, at))
        return times

    def noting(self, times: Mapping[str, float]) -> list[Call]:
        """What has to be run beside units, so that their threads are listed."""
        return [self._note(thread_id, wire.seconds(at)) for thread_id, at in times.items()]

    def correct(
        self, noted: Mapping[str, float], found: Sequence[bytes], told: Mapping[str, bytes]
    ) -> None:
        """Set right what `noting` noted.

        Args:
            noted: What it was given.
            found: What it answered: what the threads are listed under.
            told: What the threads tell, nothing if they are not there.
        """
        repairs = []
        for (thread_id, at), score in zip(noted.items(), found, strict=True):
            updated, listed = told[thread_id], float(score)
            if updated and float(updated) > listed:
                repairs.append(self._note(thread_id, updated))
            elif (not updated or float(updated) < listed) and (listed == at or _is_old(listed)):
                repairs.append(self._amend(thread_id, score, updated))
        self._repair(repairs)

    def note(self, thread_id: str, at: bytes) -> None:
        """List a thread, at least as late as a time.

        Raises:
            BackendUnavailable: It could not be listed.
        """
        try:
            self._connections.run(self._note(thread_id, at))
        except BackendError as error:
            raise BackendUnavailable(
                f"thread {thread_id!r} is stored, and in the list of threads only from its next step on: {error}"
            ) from error

    def amend(self, thread_id: str, found: bytes, updated: bytes) -> None:
        """List a thread under another time, or no more, unless somebody else changed what it was found under."""
        self._repair([self._amend(thread_id, found, updated)])

    def _repair(self, calls: Sequence[Call]) -> None:
        # What was called for is done. What is not set right, since the index's server is full, say, a listing will.
        with suppress(BackendError):
            if calls:
                self._connections.run(*calls)

    def _note(self, thread_id: str, at: bytes) -> Call:
        return Call(script("note"), [self._keys.index], [raw(thread_id), at])

    def _amend(self, thread_id: str, found: bytes, updated: bytes) -> Call:
        return Call(script("amend"), [self._keys.index], [raw(thread_id), found, updated])


def _listed(told: Sequence[bytes]) -> list[_Listed]:
    return [_Listed(text(told[n]), told[n + 1]) for n in range(0, len(told), 2)]


def _moved_at(unit: Unit) -> float | None:
    if isinstance(unit, PutCheckpoint):
        return unit.row.created_at
    return unit.at if isinstance(unit, MoveHead) else None


def _is_old(score: float) -> bool:
    return score < time.time() - _OLD


def _cursor(row: ThreadRow) -> ThreadCursor:
    return row.updated_at, row.thread_id


def _texts(labels: Labels | None) -> list[bytes]:
    """What metadata with such labels has to hold, whoever wrote it: texts that JSON has one spelling for."""
    told = [each for name, value in (labels or {}).items() for each in (name, value)]
    texts = [str(each).lower() if isinstance(each, bool) else str(each) for each in told]
    return [text.encode() for text in texts if _PLAIN.fullmatch(text)]


def _fits(query: ThreadQuery, row: ThreadRow) -> bool:
    """Whether it is what a page is to have."""
    return (
        query.status in (None, row.status)
        and has_labels(row.labels, query.labels)
        and (query.after is None or _cursor(row) < query.after)
    )
