"""Branches that this device made because another one was first, until somebody promotes or dismisses them."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from typing import NamedTuple

from charm_checkpoint.backend import HeadRow, Outcome, PutCheckpoint

__all__ = ["Conflict", "list_conflicts", "note_branch", "remove_conflicts"]


class Conflict(NamedTuple):
    """Two ways on from one checkpoint: what this device did, and what the thread became."""

    thread_id: str
    namespace: str
    first_id: str
    """This device's first checkpoint beside the thread."""
    tip_id: str
    """Its newest one on that branch: what `promote` makes the thread's newest."""
    head_id: str
    """What stood in the way."""
    head_device: str
    head_moved_at: float
    """Seconds since the epoch, by that device's clock."""
    noticed_at: float
    """Seconds since the epoch, by this device's clock."""


def note_branch(db: sqlite3.Connection, put: PutCheckpoint, outcome: Outcome) -> None:
    """Note a checkpoint that became a branch, or a branch's next step."""
    place = (put.thread_id, put.namespace)
    grown = db.execute(
        "UPDATE conflicts SET tip_id = ? WHERE thread_id = ? AND namespace = ? AND tip_id = ?",
        (put.row.checkpoint_id, *place, put.row.parent_id),
    )
    if grown.rowcount == 0:
        head = outcome.head or HeadRow(put.namespace, "", "", 0.0)
        db.execute(
            "INSERT OR IGNORE INTO conflicts VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (*place, put.row.checkpoint_id, put.row.checkpoint_id, *head[1:], time.time()),
        )


def list_conflicts(db: sqlite3.Connection, thread_id: str | None) -> list[Conflict]:
    """All, or those of one thread, the oldest first."""
    found = db.execute(
        "SELECT * FROM conflicts WHERE ? IN (thread_id, '') ORDER BY noticed_at, namespace",
        (thread_id or "",),
    )
    return [Conflict(*row) for row in found]


def remove_conflicts(db: sqlite3.Connection, settled: Sequence[Conflict]) -> None:
    """Take them off the list."""
    db.executemany(
        "DELETE FROM conflicts WHERE thread_id = ? AND namespace = ? AND first_id = ?",
        [conflict[:3] for conflict in settled],
    )
