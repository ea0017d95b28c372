"""What goes over all threads: the recency index, and scans without a thread.

The index is a sorted set of thread ids by when one of their heads moved last. It has every thread with checkpoints, and
may have some that are gone, which are taken out where they are met. On a single server each script keeps it exact; in a
cluster it lives in a slot of its own, is written beside the thread, and corrected where the thread tells another time.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from charm_checkpoint.backend import (
    Entry,
    MoveHead,
    Page,
    PutCheckpoint,
    Scan,
    ThreadCursor,
    ThreadQuery,
    ThreadRow,
    Unit,
)
from charm_checkpoint.errors import BackendError
from charm_checkpoint.rules import has_labels
from charm_memory_redis import wire
from charm_memory_redis.connections import Call, Connections
from charm_memory_redis.keys import Keys, pair, part, raw, text
from charm_memory_redis.scripts import script

__all__ = ["Listing"]

# Threads that are asked at once.
_THREADS = 200
# After so many new threads that will end by themselves, the index is looked through for some that did, twice as many.
_BEGINNINGS = 64
# A page of a scan ends early when what is read for it is more than this.
_PAGE_BYTES = 32 * 1024 * 1024

_FIRST, _LAST = b"[c", b"(c\xff"
_Key = tuple[str, str, str]


class _Listed(NamedTuple):
    thread_id: str
    score: bytes


class Listing:
    """Lists and scans.

    Args:
        connections: Runs the scripts.
        keys: Names the keys.
    """

    def __init__(self, connections: Connections, keys: Keys) -> None:
        self._connections = connections
        self._keys = keys
        self._beginnings = 0

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
            [told] = self._connections.run(
                Call(script("some"), [self._keys.index], [2 * _BEGINNINGS])
            )
            listed = _listed(told)
            self._rows([each.thread_id for each in listed], listed)

    # -- keeping the index, in a cluster ---------------------------------------------------------------------------

    def noting(self, groups: Iterable[tuple[Sequence[Unit], Sequence[str]]]) -> list[Call]:
        """What has to be run beside units, so that their threads are listed."""
        scores: dict[str, float] = {}
        for units, _ in groups:
            for unit in units:
                if (at := _moved_at(unit)) is not None:
                    scores[unit.thread_id] = max(at, scores.get(unit.thread_id, at))
        return [self._note(id, wire.seconds(at)) for id, at in scores.items()]

    def correct(
        self, units: Sequence[Unit], threads: Sequence[str], times: Sequence[bytes]
    ) -> None:
        """Set right what `noting` noted, where the thread tells something else."""
        for thread_id, told in zip(threads, times, strict=True):
            noted = [
                at for u in units if u.thread_id == thread_id and (at := _moved_at(u)) is not None
            ]
            if not noted:
                continue
            if not told:
                self.forget(thread_id, wire.seconds(max(noted)))
            elif float(told) != max(noted):
                self.note(thread_id, told)

    def note(self, thread_id: str, score: bytes) -> None:
        """List a thread under a time."""
        self._connections.run(self._note(thread_id, score))

    def forget(self, thread_id: str, score: bytes) -> None:
        """Take a thread that is gone out of the index, unless it began anew meanwhile."""
        self._connections.run(self._forget(thread_id, score))

    def _forget(self, thread_id: str, score: bytes) -> Call:
        keys = [self._keys.index]
        if not self._connections.is_cluster:
            keys += self._keys.thread(thread_id)[:2]
        return Call(script("forget"), keys, [raw(thread_id), score])

    def _note(self, thread_id: str, score: bytes) -> Call:
        return Call(script("note"), [self._keys.index], [raw(thread_id), score])

    # -- threads ---------------------------------------------------------------------------------------------------

    def threads(self, query: ThreadQuery) -> list[ThreadRow]:
        """As `Backend.threads`. Threads that a filter leaves out are read, too, the newest first."""
        if query.thread_id is not None:
            [row] = self._rows([query.thread_id])
            if row is None or not _fits(query, row):
                return []
            passed = query.after is not None and (row.updated_at, row.thread_id) >= query.after
            return [] if passed else [row][: query.limit]
        rows: list[ThreadRow] = []
        filtered = query.status is not None or bool(query.labels)
        for listed in self._recent(query.after, _THREADS if filtered else query.limit):
            found = self._rows([each.thread_id for each in listed], listed)
            rows += [row for row in found if row is not None and _fits(query, row)]
            if len(rows) >= query.limit:
                break
        rows.sort(key=lambda row: (row.updated_at, row.thread_id), reverse=True)
        return rows[: query.limit]

    def _recent(self, after: ThreadCursor | None, size: int) -> Iterator[list[_Listed]]:
        """The index in pages, the one moved last first."""
        size = max(1, min(size, _THREADS))
        score, thread_id = (b"", b"") if after is None else (wire.seconds(after[0]), raw(after[1]))
        while True:
            arguments = [score, thread_id, size]
            [told] = self._connections.run(Call(script("recent"), [self._keys.index], arguments))
            if told:
                thread_id, score = told[-2:]
                yield _listed(told)
            if len(told) < 2 * size:
                return
            size = _THREADS

    def _rows(
        self, thread_ids: Sequence[str], listed: Sequence[_Listed] = ()
    ) -> list[ThreadRow | None]:
        """Those threads that have heads; of those listed, forget which are gone."""
        calls = [Call(script("thread"), self._keys.thread(id)[:2], []) for id in thread_ids]
        answers = self._connections.run(*calls)
        repairs = []
        for each, told in zip(listed, answers, strict=False):
            if not told:
                repairs.append(self._forget(each.thread_id, each.score))
            elif (updated := told[1] or told[0]) and float(updated) != float(each.score):
                repairs.append(self._note(each.thread_id, updated))
        if repairs:
            self._connections.run(*repairs)
        return [wire.thread_row(id, told) for id, told in zip(thread_ids, answers, strict=True)]

    # -- scans -----------------------------------------------------------------------------------------------------

    def scan(self, query: Scan) -> Page:
        """As `Backend.scan`. Without a thread every thread is asked for its newest ids first."""
        if query.thread_id is not None:
            told = self._connections.run(self._scan(query, query.thread_id))[0]
            found, more = _page(query.thread_id, told)
            entries = [entry for entry in found if entry is not None]
            return Page(entries, _key(entries[-1]) if more else None)
        keys, more = self._keys_of_all(query)
        names: dict[str, list[bytes]] = {}
        for id, thread_id, namespace in keys:
            names.setdefault(thread_id, []).append(b"c" + part(id) + part(namespace))
        calls = [self._scan(query, id, names=wanted) for id, wanted in names.items()]
        answers = self._connections.run(*calls)
        there: dict[_Key, Entry | None] = {}
        for (thread_id, wanted), told in zip(names.items(), answers, strict=True):
            found, _ = _page(thread_id, told)
            for name, entry in zip(wanted, found, strict=False):  # an answer may end early
                id, namespace = pair(name[1:])
                there[id, thread_id, namespace] = entry
        entries = []
        last = None
        for key in keys:
            if key not in there:
                # Its thread's answer grew too large.
                more = True
                break
            last = key
            if (entry := there[key]) is not None:  # else it went meanwhile
                entries.append(entry)
        return Page(entries, last if more else None)

    def _keys_of_all(self, query: Scan) -> tuple[list[_Key], bool]:
        """The keys of a page over all threads, and whether there are more."""
        best: list[_Key] = []
        for listed in self._recent(None, _THREADS):
            calls = []
            for thread_id, _ in listed:
                # Once a page is full, only what is newer than its last counts.
                floor = best[-1] if len(best) > query.limit else None
                calls.append(self._scan(query, thread_id, only_names=True, floor=floor))
            found: list[_Key] = []
            for (thread_id, _), names in zip(listed, self._connections.run(*calls), strict=True):
                for name in names:
                    id, namespace = pair(name[1:])
                    found.append((id, thread_id, namespace))
            best = heapq.nlargest(query.limit + 1, [*best, *found])
        return best[: query.limit], len(best) > query.limit

    def _scan(
        self,
        query: Scan,
        thread_id: str,
        *,
        names: list[bytes] | None = None,
        only_names: bool = False,
        floor: _Key | None = None,
    ) -> Call:
        arguments = [
            *(_below(query, thread_id), _above(query, floor)),
            None if query.namespace is None else part(query.namespace),
            None if query.run_ids is None else [raw(run) for run in query.run_ids],
            *(query.limit + only_names, query.values, _PAGE_BYTES, names, only_names),
        ]
        return Call(script("scan"), self._keys.thread(thread_id)[:2], [wire.packed(arguments)])


def _listed(told: Sequence[bytes]) -> list[_Listed]:
    return [_Listed(text(told[n]), told[n + 1]) for n in range(0, len(told), 2)]


def _moved_at(unit: Unit) -> float | None:
    if isinstance(unit, PutCheckpoint):
        return unit.row.created_at
    return unit.at if isinstance(unit, MoveHead) else None


def _fits(query: ThreadQuery, row: ThreadRow) -> bool:
    return query.status in (None, row.status) and has_labels(row.labels, query.labels)


def _below(query: Scan, thread_id: str) -> bytes:
    """What a thread's members of the page come before."""
    bounds = [_LAST]
    if query.checkpoint_id is not None:
        bounds.append(b"(c" + part(query.checkpoint_id) + b"\xff")
    if query.before is not None:
        bounds.append(b"(c" + part(query.before))
    if query.after is not None:
        id, after_thread, namespace = query.after
        bound = b"(c" + part(id)
        if thread_id < after_thread:
            bound += b"\xff"
        elif thread_id == after_thread:
            bound += part(namespace)
        bounds.append(bound)
    return min(bounds)


def _above(query: Scan, floor: _Key | None) -> bytes:
    """What they do not come before. Of `floor` the checkpoint counts."""
    bounds = [_FIRST]
    if query.checkpoint_id is not None:
        bounds.append(b"[c" + part(query.checkpoint_id))
    if floor is not None:
        bounds.append(b"[c" + part(floor[0]))
    return max(bounds)


def _page(thread_id: str, told: Any) -> tuple[list[Entry | None], bool]:
    found, values, more = told
    return list(wire.entries(thread_id, found, wire.Values(thread_id, values))), bool(more)


def _key(entry: Entry) -> _Key:
    assert entry.snapshot.checkpoint is not None
    return entry.snapshot.checkpoint.checkpoint_id, entry.thread_id, entry.namespace
