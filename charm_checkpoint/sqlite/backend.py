"""The SQLite backend: threads in one file, shared by threads and processes of one machine."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from charm_checkpoint.backend import (
    SENDS_IN_PARENT_BELOW,
    STORED,
    Ancestor,
    CheckpointRow,
    Entry,
    HeadRow,
    Outcome,
    Page,
    PutCheckpoint,
    PutWrites,
    Scan,
    Snapshot,
    ThreadCursor,
    ThreadRow,
    Tombstone,
    Unit,
    WriteRow,
    judge,
)
from charm_checkpoint.errors import ThreadExistsError, ThreadNotFoundError
from charm_checkpoint.sqlite.connections import Connections
from charm_checkpoint.sqlite.schema import TABLES_OF_A_THREAD
from charm_checkpoint.sqlite.values import Values, insert_many

__all__ = ["SqliteBackend"]

_CHECKPOINT = "checkpoint_id, parent_id, format, body, versions, metadata, run_id, root_id, device, created_at"
_WRITE = "task_id, idx, channel, task_path, type, data"
# Text compares as its UTF-8 bytes under SQLite's default collation.
_WRITE_ORDER = "ORDER BY task_path, task_id, idx"


class SqliteBackend:
    """Threads in a SQLite file: WAL, full sync, one transaction per verb, file mode 0600.

    Args:
        path: The file; made with its folder when missing.
        busy_timeout: Seconds to wait for another process's transaction before `BackendUnavailable`.
        vfs: A SQLite VFS by name, for file systems without POSIX locks.
    """

    def __init__(
        self, path: str | Path, *, busy_timeout: float = 10.0, vfs: str | None = None
    ) -> None:
        self._db = Connections(Path(path).absolute(), busy_timeout=busy_timeout, vfs=vfs)
        self._values = Values()

    @property
    def name(self) -> str:
        return self._db.name

    @property
    def path(self) -> Path:
        """The file."""
        return self._db.path

    @property
    def journal_mode(self) -> str:
        """`"wal"`, or what SQLite fell back to; empty before `setup`."""
        return self._db.journal_mode

    def setup(self) -> None:
        self._db.prepare()

    def close(self) -> None:
        self._db.close()

    # -- writing ---------------------------------------------------------------------------------------------------

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        with self._db.writing() as db:
            return [
                self._put(db, unit) if isinstance(unit, PutCheckpoint) else _put_writes(db, unit)
                for unit in units
            ]

    def _put(self, db: sqlite3.Connection, put: PutCheckpoint) -> Outcome:
        row, place = put.row, (put.thread_id, put.namespace)
        facts = _facts(db, *place, row.checkpoint_id)
        if facts.is_stored:
            return STORED
        outcome = judge(
            put,
            facts.head,
            facts.tombstone,
            lambda namespace, id: _facts(db, put.thread_id, namespace, id).is_stored,
        )
        if outcome.status not in ("stored", "branched"):
            db.execute(
                "DELETE FROM writes WHERE thread_id = ? AND namespace = ? AND checkpoint_id = ?",
                (*place, row.checkpoint_id),
            )
            return outcome
        if facts.head is None:
            db.execute(
                "INSERT INTO threads VALUES (?, ?) ON CONFLICT (thread_id) DO UPDATE SET "
                "created_at = excluded.created_at WHERE created_at = 0",
                (put.thread_id, row.created_at),
            )
        db.execute(
            f"INSERT INTO checkpoints (thread_id, namespace, {_CHECKPOINT}) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*place, *row._replace(versions=json.dumps(row.versions))),  # type: ignore[arg-type]
        )
        self._values.insert(db, place, put.blobs)
        if outcome.status == "stored":
            db.execute(
                "INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?, ?)",
                (*place, row.checkpoint_id, row.device, row.created_at),
            )
        return outcome

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Snapshot:
        with self._db.reading() as db:
            head, through, *columns = db.execute(
                _READ, {"t": thread_id, "n": namespace, "c": checkpoint_id}
            ).fetchone()
            if columns[0] is None:
                return Snapshot(head=head, deleted_through=through)
            row = _as_checkpoint(columns)
            newest = row.checkpoint_id == head
            snapshot = self._snapshot(db, thread_id, namespace, row, remember=newest)
            return snapshot._replace(head=head, deleted_through=through)

    def scan(self, query: Scan) -> Page:
        where, parameters = _conditions(query)
        with self._db.reading() as db:
            rows = db.execute(
                f"SELECT thread_id, namespace, {_CHECKPOINT} FROM checkpoints WHERE {where} "
                "ORDER BY checkpoint_id DESC, thread_id DESC, namespace DESC LIMIT ?",
                (*parameters, query.limit + 1),
            ).fetchall()
            entries = []
            for thread_id, namespace, *columns in rows[: query.limit]:
                row = _as_checkpoint(columns)
                values = (
                    self._snapshot(db, thread_id, namespace, row) if query.values else Snapshot(row)
                )
                head = _head(db, thread_id, namespace)
                values = values._replace(head=head.checkpoint_id if head else None)
                entries.append(Entry(thread_id, namespace, values))
        if len(rows) <= query.limit:
            return Page(entries, None)
        thread_id, namespace, checkpoint_id = rows[query.limit - 1][:3]
        return Page(entries, (checkpoint_id, thread_id, namespace))

    def _snapshot(
        self,
        db: sqlite3.Connection,
        thread_id: str,
        namespace: str,
        row: CheckpointRow,
        *,
        remember: bool = False,
    ) -> Snapshot:
        old = row.format < SENDS_IN_PARENT_BELOW and row.parent_id is not None
        return Snapshot(
            row,
            self._values.fetch(db, (thread_id, namespace), row.versions, remember=remember),
            _writes(db, thread_id, namespace, row.checkpoint_id),
            _writes(db, thread_id, namespace, row.parent_id or "") if old else (),
        )

    def lineage(
        self, thread_id: str, namespace: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> Sequence[Ancestor]:
        found: list[Ancestor] = []
        unseeded = set(channels)
        with self._db.reading() as db:
            if checkpoint_id is None:
                head = _head(db, thread_id, namespace)
                checkpoint_id = head.checkpoint_id if head else ""
            for ancestor_id, versions in _ancestors(db, thread_id, namespace, checkpoint_id):
                marks = ",".join("?" * len(unseeded))
                writes = db.execute(
                    f"SELECT {_WRITE} FROM writes WHERE thread_id = ? AND namespace = ? AND checkpoint_id = ? "
                    f"AND channel IN ({marks}) {_WRITE_ORDER}",
                    (thread_id, namespace, ancestor_id, *unseeded),
                ).fetchall()
                wanted = {c: versions[c] for c in unseeded if c in versions}
                seeds = self._values.fetch(db, (thread_id, namespace), wanted, remember=False)
                unseeded.difference_update(blob.channel for blob in seeds)
                if seeds or writes:
                    found.append(Ancestor(ancestor_id, seeds, [WriteRow(*w) for w in writes]))
                if not unseeded:
                    break
        return found

    def threads(
        self, *, limit: int, after: ThreadCursor | None = None, thread_id: str | None = None
    ) -> Sequence[ThreadRow]:
        where, parameters = ["1"], []
        if after is not None:
            where.append("(updated_at, thread_id) < (?, ?)")
            parameters += list(after)
        if thread_id is not None:
            where.append("thread_id = ?")
            parameters.append(thread_id)
        with self._db.reading() as db:
            # Recency is read off the heads: an index of it would be one more page to write with every step.
            rows = db.execute(
                "SELECT thread_id, created_at, updated_at FROM threads JOIN ("
                " SELECT thread_id, max(moved_at) AS updated_at FROM heads GROUP BY thread_id"
                f") USING (thread_id) WHERE {' AND '.join(where)} "
                "ORDER BY updated_at DESC, thread_id DESC LIMIT ?",
                (*parameters, limit),
            ).fetchall()
            return [_thread_row(db, *row) for row in rows]

    # -- deleting and copying --------------------------------------------------------------------------------------

    def delete(self, thread_id: str, *, at: float) -> bool:
        with self._db.writing() as db:
            if not db.execute("SELECT 1 FROM threads WHERE thread_id = ?", (thread_id,)).fetchone():
                return False
            last = db.execute(
                "SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = ?", (thread_id,)
            ).fetchone()[0]
            db.execute(
                "INSERT INTO tombstones VALUES (?, ?, ?) ON CONFLICT (thread_id) DO UPDATE SET "
                "deleted_at = excluded.deleted_at, "
                "deleted_through = max(deleted_through, excluded.deleted_through)",
                (thread_id, at, last or ""),
            )
            for table in TABLES_OF_A_THREAD:
                db.execute(f"DELETE FROM {table} WHERE thread_id = ?", (thread_id,))
            return True

    def copy(self, source: str, target: str, *, at: float) -> None:
        with self._db.writing() as db:
            if not _has_checkpoints(db, source):
                raise ThreadNotFoundError(f"thread {source!r} has no checkpoints to copy")
            if _has_checkpoints(db, target):
                raise ThreadExistsError(
                    f"thread {target!r} already has checkpoints; delete it or copy to another id"
                )
            # Writes that came for checkpoints never stored are of no use beside the copied ones.
            for table in TABLES_OF_A_THREAD:
                db.execute(f"DELETE FROM {table} WHERE thread_id = ?", (target,))
            db.execute("INSERT INTO threads VALUES (?, ?)", (target, at))
            for table in TABLES_OF_A_THREAD[1:]:
                columns = [c[1] for c in db.execute(f"PRAGMA table_info({table})")][1:]
                db.execute(
                    f"INSERT INTO {table} SELECT ?, {', '.join(columns)} FROM {table} WHERE thread_id = ?",
                    (target, source),
                )

    def prune(self, thread_id: str, drop: Sequence[tuple[str, str]]) -> int:
        by_namespace: dict[str, list[str]] = {}
        for namespace, checkpoint_id in drop:
            by_namespace.setdefault(namespace, []).append(checkpoint_id)
        with self._db.writing() as db:
            return sum(
                self._prune_namespace(db, thread_id, namespace, ids)
                for namespace, ids in by_namespace.items()
            )

    def _prune_namespace(
        self, db: sqlite3.Connection, thread_id: str, namespace: str, ids: Sequence[str]
    ) -> int:
        place = (thread_id, namespace)
        parents: dict[str, str | None] = {}
        for checkpoint_id in ids:
            row = _checkpoint(db, *place, checkpoint_id)
            if row is None:
                continue
            parents[checkpoint_id] = row.parent_id
            for table in ("checkpoints", "writes"):
                db.execute(
                    f"DELETE FROM {table} WHERE thread_id = ? AND namespace = ? AND checkpoint_id = ?",
                    (*place, checkpoint_id),
                )
        self._values.keep_only_referenced(db, place)
        _move_head_off(db, *place, parents)
        return len(parents)


# Each statement gives up the interpreter lock and has to win it back, which costs more than the statement itself.
_FACTS = (
    "SELECT EXISTS (SELECT 1 FROM checkpoints WHERE thread_id = :t AND namespace = :n AND checkpoint_id = :c), "
    "EXISTS (SELECT 1 FROM threads WHERE thread_id = :t), "
    "h.namespace, h.checkpoint_id, h.device, h.moved_at, d.deleted_at, d.deleted_through "
    "FROM (SELECT :t AS thread_id, :n AS namespace) "
    "LEFT JOIN heads h USING (thread_id, namespace) LEFT JOIN tombstones d USING (thread_id)"
)

_READ = (
    "SELECT h.checkpoint_id, d.deleted_through, "
    + ", ".join(f"k.{column}" for column in _CHECKPOINT.split(", "))
    + " FROM (SELECT :t AS thread_id, :n AS namespace) "
    "LEFT JOIN heads h USING (thread_id, namespace) LEFT JOIN tombstones d USING (thread_id) "
    "LEFT JOIN checkpoints k ON k.thread_id = :t AND k.namespace = :n "
    "AND k.checkpoint_id = coalesce(:c, h.checkpoint_id)"
)


class _Facts(NamedTuple):
    """What a write has to know of its thread and checkpoint."""

    is_stored: bool
    thread_exists: bool
    head: HeadRow | None
    tombstone: Tombstone | None


def _facts(db: sqlite3.Connection, thread_id: str, namespace: str, checkpoint_id: str) -> _Facts:
    row = db.execute(_FACTS, {"t": thread_id, "n": namespace, "c": checkpoint_id}).fetchone()
    return _Facts(
        bool(row[0]),
        bool(row[1]),
        HeadRow(*row[2:6]) if row[2] is not None else None,
        Tombstone(*row[6:8]) if row[6] is not None else None,
    )


def _put_writes(db: sqlite3.Connection, put: PutWrites) -> Outcome:
    place = (put.thread_id, put.namespace, put.checkpoint_id)
    facts = _facts(db, *place)
    tombstone = facts.tombstone
    if (
        tombstone is not None
        and put.checkpoint_id <= tombstone.deleted_through
        and not facts.is_stored
    ):
        return Outcome("deleted", deleted_at=tombstone.deleted_at)
    if put.fenced and _clashes(db, put, facts):
        return Outcome("conflict", facts.head)
    if not facts.thread_exists:
        # Writes that came before their checkpoint; `delete` must find them.
        db.execute("INSERT INTO threads VALUES (?, 0)", (put.thread_id,))
    for conflict, rows in (
        ("REPLACE", [row for row in put.rows if row.idx < 0]),
        ("IGNORE", [row for row in put.rows if row.idx >= 0]),
    ):
        insert_many(db, f"INSERT OR {conflict} INTO writes", [(*place, *row) for row in rows])
    return STORED


def _clashes(db: sqlite3.Connection, put: PutWrites, facts: _Facts) -> bool:
    if facts.is_stored and (facts.head is None or facts.head.checkpoint_id != put.checkpoint_id):
        return True
    stored = {
        (row.task_id, row.idx): row
        for row in _writes(db, put.thread_id, put.namespace, put.checkpoint_id)
    }
    return any(row.idx >= 0 and stored.get((row.task_id, row.idx), row) != row for row in put.rows)


def _has_checkpoints(db: sqlite3.Connection, thread_id: str) -> bool:
    found = db.execute("SELECT 1 FROM checkpoints WHERE thread_id = ? LIMIT 1", (thread_id,))
    return found.fetchone() is not None


def _head(db: sqlite3.Connection, thread_id: str, namespace: str) -> HeadRow | None:
    row = db.execute(
        "SELECT namespace, checkpoint_id, device, moved_at FROM heads WHERE thread_id = ? AND namespace = ?",
        (thread_id, namespace),
    ).fetchone()
    return HeadRow(*row) if row else None


def _as_checkpoint(columns: Sequence[Any]) -> CheckpointRow:
    row = CheckpointRow(*columns)
    return row._replace(versions=json.loads(row.versions))  # type: ignore[arg-type]


def _checkpoint(
    db: sqlite3.Connection, thread_id: str, namespace: str, checkpoint_id: str
) -> CheckpointRow | None:
    row = db.execute(
        f"SELECT {_CHECKPOINT} FROM checkpoints WHERE thread_id = ? AND namespace = ? AND checkpoint_id = ?",
        (thread_id, namespace, checkpoint_id),
    ).fetchone()
    return _as_checkpoint(row) if row else None


def _writes(
    db: sqlite3.Connection, thread_id: str, namespace: str, checkpoint_id: str
) -> list[WriteRow]:
    rows = db.execute(
        f"SELECT {_WRITE} FROM writes WHERE thread_id = ? AND namespace = ? AND checkpoint_id = ? {_WRITE_ORDER}",
        (thread_id, namespace, checkpoint_id),
    )
    return [WriteRow(*row) for row in rows]


def _ancestors(
    db: sqlite3.Connection, thread_id: str, namespace: str, checkpoint_id: str
) -> Iterator[tuple[str, dict[str, str]]]:
    """Ids and versions up the parent chain, the checkpoint itself left out."""
    cursor = db.execute(
        # UNION, not UNION ALL: a forged cycle of parents ends.
        "WITH RECURSIVE chain (id) AS ("
        " SELECT parent_id FROM checkpoints WHERE thread_id = :t AND namespace = :n AND checkpoint_id = :c"
        " UNION"
        " SELECT k.parent_id FROM chain JOIN checkpoints k"
        " ON k.thread_id = :t AND k.namespace = :n AND k.checkpoint_id = chain.id"
        ") SELECT k.checkpoint_id, k.versions FROM chain CROSS JOIN checkpoints k"
        " ON k.thread_id = :t AND k.namespace = :n AND k.checkpoint_id = chain.id",
        {"t": thread_id, "n": namespace, "c": checkpoint_id},
    )
    for ancestor_id, versions in cursor:
        yield ancestor_id, json.loads(versions)


def _thread_row(
    db: sqlite3.Connection, thread_id: str, created_at: float, updated_at: float
) -> ThreadRow:
    heads = [
        HeadRow(*row)
        for row in db.execute(
            "SELECT namespace, checkpoint_id, device, moved_at FROM heads WHERE thread_id = ? ORDER BY namespace",
            (thread_id,),
        )
    ]
    pending = db.execute(
        "SELECT DISTINCT w.channel FROM heads h JOIN writes w USING (thread_id, namespace, checkpoint_id) "
        "WHERE h.thread_id = ? AND h.namespace = ''",
        (thread_id,),
    )
    return ThreadRow(thread_id, created_at, updated_at, heads, frozenset(c for (c,) in pending))


def _conditions(query: Scan) -> tuple[str, list[Any]]:
    where, parameters = ["1"], []
    for column, value in (
        ("thread_id", query.thread_id),
        ("namespace", query.namespace),
        ("checkpoint_id", query.checkpoint_id),
    ):
        if value is not None:
            where.append(f"{column} = ?")
            parameters.append(value)
    if query.before is not None:
        where.append("checkpoint_id < ?")
        parameters.append(query.before)
    if query.run_ids is not None:
        where.append(f"run_id IN ({','.join('?' * len(query.run_ids))})")
        parameters += query.run_ids
    if query.after is not None:
        where.append("(checkpoint_id, thread_id, namespace) < (?, ?, ?)")
        parameters += query.after
    return " AND ".join(where), parameters


def _move_head_off(
    db: sqlite3.Connection, thread_id: str, namespace: str, gone: dict[str, str | None]
) -> None:
    place = (thread_id, namespace)
    head = _head(db, *place)
    if head is None or head.checkpoint_id not in gone:
        return
    ancestor: str | None = head.checkpoint_id
    while ancestor in gone:
        ancestor = gone[ancestor]
    row = _checkpoint(db, *place, ancestor) if ancestor else None
    if row is None:
        last = db.execute(
            "SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = ? AND namespace = ?",
            place,
        ).fetchone()[0]
        row = _checkpoint(db, *place, last) if last else None
    if row is None:
        db.execute("DELETE FROM heads WHERE thread_id = ? AND namespace = ?", place)
    else:
        db.execute(
            "INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?, ?)",
            (*place, row.checkpoint_id, row.device, row.created_at),
        )
