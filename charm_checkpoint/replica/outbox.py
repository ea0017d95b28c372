"""What was committed here and is not known to be at the remote yet, within the caller's transaction.

An entry names rows and holds none: what is sent is read when it is sent, so an entry whose rows are gone (the thread
was deleted meanwhile) is just dropped. Entries leave only when the remote answered.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple

from charm_checkpoint.backend import HeadRow, MoveHead, PutCheckpoint, PutWrites, Unit
from charm_checkpoint.sqlite import rows
from charm_checkpoint.sqlite.values import Values, insert_many

__all__ = [
    "Entry",
    "batch",
    "entries_of",
    "insert",
    "is_deleted",
    "is_waiting",
    "remove",
    "waiting",
    "waiting_of",
    "with_unit",
]

Kind = Literal["checkpoint", "writes", "head", "delete", "lost"]
"""`lost`: writes that the remote refused, kept back; see `claims`."""

# One request should neither be large nor hold up the thread whose turn is waiting behind it.
_MAX_UNITS = 500
_MAX_BYTES = 1 << 20

# Writes can come before their checkpoint, which may then be refused. So they are not sent before it is stored, unless
# it does not come here at all: then it is the remote's.
_HOLD = 60.0
_READY = (
    "o.kind <> 'lost' AND (o.kind <> 'writes' OR o.at < :now - :hold "
    "OR EXISTS (SELECT 1 FROM checkpoints k WHERE k.thread_id = o.thread_id "
    "AND k.namespace = o.namespace AND k.checkpoint_id = o.checkpoint_id) "
    "OR NOT EXISTS (SELECT 1 FROM writes w WHERE w.thread_id = o.thread_id "
    "AND w.namespace = o.namespace AND w.checkpoint_id = o.checkpoint_id))"
)

_COLUMNS = "thread_id, kind, namespace, checkpoint_id, task_id, detail, size, at"


class Entry(NamedTuple):
    """One line of the outbox."""

    thread_id: str
    kind: Kind
    namespace: str = ""
    checkpoint_id: str = ""
    task_id: str = ""
    detail: str = "{}"
    """JSON: what the remote has to be told beside the rows."""
    size: int = 0
    at: float = 0.0
    seq: int = 0
    unit: Unit | None = None
    """What to send; `None` for a deletion, and when its rows are gone."""


def entries_of(unit: Unit, head: HeadRow | None) -> list[Entry]:
    """The entries for a unit that was stored; `head` is the one it found in its namespace."""
    now = time.time()
    if isinstance(unit, PutCheckpoint):
        row = unit.row
        size = len(row.body) + len(row.metadata) + sum(len(b.data) for b in unit.blobs)
        return [_entry(unit, row.checkpoint_id, "checkpoint", _detail(unit, head), now, size=size)]
    if isinstance(unit, PutWrites):
        sizes: dict[str, int] = {}
        for write in unit.rows:
            sizes[write.task_id] = sizes.get(write.task_id, 0) + len(write.data)
        fenced = {"fenced": unit.fenced}
        return [
            _entry(unit, unit.checkpoint_id, "writes", fenced, now, task_id=task_id, size=size)
            for task_id, size in sizes.items()
        ]
    detail = {"over": unit.over, "device": unit.device, "at": unit.at}
    return [_entry(unit, unit.checkpoint_id, "head", detail, now)]


def _entry(
    unit: Unit,
    checkpoint_id: str,
    kind: Kind,
    detail: dict[str, Any],
    at: float,
    *,
    task_id: str = "",
    size: int = 0,
) -> Entry:
    told = json.dumps(detail)
    return Entry(unit.thread_id, kind, unit.namespace, checkpoint_id, task_id, told, size, at)


def _detail(put: PutCheckpoint, head: HeadRow | None) -> dict[str, Any]:
    over = put.over
    if not put.fenced and head is not None:
        # A fork, or a put that read nothing, took the place of this head here. It shall take no other's there.
        over = head.checkpoint_id
    return {
        "blobs": [(blob.channel, blob.version) for blob in put.blobs],
        "over": over,
        "policy": put.on_conflict if put.on_conflict in ("overwrite", "beside") else "branch",
        "whole": put.whole,
    }


def is_beside(entry: Entry) -> bool:
    """Whether a checkpoint was put beside the heads on this device, too, as copies are: a branch that nobody lost."""
    return entry.kind == "checkpoint" and json.loads(entry.detail).get("policy") == "beside"


def insert(db: sqlite3.Connection, entries: Sequence[Entry]) -> None:
    """Add entries at the end."""
    insert_many(db, f"INSERT INTO outbox ({_COLUMNS})", [tuple(entry[:8]) for entry in entries])


def remove(db: sqlite3.Connection, entries: Sequence[Entry]) -> None:
    """Take out what the remote has answered."""
    db.executemany("DELETE FROM outbox WHERE seq = ?", [(entry.seq,) for entry in entries])


def is_waiting(db: sqlite3.Connection, thread_id: str | None) -> bool:
    """Whether anything is to be sent, of one thread or at all."""
    whose = "" if thread_id is None else "o.thread_id = :thread AND"
    found = db.execute(
        f"SELECT EXISTS (SELECT 1 FROM outbox o WHERE {whose} {_READY})",
        {"thread": thread_id, "now": time.time(), "hold": _HOLD},
    )
    return bool(found.fetchone()[0])


def waiting(db: sqlite3.Connection, thread_id: str | None) -> dict[str, tuple[int, int, float]]:
    """By thread: how many entries are to be sent, their bytes, and since when (seconds since the epoch)."""
    found = db.execute(
        f"SELECT thread_id, count(*), sum(size), min(at) FROM outbox o "
        f"WHERE :thread IN (o.thread_id, '') AND {_READY} GROUP BY thread_id",
        {"thread": thread_id or "", "now": time.time(), "hold": _HOLD},
    )
    return {name: (count, size, since) for name, count, size, since in found}


def is_deleted(db: sqlite3.Connection, thread_id: str) -> bool:
    """Whether a thread's deletion is to be sent."""
    found = db.execute(
        "SELECT 1 FROM outbox WHERE thread_id = ? AND kind = 'delete' LIMIT 1", (thread_id,)
    )
    return found.fetchone() is not None


def waiting_of(db: sqlite3.Connection, thread_id: str) -> set[tuple[str, str, str, str]]:
    """`(kind, namespace, checkpoint_id, task_id)` of what is to be sent of a thread."""
    found = db.execute(
        "SELECT kind, namespace, checkpoint_id, task_id FROM outbox o "
        f"WHERE o.thread_id = :thread AND {_READY}",
        {"thread": thread_id, "now": time.time(), "hold": _HOLD},
    )
    return set(found.fetchall())


def batch(db: sqlite3.Connection, values: Values, *, skip: Collection[str] = ()) -> list[Entry]:
    """The oldest entries with what to send, as many as go in one request. A deletion goes alone.

    Args:
        db: Within a transaction, so that the rows belong together.
        values: Reads blobs.
        skip: Threads to leave out.
    """
    listed = db.execute(
        f"SELECT {_COLUMNS}, seq FROM outbox o WHERE {_READY} "
        "AND thread_id NOT IN (SELECT value FROM json_each(:skip)) ORDER BY seq LIMIT :limit",
        {"now": time.time(), "hold": _HOLD, "skip": json.dumps(list(skip)), "limit": _MAX_UNITS},
    ).fetchall()
    found: list[Entry] = []
    claims: set[str] = set()
    roots: set[str] = set()
    later: set[str] = set()
    size = 0
    for columns in listed:
        entry = Entry(*columns)
        if entry.kind == "checkpoint" and (
            # Whether it becomes a branch is known when its writes were taken.
            entry.thread_id in claims
            # A subgraph with a checkpointer of its own goes where its root graph went.
            or (_is_stateful(entry.namespace) and entry.thread_id in roots)
        ):
            later.add(entry.thread_id)
        if entry.thread_id in later:
            continue
        if entry.kind == "delete":
            return found or [entry]
        if found and size + entry.size > _MAX_BYTES:
            break
        size += entry.size
        entry = with_unit(db, values, entry)
        if isinstance(entry.unit, PutWrites) and entry.unit.fenced:
            claims.add(entry.thread_id)
        if entry.kind == "checkpoint" and entry.namespace == "":
            roots.add(entry.thread_id)
        found.append(entry)
    return _in_order(found)


def _in_order(entries: Sequence[Entry]) -> list[Entry]:
    """What stands on a checkpoint behind it: its writes, and the steps of subgraphs under it.

    Runs may store them before it. A remote where the thread was deleted takes them only after it.
    """
    places = {
        (entry.thread_id, entry.namespace, entry.checkpoint_id): place
        for place, entry in enumerate(entries)
        if entry.kind == "checkpoint"
    }

    def stored(thread_id: str, namespace: str, checkpoint_id: str) -> int:
        place = places.get((thread_id, namespace, checkpoint_id), -1)
        unit = entries[place].unit if place >= 0 else None
        if namespace and isinstance(unit, PutCheckpoint) and unit.row.root_id is not None:
            return max(place, places.get((thread_id, "", unit.row.root_id), -1))
        return place

    def order(place: int) -> tuple[int, bool, int]:
        entry = entries[place]
        own = stored(entry.thread_id, entry.namespace, entry.checkpoint_id)
        return max(place, own), entry.kind == "writes" or own > place, place

    return [entries[place] for place in sorted(range(len(entries)), key=order)]


def with_unit(
    db: sqlite3.Connection, values: Values, entry: Entry, *, whole: bool = False
) -> Entry:
    """Read what an entry stands for; `whole`: a checkpoint with all its values, not only the new ones."""
    detail: dict[str, Any] = json.loads(entry.detail)
    place = (entry.thread_id, entry.namespace)
    if entry.kind == "head":
        return entry._replace(unit=MoveHead(*place, entry.checkpoint_id, **detail))
    if entry.kind == "writes":
        written = tuple(
            row
            for row in rows.read_writes(db, *place, entry.checkpoint_id)
            if row.task_id == entry.task_id
        )
        fenced = detail["fenced"] and not _is_own(db, entry)
        put = PutWrites(*place, entry.checkpoint_id, written, fenced=fenced)
        return entry._replace(unit=put if written else None)
    row = rows.read_checkpoint(db, *place, entry.checkpoint_id)
    if row is None:
        return entry
    blobs = values.fetch(
        db, place, row.versions if whole else dict(detail["blobs"]), remember=False
    )
    # Entries of the first format say only whether to overwrite.
    policy: Any = detail.get("policy") or ("overwrite" if detail["overwrite"] else "branch")
    if _is_stateful(entry.namespace) and _is_on_branch(db, entry.thread_id, row.root_id):
        policy = "beside"
    unit = PutCheckpoint(
        *place,
        row,
        tuple(blobs),
        fenced=policy != "overwrite",
        on_conflict=policy,
        over=detail["over"],
        whole=whole or detail["whole"],
    )
    return entry._replace(unit=unit)


def _is_stateful(namespace: str) -> bool:
    """Whether it is that of a subgraph with a checkpointer of its own, which lives on from turn to turn."""
    return namespace != "" and ":" not in namespace


def _is_on_branch(db: sqlite3.Connection, thread_id: str, root_id: str | None) -> bool:
    """Whether a checkpoint of the root graph is on a branch that lost to another device."""
    firsts = {
        first_id
        for (first_id,) in db.execute(
            "SELECT first_id FROM conflicts WHERE thread_id = ? AND namespace = ''", (thread_id,)
        )
    }
    if not firsts or root_id is None:
        return False
    return root_id in firsts or any(
        ancestor_id in firsts for ancestor_id, _ in rows.ancestors(db, thread_id, "", root_id)
    )


def _is_own(db: sqlite3.Connection, entry: Entry) -> bool:
    """Whether no other device writes to a checkpoint: it is not at the remote yet, or a branch of this device."""
    place = (entry.thread_id, entry.namespace, entry.checkpoint_id)
    found = db.execute(
        "SELECT EXISTS (SELECT 1 FROM outbox WHERE thread_id = :t AND namespace = :n AND checkpoint_id = :c "
        "AND kind = 'checkpoint') OR EXISTS (SELECT 1 FROM conflicts WHERE thread_id = :t AND namespace = :n "
        "AND tip_id = :c)",
        dict(zip("tnc", place, strict=True)),
    )
    return bool(found.fetchone()[0])
