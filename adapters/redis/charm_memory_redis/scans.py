"""Scans: of one thread, and over all of them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

from charm_checkpoint.backend import Entry, Page, Scan
from charm_memory_redis import wire
from charm_memory_redis.connections import Call, Connections
from charm_memory_redis.keys import Keys, pair, part, raw, text
from charm_memory_redis.listing import THREADS_AT_ONCE
from charm_memory_redis.scripts import script

__all__ = ["Scans"]

# A page of a scan ends early when what is read for it is more than this.
_PAGE_BYTES = 32 * 1024 * 1024

_FIRST, _LAST = b"[c", b"(c\xff"
_Key = tuple[str, str, str]


class Scans:
    """Lists checkpoints.

    Args:
        connections: Runs the scripts.
        keys: Names the keys.
    """

    def __init__(self, connections: Connections, keys: Keys) -> None:
        self._connections = connections
        self._keys = keys

    def scan(self, query: Scan) -> Page:
        """As `Backend.scan`. A page of few that fit among many may be short, or empty, and not the last.

        Without a thread every thread is asked for its newest ids first.
        """
        if query.thread_id is not None:
            [told] = self._connections.run(self._scan(query, query.thread_id))
            found, after = _page(query.thread_id, told)
            entries = [entry for entry in found if entry is not None]
            return Page(entries, _key(after, query.thread_id) if after else None)
        keys, following = self._keys_of_all(query)
        names: dict[str, list[bytes]] = {}
        for id, thread_id, namespace in keys:
            names.setdefault(thread_id, []).append(b"c" + part(id) + part(namespace))
        calls = [self._scan(query, id, names=wanted) for id, wanted in names.items()]
        answers = self._connections.run(*calls)
        there: dict[_Key, Entry | None] = {}
        for (thread_id, wanted), told in zip(names.items(), answers, strict=True):
            found, _ = _page(thread_id, told)
            for name, entry in zip(wanted, found, strict=False):  # an answer may end early
                there[_key(name, thread_id)] = entry
        entries = []
        last = None
        for key in keys:
            if key not in there:
                # Its thread's answer grew too large.
                following = last
                break
            last = key
            if (entry := there[key]) is not None:  # else it went meanwhile
                entries.append(entry)
        return Page(entries, following)

    def _keys_of_all(self, query: Scan) -> tuple[list[_Key], _Key | None]:
        """The keys of a page over all threads, and behind which one to go on if there are more."""
        best: list[_Key] = []
        # Where a thread did not look for more of its own.
        least: _Key | None = None
        for threads in self._all_threads():
            # Once a page is full, only what is newer than its last counts.
            floor = best[-1] if len(best) > query.limit else None
            calls = [self._scan(query, id, only_names=True, floor=floor) for id in threads]
            found: list[_Key] = []
            for thread_id, (names, after) in zip(
                threads, self._connections.run(*calls), strict=True
            ):
                found += [_key(name, thread_id) for name in names]
                if after:
                    least = max(filter(None, (least, _key(after, thread_id))))
            best = heapq.nlargest(query.limit + 1, [*best, *found])
        known = [key for key in best if least is None or key >= least]
        if len(known) > query.limit:
            return known[: query.limit], known[query.limit - 1]
        return known, least

    def _all_threads(self) -> Iterator[list[str]]:
        """Every thread once, also those that are moved on meanwhile."""
        seen: set[str] = set()
        place = b"0"
        while True:
            call = Call(script("all"), [self._keys.index], [place, THREADS_AT_ONCE])
            [(place, found)] = self._connections.run(call)
            names = dict.fromkeys(text(name) for name in found[::2])
            if unseen := [name for name in names if name not in seen]:
                seen.update(unseen)
                yield unseen
            if place == b"0":
                return

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


def _page(thread_id: str, told: Any) -> tuple[list[Entry | None], bytes]:
    """Entries, and the name to go on behind."""
    found, values, after = told
    return list(wire.entries(thread_id, found, wire.Values(thread_id, values))), after


def _key(name: bytes, thread_id: str) -> _Key:
    id, namespace = pair(name[1:])
    return id, thread_id, namespace
