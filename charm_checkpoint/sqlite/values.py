"""Channel values in the `blobs` table: whole, or as a delta to an earlier version of the same channel.

A chat's message list is written at every step and grows by a message or two. Stored whole each time it would cost the
square of the conversation; stored as a delta to the version before, it costs what was said.

A whole value begins a *series*. Most of its deltas are to the version before; every 4th is to the one 4 places before
it, every 4²th to the one 4² before. So the thousandth version is at most 15 steps away from the whole value, and what
was said is stored not quite once for each such level. Greater steps would take less room, and longer to read. A series
ends where more than twice a value would have to be read to rebuild it.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from charm_checkpoint import delta
from charm_checkpoint.backend import SEALED, BlobRow
from charm_checkpoint.errors import BackendCorrupt
from charm_checkpoint.forks import ForkAware

__all__ = ["ROWS_PER_STATEMENT", "Place", "Values", "insert_many"]

Place = tuple[str, str]
"""Thread and namespace."""

# Few enough for SQLite's oldest limit of 999 parameters a statement.
ROWS_PER_STATEMENT = 100
# Smaller values are stored whole: a delta would not save a page.
_MIN_BYTES = 1024
# From one value that others stand on to the next.
_STRIDE = 4
# Changes in a row that are stored one upon the other at most.
_LONGEST = 32
# How many times its own size may be read to rebuild a value.
_MAX_READ = 2
_RECENT_BYTES = 32 * 1024 * 1024
# The versions LangGraph's savers make end with a random part. Others (1, 2, …) may come again with another value after
# a thread was deleted, so nothing is built on them.
_SHORTEST_UNIQUE_VERSION = 33

_WHERE = "WHERE thread_id = ? AND namespace = ? AND version = ? AND channel = ?"


class _Value(NamedTuple):
    version: str
    data: bytes
    """The whole value."""
    depth: int = 0
    """Its place in its series, 0 where it is stored whole."""
    weight: int = 0
    """The bytes that are read to rebuild it; 0 where it is stored whole."""


class _Row(NamedTuple):
    """As it is stored: the whole value, or a delta to `base`."""

    version: str
    base: str | None
    depth: int
    weight: int
    data: bytes


class Values(ForkAware):
    """Stores and fetches channel values, and remembers the last one of each channel to make deltas against.

    Thread-safe; the transactions are the caller's, who calls `forget` when one is rolled back. What is remembered is
    only ever built on after a look whether it is stored, so another process's deletion does no harm.
    """

    def __init__(self) -> None:
        super().__init__()
        self._recent: OrderedDict[tuple[str, str, str], _Value] = OrderedDict()
        self._size = 0
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()

    # -- storing ---------------------------------------------------------------------------------------------------

    def insert(self, db: sqlite3.Connection, place: Place, blobs: Iterable[BlobRow]) -> None:
        """Store values; of each version the first stays."""
        rows: list[tuple[Any, ...]] = []
        news: list[tuple[str, _Value]] = []
        for blob in blobs:
            row = self._encode(db, place, blob)
            rows.append((*place, blob.version, blob.channel, blob.type, *row[1:]))
            if _can_be_a_base(blob):
                value = _Value(blob.version, blob.data, row.depth, row.weight)
                news.append((blob.channel, value))
        if insert_many(db, "INSERT OR IGNORE INTO blobs", rows) == len(rows):
            for channel, value in news:
                self._remember(place, channel, value)

    def _encode(self, db: sqlite3.Connection, place: Place, blob: BlobRow) -> _Row:
        if not _can_be_a_base(blob):
            return _whole(blob.version, blob.data)
        before = self._recall(place, blob.channel)
        return self._behind(db, place, blob.channel, before, blob.version, blob.data)

    def _behind(
        self,
        db: sqlite3.Connection,
        place: Place,
        channel: str,
        before: _Value | None,
        version: str,
        data: bytes,
    ) -> _Row:
        """How to store a value that comes behind another one."""
        if before is not None and before.version != version:
            for base in self._bases(db, place, channel, before):
                row = _as_delta(base, version, data)
                if row is not None:
                    return row._replace(depth=before.depth + 1)
        return _whole(version, data)

    def _bases(
        self, db: sqlite3.Connection, place: Place, channel: str, before: _Value
    ) -> Iterator[_Value]:
        """What the value that comes behind `before` can be stored as a delta to, the best first."""
        depth, reach = before.depth + 1, 1
        while depth % (reach * _STRIDE) == 0:
            reach *= _STRIDE
        if reach > 1:
            row = _find(db, place, channel, before.version)
            while row is not None and row.base is not None and row.depth > depth - reach:
                row = _find(db, place, channel, row.base)
            if row is not None:
                data = self._rebuild(db, place, channel, row)
                yield _Value(row.version, data, row.depth, row.weight)
        # Where values change here and there, what is far apart has little in common.
        if depth % _LONGEST and _is_stored(db, place, before.version, channel):
            yield before

    # -- fetching --------------------------------------------------------------------------------------------------

    def fetch(
        self,
        db: sqlite3.Connection,
        place: Place,
        versions: Mapping[str, str],
        *,
        remember: bool,
    ) -> list[BlobRow]:
        """The stored values among `versions` (channel to version), remembered unless they are only looked at."""
        found: list[BlobRow] = []
        keys = [(version, channel) for channel, version in versions.items()]
        for start in range(0, len(keys), ROWS_PER_STATEMENT):
            chunk = keys[start : start + ROWS_PER_STATEMENT]
            marks = ", ".join(["(?, ?)"] * len(chunk))
            # CROSS JOIN keeps SQLite from scanning the namespace instead of looking each key up.
            rows = db.execute(
                f"WITH wanted (version, channel) AS (VALUES {marks}) "
                "SELECT b.channel, b.type, b.version, b.base, b.depth, b.weight, b.data "
                "FROM wanted w CROSS JOIN blobs b "
                "ON b.thread_id = ? AND b.namespace = ? AND b.version = w.version AND b.channel = w.channel",
                (*(part for key in chunk for part in key), *place),
            ).fetchall()
            for channel, type_, *columns in rows:
                row = _Row(*columns)
                data = self._rebuild(db, place, channel, row)
                blob = BlobRow(channel, row.version, type_, data)
                if remember and _can_be_a_base(blob):
                    value = _Value(row.version, data, row.depth, row.weight)
                    self._remember(place, channel, value)
                found.append(blob)
        return found

    def _rebuild(self, db: sqlite3.Connection, place: Place, channel: str, row: _Row) -> bytes:
        known = self._recall(place, channel)
        if known is not None and known.version == row.version:
            return known.data
        if row.base is None:
            return row.data
        until = known.version if known is not None else None
        below = _chain(db, place, channel, row.base, until)
        last = below[-1] if below else row
        if last.base is None:
            whole = below.pop().data
        elif known is not None and known.version == last.base:
            whole = known.data
        else:
            raise BackendCorrupt(
                f"thread {place[0]!r}: version {row.version} of channel {channel!r} is stored as a change to version "
                f"{last.base}, which is missing. Restore a backup of the file"
            )
        try:
            return delta.apply(whole, *(r.data for r in reversed(below)), row.data)
        except (ValueError, TypeError) as error:
            raise BackendCorrupt(
                f"thread {place[0]!r}: version {row.version} of channel {channel!r} cannot be rebuilt: {error}. "
                "Restore a backup of the file"
            ) from error

    # -- removing and packing --------------------------------------------------------------------------------------

    def keep_only_referenced(self, db: sqlite3.Connection, place: Place) -> None:
        """Remove values that no checkpoint of the namespace refers to, and put others on what is left."""
        needed: set[tuple[str, str]] = set()
        for (versions,) in db.execute(
            "SELECT versions FROM checkpoints WHERE thread_id = ? AND namespace = ?", place
        ):
            needed.update((version, channel) for channel, version in json.loads(versions).items())
        stored = db.execute(
            "SELECT version, channel, base FROM blobs WHERE thread_id = ? AND namespace = ? ORDER BY version",
            place,
        ).fetchall()
        # By channel the value that the last one which lost its base was put on.
        bases: dict[str, _Value] = {}
        for version, channel, base in stored:
            if base is not None and (version, channel) in needed and (base, channel) not in needed:
                row = _find(db, place, channel, version)
                assert row is not None
                data = self._rebuild(db, place, channel, row)
                under = bases.get(channel)
                moved = _as_delta(under, version, data) if under else None
                if moved is None:
                    moved = _whole(version, data)
                    bases[channel] = _Value(version, data)
                _update(db, place, channel, moved)
        for version, channel, _ in stored:
            if (version, channel) not in needed:
                db.execute(f"DELETE FROM blobs {_WHERE}", (*place, version, channel))

    def places_to_pack(self, db: sqlite3.Connection) -> list[Place]:
        """Where `pack` may find something to do."""
        found = db.execute(
            "SELECT DISTINCT thread_id, namespace FROM (SELECT thread_id, namespace FROM blobs "
            "WHERE base IS NULL AND length(data) >= ? AND length(version) >= ? AND type NOT LIKE ? "
            "GROUP BY thread_id, namespace, channel HAVING count(*) > 1)",
            (_MIN_BYTES, _SHORTEST_UNIQUE_VERSION, f"%{SEALED}"),
        )
        return found.fetchall()

    def pack(self, db: sqlite3.Connection, place: Place) -> None:
        """Store whole values as deltas to the whole value before them, where that is small.

        There are several in files of older releases, after pruning, and where writers did not read before they wrote.
        Deltas to a value that becomes one stay as they are.
        """
        whole = db.execute(
            "SELECT channel, version FROM blobs WHERE thread_id = ? AND namespace = ? "
            "AND base IS NULL AND length(data) >= ? AND length(version) >= ? AND type NOT LIKE ? "
            "ORDER BY channel, version",
            (*place, _MIN_BYTES, _SHORTEST_UNIQUE_VERSION, f"%{SEALED}"),
        ).fetchall()
        before: dict[str, _Value] = {}
        for channel, version in whole:
            row = _find(db, place, channel, version)
            assert row is not None
            data = row.data
            row = self._behind(db, place, channel, before.get(channel), version, data)
            if row.base is not None:
                _update(db, place, channel, row)
            before[channel] = _Value(version, data, row.depth, row.weight)

    # -- remembering -----------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Remember nothing: what a transaction stored is not there."""
        with self._lock:
            self._recent.clear()
            self._size = 0

    def _recall(self, place: Place, channel: str) -> _Value | None:
        key = (*place, channel)
        with self._lock:
            value = self._recent.get(key)
            if value is not None:
                self._recent.move_to_end(key)
            return value

    def _remember(self, place: Place, channel: str, value: _Value) -> None:
        key = (*place, channel)
        with self._lock:
            before = self._recent.pop(key, None)
            self._size += len(value.data) - (len(before.data) if before else 0)
            self._recent[key] = value
            while self._size > _RECENT_BYTES:
                self._size -= len(self._recent.popitem(last=False)[1].data)


def _can_be_a_base(blob: BlobRow) -> bool:
    unique = len(blob.version) >= _SHORTEST_UNIQUE_VERSION
    return unique and len(blob.data) >= _MIN_BYTES and not blob.type.endswith(SEALED)


def _is_stored(db: sqlite3.Connection, place: Place, version: str, channel: str) -> bool:
    found = db.execute(f"SELECT 1 FROM blobs {_WHERE}", (*place, version, channel))
    return found.fetchone() is not None


def _find(db: sqlite3.Connection, place: Place, channel: str, version: str) -> _Row | None:
    row = db.execute(
        f"SELECT version, base, depth, weight, data FROM blobs {_WHERE}", (*place, version, channel)
    ).fetchone()
    return _Row(*row) if row else None


def _chain(
    db: sqlite3.Connection, place: Place, channel: str, version: str, until: str | None
) -> list[_Row]:
    """A version and what it stands on, one below the other, down to a whole value or to what stands on `until`."""
    if version == until:
        return []
    rows = db.execute(
        # In one statement, since each gives up the interpreter lock and has to win it back.
        f"WITH RECURSIVE chain (version, base) AS (SELECT version, base FROM blobs {_WHERE}"
        # UNION, not UNION ALL: a forged cycle ends.
        " UNION SELECT b.version, b.base FROM chain c CROSS JOIN blobs b"
        " ON b.thread_id = ? AND b.namespace = ? AND b.version = c.base AND b.channel = ? WHERE c.base IS NOT ?"
        ") SELECT b.version, b.base, b.depth, b.weight, b.data FROM chain c CROSS JOIN blobs b"
        " ON b.thread_id = ? AND b.namespace = ? AND b.version = c.version AND b.channel = ?",
        (*place, version, channel, *place, channel, until, *place, channel),
    )
    return [_Row(*row) for row in rows]


def _update(db: sqlite3.Connection, place: Place, channel: str, row: _Row) -> None:
    """Store a value in another way."""
    db.execute(
        f"UPDATE blobs SET base = ?, depth = ?, weight = ?, data = ? {_WHERE}",
        (*row[1:], *place, row.version, channel),
    )


def _whole(version: str, data: bytes) -> _Row:
    return _Row(version, None, 0, 0, data)


def _as_delta(base: _Value, version: str, data: bytes) -> _Row | None:
    """The value as a delta, `None` if that would not be worth it."""
    change = delta.diff(base.data, data)
    if change is None:
        return None
    weight = (base.weight or len(base.data)) + len(change)
    if weight > _MAX_READ * len(data):
        return None
    return _Row(version, base.version, base.depth + 1, weight, change)


def insert_many(db: sqlite3.Connection, insert: str, rows: Sequence[tuple[Any, ...]]) -> int:
    """Insert rows with as few statements as their number of parameters allows. Returns how many it stored."""
    stored = 0
    for start in range(0, len(rows), ROWS_PER_STATEMENT):
        chunk = rows[start : start + ROWS_PER_STATEMENT]
        marks = f"({', '.join('?' * len(chunk[0]))})"
        parameters = [value for row in chunk for value in row]
        stored += db.execute(
            f"{insert} VALUES {', '.join([marks] * len(chunk))}", parameters
        ).rowcount
    return stored
