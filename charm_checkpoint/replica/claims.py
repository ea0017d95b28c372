"""Writes that a DeltaChannel is rebuilt from, when two devices went on from one checkpoint.

Such writes are part of the thread's content, and they are kept with the checkpoint that they grew from, which both
devices share. So the first device to send any claims the checkpoint, and the remote refuses the other's. That one keeps
them back (`lost`) until it has a checkpoint that was made of them; then both go to a copy of the shared checkpoint, and
the branch that grows from there is whole.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time

from charm_checkpoint.backend import PutWrites
from charm_checkpoint.replica import outbox
from charm_checkpoint.sqlite import rows

__all__ = ["give_up", "lose", "move_to_copies"]


def lose(db: sqlite3.Connection, entry: outbox.Entry) -> None:
    """Keep back what this device wrote to a checkpoint that another one claimed."""
    db.execute(
        "UPDATE outbox SET kind = 'lost' WHERE thread_id = ? AND namespace = ? AND checkpoint_id = ? "
        "AND kind = 'writes'",
        (entry.thread_id, entry.namespace, entry.checkpoint_id),
    )


def give_up(db: sqlite3.Connection, thread_id: str, namespace: str) -> None:
    """Drop what was kept back and became no checkpoint: its run is refused from here on."""
    for checkpoint_id, task_id in db.execute(
        "SELECT checkpoint_id, task_id FROM outbox WHERE thread_id = ? AND namespace = ? AND kind = 'lost'",
        (thread_id, namespace),
    ).fetchall():
        _drop_writes(db, (thread_id, namespace, checkpoint_id), task_id)
    db.execute(
        "DELETE FROM outbox WHERE thread_id = ? AND namespace = ? AND kind = 'lost'",
        (thread_id, namespace),
    )


def move_to_copies(db: sqlite3.Connection) -> None:
    """Give every branch that was made of writes kept back a copy of the checkpoint that it grew from."""
    for place in db.execute(
        "SELECT DISTINCT l.thread_id, l.namespace, l.checkpoint_id FROM outbox l "
        "JOIN outbox o ON o.thread_id = l.thread_id AND o.namespace = l.namespace AND o.kind = 'checkpoint' "
        "JOIN checkpoints k ON k.thread_id = o.thread_id AND k.namespace = o.namespace "
        "AND k.checkpoint_id = o.checkpoint_id AND k.parent_id = l.checkpoint_id "
        "WHERE l.kind = 'lost'"
    ).fetchall():
        _move_to_copy(db, place)


def _move_to_copy(db: sqlite3.Connection, place: tuple[str, str, str]) -> None:
    thread_id, namespace, checkpoint_id = place
    row = rows.read_checkpoint(db, *place)
    if row is None:
        return
    copy_id = _id_beside(checkpoint_id)
    rows.insert_checkpoint(db, (thread_id, namespace), row._replace(checkpoint_id=copy_id))
    written = tuple(rows.read_writes(db, *place))
    rows.insert_writes(db, PutWrites(thread_id, namespace, copy_id, written))
    db.execute(
        "INSERT INTO lineages SELECT thread_id, namespace, ?, channels, ancestors FROM lineages "
        "WHERE thread_id = ? AND namespace = ? AND checkpoint_id = ?",
        (copy_id, *place),
    )
    db.execute(
        "UPDATE checkpoints SET parent_id = ? WHERE thread_id = ? AND namespace = ? AND parent_id = ? "
        "AND checkpoint_id IN (SELECT checkpoint_id FROM outbox WHERE thread_id = ? AND kind = 'checkpoint')",
        (copy_id, *place, thread_id),
    )
    lost = db.execute(
        "SELECT seq, task_id FROM outbox WHERE thread_id = ? AND namespace = ? AND checkpoint_id = ? "
        "AND kind = 'lost' ORDER BY seq",
        place,
    ).fetchall()
    for _, task_id in lost:
        _drop_writes(db, place, task_id)
    # In the place of the first of them, so that it comes before the checkpoint that grew from it.
    db.execute(
        "DELETE FROM outbox WHERE seq IN (SELECT value FROM json_each(?))",
        (json.dumps([s for s, _ in lost]),),
    )
    detail = json.dumps({"blobs": [], "over": None, "policy": "branch", "whole": False})
    db.execute(
        "INSERT INTO outbox VALUES (?, ?, 'checkpoint', ?, ?, '', ?, ?, ?)",
        (lost[0][0], thread_id, namespace, copy_id, detail, len(row.body), time.time()),
    )
    outbox.insert(db, outbox.entries_of(PutWrites(thread_id, namespace, copy_id, written), None))


def _drop_writes(db: sqlite3.Connection, place: tuple[str, str, str], task_id: str) -> None:
    db.execute(
        "DELETE FROM writes WHERE thread_id = ? AND namespace = ? AND checkpoint_id = ? AND task_id = ?",
        (*place, task_id),
    )


def _id_beside(checkpoint_id: str) -> str:
    """An id of the same time: UUIDs of version 6 have it in front."""
    if len(checkpoint_id) == 36:
        return f"{checkpoint_id[:21]}{secrets.token_hex(1)}-{secrets.token_hex(6)}"
    return f"{checkpoint_id}-{secrets.token_hex(6)}"
