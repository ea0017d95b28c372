"""Which checkpoints can go: the rules that no backend has to know.

Planned from rows that were read, then removed by name in one transaction, so that what running agents add meanwhile is
never touched.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from langgraph.checkpoint.serde.types import TASKS

from charm_checkpoint.backend import SENDS_IN_PARENT_BELOW, Backend, CheckpointRow, Entry, Scan

__all__ = ["delta_channels", "drop_runs", "headers", "keep_latest"]

_PAGE = 500


def headers(backend: Backend, query: Scan) -> Iterator[Entry]:
    """All checkpoints of a scan, newest first, without their values."""
    query = query._replace(values=False, limit=_PAGE)
    while True:
        page = backend.scan(query)
        yield from page.entries
        if page.next is None:
            return
        query = query._replace(after=page.next)


def drop_runs(backend: Backend, run_ids: Sequence[str]) -> int:
    """Remove the checkpoints of the named runs, less those that a DeltaChannel of a later one is rebuilt from.

    Returns how many went.
    """
    if not run_ids:
        return 0
    doomed: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    for entry in headers(backend, Scan(run_ids=tuple(run_ids))):
        assert entry.snapshot.checkpoint is not None
        doomed[entry.thread_id].add((entry.namespace, entry.snapshot.checkpoint.checkpoint_id))
    return sum(_drop(backend, thread_id, drop) for thread_id, drop in doomed.items())


def _drop(backend: Backend, thread_id: str, drop: set[tuple[str, str]]) -> int:
    rows: defaultdict[str, dict[str, CheckpointRow]] = defaultdict(dict)
    for entry in headers(backend, Scan(thread_id=thread_id)):
        if entry.snapshot.checkpoint is not None:
            rows[entry.namespace][entry.snapshot.checkpoint.checkpoint_id] = (
                entry.snapshot.checkpoint
            )
    for namespace, by_id in rows.items():
        for row in by_id.values():
            # Only what stands right above the cut has to look beyond it.
            if (namespace, row.checkpoint_id) not in drop and (namespace, row.parent_id) in drop:
                needed = _needed(backend, thread_id, namespace, by_id, row.checkpoint_id)
                drop = drop - {(namespace, checkpoint_id) for checkpoint_id in needed}
    return backend.prune(thread_id, sorted(drop)) if drop else 0


def keep_latest(backend: Backend, thread_id: str) -> int:
    """Remove all but each namespace's head and what the head needs. Returns how many went."""
    rows: defaultdict[str, dict[str, CheckpointRow]] = defaultdict(dict)
    heads: dict[str, str] = {}
    for entry in headers(backend, Scan(thread_id=thread_id)):
        row = entry.snapshot.checkpoint
        assert row is not None
        rows[entry.namespace][row.checkpoint_id] = row
        if entry.snapshot.head is not None:
            heads[entry.namespace] = entry.snapshot.head
    kept = {
        namespace: _needed(backend, thread_id, namespace, by_id, heads.get(namespace))
        for namespace, by_id in rows.items()
    }
    root = rows.get("", {})
    drop = []
    for namespace, by_id in rows.items():
        head = by_id.get(heads.get(namespace, ""))
        if _finished_call(namespace, head, root, kept.get("", set())):
            kept[namespace] = set()
        drop += [(namespace, id) for id in by_id if id not in kept[namespace]]
    return backend.prune(thread_id, drop) if drop else 0


def _finished_call(
    namespace: str, head: CheckpointRow | None, root: dict[str, CheckpointRow], kept: set[str]
) -> bool:
    """Whether a namespace is one call of a subgraph that belongs to a root checkpoint about to go.

    A call's namespace ends with its task id behind a colon; a subgraph with a checkpointer of its own has none there
    and lives on from call to call.
    """
    if ":" not in namespace or head is None or head.root_id is None:
        return False
    return head.root_id in root and head.root_id not in kept


def _needed(
    backend: Backend,
    thread_id: str,
    namespace: str,
    rows: dict[str, CheckpointRow],
    head_id: str | None,
) -> set[str]:
    head = rows.get(head_id) if head_id else None
    if head is None:
        return set(rows)
    needed = {head.checkpoint_id}
    if deltas := delta_channels(head):
        lineage = backend.lineage(thread_id, namespace, head.checkpoint_id, sorted(deltas))
        ends = [a.checkpoint_id for a in lineage]
        row: CheckpointRow | None = head
        while ends and row is not None and ends[-1] not in needed:
            row = rows.get(row.parent_id or "")
            if row is not None:
                needed.add(row.checkpoint_id)
    if head.format < SENDS_IN_PARENT_BELOW and head.parent_id in rows:
        sends = backend.read(thread_id, namespace, head.checkpoint_id).sends
        if any(w.channel == TASKS for w in sends):
            needed.add(head.parent_id or "")
    return needed


def delta_channels(row: CheckpointRow) -> set[str]:
    """Channels whose value is not in this checkpoint but in the writes since an ancestor's snapshot."""
    metadata: dict[str, Any] = json.loads(row.metadata)
    return set(metadata.get("counters_since_delta_snapshot") or ())
