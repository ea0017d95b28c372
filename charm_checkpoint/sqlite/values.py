"""Channel values in the `blobs` table: whole, or as a delta to an earlier version of the same channel.

A chat's message list is written at every step and grows by a message or two. Stored whole each time it would cost the
square of the conversation; stored as a delta to the version before, it costs what was said. Whole values come often
enough that rebuilding one reads at most about twice its size.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from charm_checkpoint import delta
from charm_checkpoint.backend import BlobRow
from charm_checkpoint.errors import BackendCorrupt
from charm_checkpoint.forks import ForkAware

__all__ = ["ROWS_PER_STATEMENT", "Place", "Values", "insert_many"]

Place = tuple[str, str]
"""Thread and namespace."""

# Few enough for SQLite's oldest limit of 999 parameters a statement.
ROWS_PER_STATEMENT = 100
# Smaller values are stored whole: a delta would not save a page.
_MIN_BYTES = 1024
_MAX_DEPTH = 64
_RECENT_BYTES = 32 * 1024 * 1024
# The versions LangGraph's savers make end with a random part. Others (1, 2, …) may come again with another value after
# a thread was deleted, so nothing is built on them.
_SHORTEST_UNIQUE_VERSION = 33


class _Value(NamedTuple):
    version: str
    data: bytes
    """The whole value."""
    depth: int
    """How many deltas it takes to rebuild it."""
    weight: int
    """Their bytes."""


class Values(ForkAware):
    """Stores and fetches channel values, and remembers the last one of each channel to make deltas against.

    Thread-safe; the transactions are the caller's. What is remembered is only ever built on after a look whether it is
    stored, so a rollback or another process's deletion does no harm.
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
        rows = []
        for blob in blobs:
            base, data, value = self._encode(db, place, blob)
            rows.append(
                (
                    *place,
                    blob.version,
                    blob.channel,
                    blob.type,
                    base,
                    value.depth,
                    value.weight,
                    data,
                )
            )
        insert_many(db, "INSERT OR IGNORE INTO blobs", rows)

    def _encode(
        self, db: sqlite3.Connection, place: Place, blob: BlobRow
    ) -> tuple[str | None, bytes, _Value]:
        value = _Value(blob.version, blob.data, 0, 0)
        base, data = None, blob.data
        if len(data) < _MIN_BYTES or len(blob.version) < _SHORTEST_UNIQUE_VERSION:
            return base, data, value
        before = self._recall(place, blob.channel)
        if (
            before is not None
            and before.version != blob.version
            and before.depth < _MAX_DEPTH
            and before.weight <= len(data)
        ):
            change = delta.diff(before.data, data)
            if change is not None and _is_stored(db, place, before.version, blob.channel):
                base, data = before.version, change
                weight = before.weight + len(change)
                value = _Value(blob.version, blob.data, before.depth + 1, weight)
        self._remember(place, blob.channel, value)
        return base, data, value

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
                "SELECT b.channel, b.version, b.type, b.base, b.depth, b.weight, b.data "
                "FROM wanted w CROSS JOIN blobs b "
                "ON b.thread_id = ? AND b.namespace = ? AND b.version = w.version AND b.channel = w.channel",
                (*(part for key in chunk for part in key), *place),
            ).fetchall()
            for channel, version, type_, base, depth, weight, stored in rows:
                data = self._rebuild(db, place, channel, version, base, stored)
                unique = len(version) >= _SHORTEST_UNIQUE_VERSION
                if remember and unique and len(data) >= _MIN_BYTES:
                    self._remember(place, channel, _Value(version, data, depth, weight))
                found.append(BlobRow(channel, version, type_, data))
        return found

    def _rebuild(
        self,
        db: sqlite3.Connection,
        place: Place,
        channel: str,
        version: str,
        base: str | None,
        data: bytes,
    ) -> bytes:
        known = self._recall(place, channel)
        if known is not None and known.version == version:
            return known.data
        deltas = []
        while base is not None:
            deltas.append(data)
            if known is not None and known.version == base:
                data = known.data
                break
            row = db.execute(
                "SELECT base, data FROM blobs "
                "WHERE thread_id = ? AND namespace = ? AND version = ? AND channel = ?",
                (*place, base, channel),
            ).fetchone()
            if row is None:
                raise BackendCorrupt(
                    f"thread {place[0]!r}: version {version} of channel {channel!r} is stored as a change to version "
                    f"{base}, which is missing. Restore a backup of the file"
                )
            base, data = row
        try:
            data = delta.apply(data, *reversed(deltas))
        except (ValueError, TypeError) as error:
            raise BackendCorrupt(
                f"thread {place[0]!r}: version {version} of channel {channel!r} cannot be rebuilt: {error}. Restore a "
                "backup of the file"
            ) from error
        return data

    # -- removing --------------------------------------------------------------------------------------------------

    def keep_only_referenced(self, db: sqlite3.Connection, place: Place) -> None:
        """Remove values that no checkpoint of the namespace refers to; deltas to them become whole first."""
        needed: set[tuple[str, str]] = set()
        for (versions,) in db.execute(
            "SELECT versions FROM checkpoints WHERE thread_id = ? AND namespace = ?", place
        ):
            needed.update((version, channel) for channel, version in json.loads(versions).items())
        stored = db.execute(
            "SELECT version, channel, base FROM blobs WHERE thread_id = ? AND namespace = ?", place
        ).fetchall()
        where = "WHERE thread_id = ? AND namespace = ? AND version = ? AND channel = ?"
        for version, channel, base in stored:
            if base is not None and (version, channel) in needed and (base, channel) not in needed:
                change = db.execute(
                    f"SELECT data FROM blobs {where}", (*place, version, channel)
                ).fetchone()[0]
                whole = self._rebuild(db, place, channel, version, base, change)
                db.execute(
                    f"UPDATE blobs SET base = NULL, depth = 0, weight = 0, data = ? {where}",
                    (whole, *place, version, channel),
                )
        for version, channel, _ in stored:
            if (version, channel) not in needed:
                db.execute(f"DELETE FROM blobs {where}", (*place, version, channel))

    # -- remembering -----------------------------------------------------------------------------------------------

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


def _is_stored(db: sqlite3.Connection, place: Place, version: str, channel: str) -> bool:
    return (
        db.execute(
            "SELECT 1 FROM blobs WHERE thread_id = ? AND namespace = ? AND version = ? AND channel = ?",
            (*place, version, channel),
        ).fetchone()
        is not None
    )


def insert_many(db: sqlite3.Connection, insert: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows with as few statements as their number of parameters allows."""
    for start in range(0, len(rows), ROWS_PER_STATEMENT):
        chunk = rows[start : start + ROWS_PER_STATEMENT]
        marks = f"({', '.join('?' * len(chunk[0]))})"
        parameters = [value for row in chunk for value in row]
        db.execute(f"{insert} VALUES {', '.join([marks] * len(chunk))}", parameters)
