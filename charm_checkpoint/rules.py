"""What every backend decides alike: for those that can call Python within their transaction.

Others write these rules in their database's language; the contract kit holds both to them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from charm_checkpoint.backend import (
    STORED,
    BlobRow,
    Entry,
    HeadMark,
    HeadRow,
    Labels,
    MoveHead,
    Outcome,
    Pulled,
    PutCheckpoint,
    Snapshot,
    Status,
    Tombstone,
    WriteRow,
)

if TYPE_CHECKING:
    from typing import TypeGuard

__all__ = [
    "LABEL_CHARACTERS",
    "NO_LABELS",
    "has_labels",
    "is_label",
    "judge",
    "judge_again",
    "judge_move",
    "labels_of",
    "pulled",
    "status_of",
]

_UNFIT = re.compile("[\x00\ud800-\udfff]")


def judge(
    put: PutCheckpoint,
    head: HeadRow | None,
    tombstone: Tombstone | None,
    is_stored: Callable[[str, str], bool],
) -> Outcome:
    """Decide what becomes of a checkpoint that is not stored yet.

    Args:
        put: The unit.
        head: The head of its namespace.
        tombstone: The thread's, if it was ever deleted.
        is_stored: Tells whether a `(namespace, checkpoint_id)` of the thread is there.
    """
    row = put.row
    if tombstone is not None:
        if put.namespace == "" and row.checkpoint_id in tombstone.first_ids:
            return Outcome("deleted", deleted_at=tombstone.deleted_at)
        for namespace, origin in ((put.namespace, row.parent_id), ("", row.root_id)):
            late = origin is not None and origin <= tombstone.deleted_through
            if late and origin is not None and not is_stored(namespace, origin):
                return Outcome("deleted", deleted_at=tombstone.deleted_at)
    expected = row.parent_id if put.over is None else put.over
    overtaken = put.fenced and head is not None and head.checkpoint_id != expected
    if overtaken and put.on_conflict == "raise":
        return Outcome("conflict", head)
    if not put.whole and row.parent_id is not None and not is_stored(put.namespace, row.parent_id):
        return Outcome("orphaned", head)
    if put.on_conflict == "beside" or (overtaken and put.on_conflict == "branch"):
        return Outcome("branched", head)
    return STORED


def judge_again(
    put: PutCheckpoint, head: HeadRow | None, grew_from_it: Callable[[str], bool]
) -> Outcome:
    """Decide what to answer for a checkpoint that is stored already.

    Args:
        put: The unit.
        head: The head of its namespace.
        grew_from_it: Tells whether a checkpoint of the namespace has it among its ancestors.
    """
    leaves_head = put.fenced and put.on_conflict in ("branch", "beside")
    if leaves_head and head is not None and head.checkpoint_id != put.row.checkpoint_id:
        return STORED if grew_from_it(head.checkpoint_id) else Outcome("branched", head)
    return STORED


def judge_move(move: MoveHead, head: HeadRow | None, is_stored: bool) -> Outcome:
    """Decide whether a head may move to a checkpoint that is, or is not, stored."""
    if head is not None and head.checkpoint_id == move.checkpoint_id:
        return STORED
    if not is_stored:
        return Outcome("orphaned", head)
    if head is not None and head.checkpoint_id != move.over:
        return Outcome("conflict", head)
    return STORED


def pulled(
    thread_id: str,
    held: Sequence[HeadMark],
    heads: Iterable[tuple[HeadRow, Snapshot]],
    tombstone: Tombstone | None,
    *,
    versions: Callable[[str, str], Mapping[str, str]],
    blobs: Callable[[str, Mapping[str, str]], Sequence[BlobRow]],
) -> Pulled:
    """Answer `Backend.pull`, for backends that can call Python within their transaction.

    Args:
        thread_id: The thread.
        held: As for `pull`.
        heads: All heads of the thread, or at least the live ones, each with its snapshot less the blobs.
        tombstone: The thread's.
        versions: Tells the versions of a `(namespace, checkpoint_id)`; empty if it is not stored.
        blobs: Reads the stored ones of a namespace's versions.
    """
    found = [(head, snapshot) for head, snapshot in heads if snapshot.checkpoint is not None]
    root = next((head.checkpoint_id for head, _ in found if head.namespace == ""), None)
    marks, entries = [], []
    for head, snapshot in found:
        row = snapshot.checkpoint
        if row is None or (":" in head.namespace and (root is None or row.root_id != root)):
            continue
        mark = HeadMark(head, _mark(snapshot.writes))
        marks.append(mark)
        known = [m for m in held if m.head.namespace == head.namespace]
        if any((m.head.checkpoint_id, m.writes) == (row.checkpoint_id, mark.writes) for m in known):
            continue
        named = (versions(head.namespace, m.head.checkpoint_id) for m in known)
        there = next((found for found in named if found), {})
        missing = {c: v for c, v in row.versions.items() if there.get(c) != v}
        snapshot = snapshot._replace(blobs=blobs(head.namespace, missing), head=head.checkpoint_id)
        entries.append(Entry(thread_id, head.namespace, snapshot))
    return Pulled(marks, entries, tombstone and tombstone._replace(first_ids=()))


def _mark(writes: Sequence[WriteRow]) -> str:
    if not writes:
        return ""
    return hashlib.sha256(repr([tuple(row) for row in writes]).encode()).hexdigest()[:32]


def status_of(channels: Iterable[str]) -> Status:
    """Tell a thread's status by the channels that pending writes of its root head go to."""
    names = frozenset(channels)
    if "__interrupt__" in names:
        return "interrupted"
    return "failed" if "__error__" in names else "idle"


LABEL_CHARACTERS = 200
"""How long the name or the text of a label is at most."""

NO_LABELS = frozenset({"source", "step", "parents", "writes"})
"""What metadata tells of the one step, not of the thread."""


def labels_of(metadata: bytes) -> dict[str, str | int | bool]:
    """Tell what a thread can be found by: the texts, whole numbers and booleans at the top of its head's metadata.

    Left out: `NO_LABELS`, names and texts above `LABEL_CHARACTERS`, those with a NUL or a lone surrogate, which not
    every database can look for, and numbers beyond 64 bits.
    """
    return {key: value for key, value in json.loads(metadata).items() if is_label(value, key)}


def is_label(value: object, name: object) -> TypeGuard[str | int | bool]:
    """Whether a thread can be found by a value under a name."""
    if not isinstance(name, str) or name in NO_LABELS or not _is_label_text(name):
        return False
    if isinstance(value, str):
        return _is_label_text(value)
    return isinstance(value, int) and -(2**63) <= value < 2**63


def _is_label_text(text: str) -> bool:
    return len(text) <= LABEL_CHARACTERS and not _UNFIT.search(text)


def has_labels(found: Labels, wanted: Labels | None) -> bool:
    """Whether `wanted` are among `found`. `True` is not 1."""
    missing = object()
    return all(
        (value := found.get(name, missing)) == asked
        and isinstance(value, bool) == isinstance(asked, bool)
        for name, asked in (wanted or {}).items()
    )
