"""Rows of a thread in SQLite, read and written within the caller's transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from charm_checkpoint.backend import (
    SENDS_IN_PARENT_BELOW,
    STORED,
    CheckpointRow,
    HeadRow,
    MoveHead,
    Outcome,
    PutWrites,
    Scan,
    Seen,
    Snapshot,
    ThreadQuery,
    ThreadRow,
    Tombstone,
    WriteRow,
)
from charm_checkpoint.rules import has_labels, judge_move, labels_of
from charm_checkpoint.sqlite.schema import TABLES_OF_A_THREAD
from charm_checkpoint.sqlite.values import Place, insert_many

CHECKPOINT = "checkpoint_id, parent_id, format, body, versions, metadata, run_id, root_id, device, created_at"
_CHECKPOINT_OF_K = ", ".join(f"k.{column}" for column in CHECKPOINT.split(", "))
WRITE = "task_id, idx, channel, task_path, type, data"
# Text compares as its UTF-8 bytes under SQLite's default collation.
WRITE_ORDER = "ORDER BY task_path, task_id, idx"


# Each statement gives up the interpreter lock and has to win it back, which costs more than the statement itself.
_FACTS = (
    "SELECT EXISTS (SELECT 1 FROM checkpoints WHERE thread_id = :t AND namespace = :n AND checkpoint_id = :c), "
    "EXISTS (SELECT 1 FROM threads WHERE thread_id = :t), "
    "h.namespace, h.checkpoint_id, h.device, h.moved_at, d.deleted_at, d.deleted_through "
    "FROM (SELECT :t AS thread_id, :n AS namespace) "
    "LEFT JOIN heads h USING (thread_id, namespace) LEFT JOIN tombstones d USING (thread_id)"
)

READ = (
    "SELECT h.checkpoint_id, d.deleted_through, "
    + _CHECKPOINT_OF_K
    + " FROM (SELECT :t AS thread_id, :n AS namespace) "
    "LEFT JOIN heads h USING (thread_id, namespace) LEFT JOIN tombstones d USING (thread_id) "
    "LEFT JOIN checkpoints k ON k.thread_id = :t AND k.namespace = :n "
    "AND k.checkpoint_id = coalesce(:c, h.checkpoint_id)"
)

# Of the thread in `t`; see `rules.status_of`.
_STATUS = (
    "coalesce((SELECT CASE WHEN max(w.channel = '__interrupt__') THEN 'interrupted' "
    "WHEN max(w.channel = '__error__') THEN 'failed' END "
    "FROM heads h JOIN writes w USING (thread_id, namespace, checkpoint_id) "
    "WHERE h.thread_id = t.thread_id AND h.namespace = ''), 'idle')"
)
_ROOT_METADATA = (
    "(SELECT k.metadata FROM heads h JOIN checkpoints k USING (thread_id, namespace, checkpoint_id) "
    "WHERE h.thread_id = t.thread_id AND h.namespace = '')"
)


class Facts(NamedTuple):
    """What a write has to know of its thread and checkpoint."""

    is_stored: bool
    thread_exists: bool
    head: HeadRow | None
    tombstone: Tombstone | None


def read_facts(db: sqlite3.Connection, thread_id: str, namespace: str, checkpoint_id: str) -> Facts:
    row = db.execute(_FACTS, {"t": thread_id, "n": namespace, "c": checkpoint_id}).fetchone()
    return Facts(
        bool(row[0]),
        bool(row[1]),
        HeadRow(*row[2:6]) if row[2] is not None else None,
        Tombstone(*row[6:8]) if row[6] is not None else None,
    )


def insert_thread(db: sqlite3.Connection, thread_id: str, created_at: float) -> None:
    """Make a thread known. One whose writes came before its first checkpoint gets its time now."""
    db.execute(
        "INSERT INTO threads VALUES (?, ?) ON CONFLICT (thread_id) DO UPDATE SET "
        "created_at = excluded.created_at WHERE created_at = 0",
        (thread_id, created_at),
    )


def insert_checkpoint(db: sqlite3.Connection, place: Place, row: CheckpointRow) -> None:
    db.execute(
        f"INSERT INTO checkpoints (thread_id, namespace, {CHECKPOINT}) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*place, *row._replace(versions=json.dumps(row.versions))),  # type: ignore[arg-type]
    )


def delete_thread(db: sqlite3.Connection, thread_id: str, at: float, through: str = "") -> bool:
    """Remove a thread and leave a tombstone that reaches at least `through`. False if there was nothing."""
    existed = db.execute("SELECT 1 FROM threads WHERE thread_id = ?", (thread_id,)).fetchone()
    if not existed and not through:
        return False
    # As text, whatever a damaged file has there.
    last = db.execute(
        "SELECT CAST(max(checkpoint_id) AS TEXT) FROM checkpoints WHERE thread_id = ?", (thread_id,)
    ).fetchone()[0]
    db.execute(
        "INSERT INTO tombstones VALUES (?, ?, ?) ON CONFLICT (thread_id) DO UPDATE SET "
        "deleted_at = excluded.deleted_at, "
        "deleted_through = max(deleted_through, excluded.deleted_through)",
        (thread_id, at, max(last or "", through)),
    )
    db.execute(
        "INSERT OR IGNORE INTO deleted_firsts SELECT thread_id, checkpoint_id FROM checkpoints "
        "WHERE thread_id = ? AND namespace = '' AND parent_id IS NULL",
        (thread_id,),
    )
    for table in TABLES_OF_A_THREAD:
        db.execute(f"DELETE FROM {table} WHERE thread_id = ?", (thread_id,))
    return existed is not None


def look(db: sqlite3.Connection, thread_id: str) -> Seen:
    """A thread as it is."""
    found = db.execute("SELECT count(*) FROM checkpoints WHERE thread_id = ?", (thread_id,))
    heads = {head.namespace: head.checkpoint_id for head in read_heads(db, thread_id)}
    return Seen(heads, found.fetchone()[0])


def deleted_firsts(db: sqlite3.Connection, thread_id: str) -> tuple[str, ...]:
    """`Tombstone.first_ids`."""
    found = db.execute("SELECT checkpoint_id FROM deleted_firsts WHERE thread_id = ?", (thread_id,))
    return tuple(checkpoint_id for (checkpoint_id,) in found)


def put_writes(db: sqlite3.Connection, put: PutWrites) -> Outcome:
    place = (put.thread_id, put.namespace, put.checkpoint_id)
    facts = read_facts(db, *place)
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
    insert_writes(db, put)
    return STORED


def insert_writes(db: sqlite3.Connection, put: PutWrites) -> None:
    place = (put.thread_id, put.namespace, put.checkpoint_id)
    for conflict, rows in (
        ("REPLACE", [row for row in put.rows if row.idx < 0]),
        ("IGNORE", [row for row in put.rows if row.idx >= 0]),
    ):
        insert_many(db, f"INSERT OR {conflict} INTO writes", [(*place, *row) for row in rows])


def _clashes(db: sqlite3.Connection, put: PutWrites, facts: Facts) -> bool:
    if facts.is_stored and (facts.head is None or facts.head.checkpoint_id != put.checkpoint_id):
        return True
    stored = {
        (row.task_id, row.idx): row
        for row in read_writes(db, put.thread_id, put.namespace, put.checkpoint_id)
    }
    return any(row.idx >= 0 and stored.get((row.task_id, row.idx), row) != row for row in put.rows)


def has_checkpoints(db: sqlite3.Connection, thread_id: str) -> bool:
    found = db.execute("SELECT 1 FROM checkpoints WHERE thread_id = ? LIMIT 1", (thread_id,))
    return found.fetchone() is not None


def read_head(db: sqlite3.Connection, thread_id: str, namespace: str) -> HeadRow | None:
    row = db.execute(
        "SELECT namespace, checkpoint_id, device, moved_at FROM heads WHERE thread_id = ? AND namespace = ?",
        (thread_id, namespace),
    ).fetchone()
    return HeadRow(*row) if row else None


def read_heads(db: sqlite3.Connection, thread_id: str) -> list[HeadRow]:
    rows = db.execute(
        "SELECT namespace, checkpoint_id, device, moved_at FROM heads WHERE thread_id = ? ORDER BY namespace",
        (thread_id,),
    )
    return [HeadRow(*row) for row in rows]


def read_live_heads(db: sqlite3.Connection, thread_id: str) -> list[tuple[HeadRow, CheckpointRow]]:
    """The heads that `pull` tells of: a long thread leaves a head for each task that once ran, passed over here."""
    found = db.execute(
        f"SELECT h.device, h.moved_at, namespace, {_CHECKPOINT_OF_K} "
        "FROM heads h JOIN checkpoints k USING (thread_id, namespace, checkpoint_id) "
        "WHERE thread_id = :t AND (namespace NOT LIKE '%:%' OR k.root_id = "
        "(SELECT checkpoint_id FROM heads WHERE thread_id = :t AND namespace = '')) ORDER BY namespace",
        {"t": thread_id},
    )
    return [
        (HeadRow(namespace, columns[0], device, moved_at), as_checkpoint(columns))
        for device, moved_at, namespace, *columns in found
    ]


def set_head(
    db: sqlite3.Connection,
    thread_id: str,
    namespace: str,
    checkpoint_id: str,
    device: str,
    at: float,
) -> None:
    db.execute(
        "INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?, ?)",
        (thread_id, namespace, checkpoint_id, device, at),
    )


def move_head(db: sqlite3.Connection, move: MoveHead) -> Outcome:
    facts = read_facts(db, move.thread_id, move.namespace, move.checkpoint_id)
    outcome = judge_move(move, facts.head, facts.is_stored)
    if outcome == STORED and (facts.head is None or facts.head[1] != move.checkpoint_id):
        set_head(db, *move[:3], move.device, move.at)
    return outcome


def read_without_blobs(
    db: sqlite3.Connection, thread_id: str, namespace: str, row: CheckpointRow
) -> Snapshot:
    old = row.format < SENDS_IN_PARENT_BELOW and row.parent_id is not None
    return Snapshot(
        row,
        writes=read_writes(db, thread_id, namespace, row.checkpoint_id),
        sends=read_writes(db, thread_id, namespace, row.parent_id or "") if old else (),
    )


def as_checkpoint(columns: Sequence[Any]) -> CheckpointRow:
    row = CheckpointRow(*columns)
    return row._replace(versions=json.loads(row.versions))  # type: ignore[arg-type]


def read_checkpoint(
    db: sqlite3.Connection, thread_id: str, namespace: str, checkpoint_id: str
) -> CheckpointRow | None:
    row = db.execute(
        f"SELECT {CHECKPOINT} FROM checkpoints WHERE thread_id = ? AND namespace = ? AND checkpoint_id = ?",
        (thread_id, namespace, checkpoint_id),
    ).fetchone()
    return as_checkpoint(row) if row else None


def read_writes(
    db: sqlite3.Connection, thread_id: str, namespace: str, checkpoint_id: str
) -> list[WriteRow]:
    rows = db.execute(
        f"SELECT {WRITE} FROM writes WHERE thread_id = ? AND namespace = ? AND checkpoint_id = ? {WRITE_ORDER}",
        (thread_id, namespace, checkpoint_id),
    )
    return [WriteRow(*row) for row in rows]


def ancestors(
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


def list_threads(db: sqlite3.Connection, query: ThreadQuery) -> list[ThreadRow]:
    where = ["1"]
    parameters: list[Any] = []
    if query.after is not None:
        where.append("(r.updated_at, t.thread_id) < (?, ?)")
        parameters += query.after
    for condition, value in (
        ("t.thread_id = ?", query.thread_id),
        (f"{_STATUS} = ?", query.status),
    ):
        if value is not None:
            where.append(condition)
            parameters.append(value)
    if query.labels:
        # Not SQLite's JSON functions, which know neither NaN nor whether a 1 is a number or a boolean.
        db.create_function("has_labels", 1, lambda text: has_labels(_labels(text), query.labels))
        where.append(f"has_labels({_ROOT_METADATA})")
    # Recency is read off the heads: an index of it would be one more page to write with every step.
    listed = db.execute(
        f"SELECT t.thread_id, t.created_at, r.updated_at FROM threads t JOIN ("
        " SELECT thread_id, max(moved_at) AS updated_at FROM heads GROUP BY thread_id"
        f") r USING (thread_id) WHERE {' AND '.join(where)} "
        "ORDER BY r.updated_at DESC, t.thread_id DESC LIMIT ?",
        (*parameters, query.limit),
    ).fetchall()
    return [_thread_row(db, *row) for row in listed]


def _thread_row(
    db: sqlite3.Connection, thread_id: str, created_at: float, updated_at: float
) -> ThreadRow:
    status, metadata = db.execute(
        f"SELECT {_STATUS}, {_ROOT_METADATA} FROM (SELECT ? AS thread_id) t", (thread_id,)
    ).fetchone()
    heads = read_heads(db, thread_id)
    return ThreadRow(thread_id, created_at, updated_at, heads, status, _labels(metadata))


def _labels(metadata: bytes | None) -> dict[str, str | int | bool]:
    return labels_of(metadata) if metadata else {}


def conditions(query: Scan) -> tuple[str, list[Any]]:
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


def sizes(db: sqlite3.Connection, thread_id: str) -> dict[tuple[str, str], int]:
    """By `(namespace, checkpoint_id)` the bytes stored for it, each once, with the greatest id that is read from it."""
    values = {
        (namespace, version, channel): (base, size)
        for namespace, version, channel, base, size in db.execute(
            "SELECT namespace, version, channel, base, length(data) FROM blobs WHERE thread_id = ?",
            (thread_id,),
        )
    }
    found: dict[tuple[str, str], int] = {}
    for namespace, checkpoint_id, versions, size in db.execute(
        "SELECT namespace, checkpoint_id, versions, length(body) + length(versions) + length(metadata) "
        "FROM checkpoints WHERE thread_id = ? ORDER BY checkpoint_id DESC",
        (thread_id,),
    ):
        for channel, version in json.loads(versions).items():
            key = (namespace, version, channel)
            while key in values:
                base, length = values.pop(key)
                size += length
                key = (namespace, base, channel)
        found[namespace, checkpoint_id] = size
    for namespace, checkpoint_id, size in db.execute(
        "SELECT namespace, checkpoint_id, sum(length(data)) FROM writes WHERE thread_id = ? GROUP BY 1, 2",
        (thread_id,),
    ):
        if (namespace, checkpoint_id) in found:
            found[namespace, checkpoint_id] += size
    return found


def move_head_off(
    db: sqlite3.Connection, thread_id: str, namespace: str, gone: dict[str, str | None]
) -> None:
    place = (thread_id, namespace)
    head = read_head(db, *place)
    if head is None or head.checkpoint_id not in gone:
        return
    ancestor: str | None = head.checkpoint_id
    left = dict(gone)
    while ancestor in left:  # each once, as a forged cycle of parents has no end
        ancestor = left.pop(ancestor)
    row = read_checkpoint(db, *place, ancestor) if ancestor else None
    if row is None:
        last = db.execute(
            "SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = ? AND namespace = ?",
            place,
        ).fetchone()[0]
        row = read_checkpoint(db, *place, last) if last else None
    if row is None:
        db.execute("DELETE FROM heads WHERE thread_id = ? AND namespace = ?", place)
    else:
        set_head(db, *place, row.checkpoint_id, row.device, row.created_at)
