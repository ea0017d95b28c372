"""Branches that this device made because another one was first, until somebody promotes or dismisses them."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from charm_checkpoint.backend import (
    Backend,
    CheckpointRow,
    HeadRow,
    Outcome,
    PutCheckpoint,
    Scan,
    ThreadQuery,
)
from charm_checkpoint.keeping import headers

__all__ = [
    "Conflict",
    "left_behind",
    "list_conflicts",
    "note_branch",
    "read_heads",
    "remove_conflicts",
]


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


def note_branch(db: sqlite3.Connection, put: PutCheckpoint, outcome: Outcome) -> Conflict | None:
    """Note a checkpoint that became a branch, or a branch's next step. Returns the conflict if it is a new one."""
    place = (put.thread_id, put.namespace)
    grown = db.execute(
        "UPDATE conflicts SET tip_id = ? WHERE thread_id = ? AND namespace = ? AND tip_id = ?",
        (put.row.checkpoint_id, *place, put.row.parent_id),
    )
    if grown.rowcount:
        return None
    head = outcome.head or HeadRow(put.namespace, "", "", 0.0)
    own_id = put.row.checkpoint_id
    found = Conflict(
        *place, own_id, own_id, head.checkpoint_id, head.device, head.moved_at, time.time()
    )
    noted = db.execute("INSERT OR IGNORE INTO conflicts VALUES (?, ?, ?, ?, ?, ?, ?, ?)", found)
    return found if noted.rowcount else None


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


def read_heads(backend: Backend, thread_id: str) -> dict[str, HeadRow]:
    """All heads of a thread, by namespace."""
    listed = backend.threads(ThreadQuery(limit=1, thread_id=thread_id))
    return {head.namespace: head for row in listed for head in row.heads}


def left_behind(
    backend: Backend, thread_id: str, tip_id: str, heads: Iterable[HeadRow]
) -> dict[str, str]:
    """Where subgraphs with a checkpointer of their own were when the root graph was at a checkpoint.

    Args:
        backend: Where the thread is.
        thread_id: The thread.
        tip_id: The root graph's checkpoint.
        heads: Those to look at. Heads of the root graph's own steps are left where they are.

    Returns:
        Namespace to checkpoint, of those that are elsewhere.
    """
    stateful = [h for h in heads if h.namespace and ":" not in h.namespace]
    if not stateful:
        return {}
    steps = _headers(backend, thread_id, "")
    chain: set[str] = set()
    at: str | None = tip_id
    while at in steps and at not in chain:
        chain.add(at)
        at = steps[at].parent_id
    found = {}
    for head in stateful:
        rows = _headers(backend, thread_id, head.namespace)
        then = next((row.checkpoint_id for row in rows.values() if row.root_id in chain), None)
        if then is not None and rows[head.checkpoint_id].root_id not in chain:
            found[head.namespace] = then
    return found


def _headers(backend: Backend, thread_id: str, namespace: str) -> dict[str, CheckpointRow]:
    """A namespace's checkpoints by id, the newest first."""
    found = headers(backend, Scan(thread_id, namespace))
    rows = [entry.snapshot.checkpoint for entry in found if entry.snapshot.checkpoint is not None]
    return {row.checkpoint_id: row for row in rows}
