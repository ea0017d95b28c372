"""A backend in this process's memory: the reference implementation of the seam, for tests and throw-away agents."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple

from charm_checkpoint.backend import (
    SENDS_IN_PARENT_BELOW,
    STORED,
    Ancestor,
    BlobRow,
    CheckpointRow,
    Entry,
    HeadMark,
    HeadRow,
    MoveHead,
    Outcome,
    Page,
    Pulled,
    PutCheckpoint,
    PutWrites,
    Scan,
    Seen,
    Snapshot,
    ThreadQuery,
    ThreadRow,
    Tombstone,
    Unit,
    WriteRow,
)
from charm_checkpoint.errors import ThreadExistsError, ThreadNotFoundError
from charm_checkpoint.forks import ForkAware
from charm_checkpoint.rules import (
    has_labels,
    judge,
    judge_again,
    judge_move,
    labels_of,
    pulled,
    status_of,
)

__all__ = ["MemoryBackend"]


@dataclass
class _Namespace:
    head: HeadRow | None = None
    checkpoints: dict[str, CheckpointRow] = field(default_factory=dict)
    blobs: dict[tuple[str, str], BlobRow] = field(default_factory=dict)
    writes: defaultdict[str, dict[tuple[str, int], WriteRow]] = field(
        default_factory=lambda: defaultdict(dict)
    )

    def sorted_writes(self, checkpoint_id: str | None) -> list[WriteRow]:
        rows = self.writes.get(checkpoint_id, {}) if checkpoint_id else {}
        return sorted(rows.values(), key=_write_order)

    def copy(self) -> _Namespace:
        writes = defaultdict(dict, {k: dict(v) for k, v in self.writes.items()})
        return _Namespace(self.head, dict(self.checkpoints), dict(self.blobs), writes)


@dataclass
class _Thread:
    created_at: float
    namespaces: dict[str, _Namespace] = field(default_factory=dict)

    def ids(self) -> list[str]:
        return [i for ns in self.namespaces.values() for i in ns.checkpoints]


class _Key(NamedTuple):
    checkpoint_id: str
    thread_id: str
    namespace: str


def _write_order(row: WriteRow) -> tuple[bytes, bytes, int]:
    return (row.task_path.encode(), row.task_id.encode(), row.idx)


class MemoryBackend(ForkAware):
    """Keeps rows in dictionaries under one lock. Gone with the process; a forked child has its own copy."""

    name = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.after_fork_in_child()
        self._threads: dict[str, _Thread] = {}
        self._tombstones: dict[str, Tombstone] = {}

    def after_fork_in_child(self) -> None:
        self._lock = threading.RLock()

    def setup(self) -> None:
        """Nothing to make."""

    def close(self) -> None:
        """Nothing to release: the rows stay until the object goes."""

    # -- writing ---------------------------------------------------------------------------------------------------

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        with self._lock:
            return [self._store(unit) for unit in units]

    def _store(self, unit: Unit) -> Outcome:
        if isinstance(unit, PutCheckpoint):
            return self._put(unit)
        return self._put_writes(unit) if isinstance(unit, PutWrites) else self._move(unit)

    def _is_stored(self, thread_id: str, namespace: str, checkpoint_id: str) -> bool:
        thread = self._threads.get(thread_id)
        ns = thread.namespaces.get(namespace) if thread else None
        return ns is not None and checkpoint_id in ns.checkpoints

    def _namespace(self, thread_id: str, namespace: str, at: float) -> _Namespace:
        thread = self._threads.setdefault(thread_id, _Thread(at))
        thread.created_at = thread.created_at or at
        return thread.namespaces.setdefault(namespace, _Namespace())

    def _put(self, put: PutCheckpoint) -> Outcome:
        row = put.row
        ns = self._find(put.thread_id, put.namespace)
        if ns is not None and row.checkpoint_id in ns.checkpoints:
            return judge_again(put, ns.head, partial(_grew_from, ns, row.checkpoint_id))
        outcome = judge(
            put,
            ns.head if ns else None,
            self._tombstones.get(put.thread_id),
            lambda namespace, id: self._is_stored(put.thread_id, namespace, id),
        )
        if outcome.status not in ("stored", "branched"):
            if ns:
                ns.writes.pop(row.checkpoint_id, None)
            return outcome
        ns = self._namespace(put.thread_id, put.namespace, row.created_at)
        ns.checkpoints[row.checkpoint_id] = row
        for blob in put.blobs:
            ns.blobs.setdefault((blob.channel, blob.version), blob)
        if outcome.status == "stored":
            ns.head = HeadRow(put.namespace, row.checkpoint_id, row.device, row.created_at)
        return outcome

    def _put_writes(self, put: PutWrites) -> Outcome:
        tombstone = self._tombstones.get(put.thread_id)
        if (
            tombstone is not None
            and put.checkpoint_id <= tombstone.deleted_through
            and not self._is_stored(put.thread_id, put.namespace, put.checkpoint_id)
        ):
            return Outcome("deleted", deleted_at=tombstone.deleted_at)
        ns = self._find(put.thread_id, put.namespace)
        if put.fenced and ns is not None and _clashes(ns, put):
            return Outcome("conflict", ns.head)
        rows = self._namespace(put.thread_id, put.namespace, 0.0).writes[put.checkpoint_id]
        for row in put.rows:
            if row.idx < 0:
                rows[row.task_id, row.idx] = row
            else:
                rows.setdefault((row.task_id, row.idx), row)
        return STORED

    def _move(self, move: MoveHead) -> Outcome:
        ns = self._find(move.thread_id, move.namespace)
        head = ns.head if ns else None
        outcome = judge_move(move, head, ns is not None and move.checkpoint_id in ns.checkpoints)
        if ns is not None and outcome == STORED and (head is None or head[1] != move.checkpoint_id):
            ns.head = HeadRow(move.namespace, move.checkpoint_id, move.device, move.at)
        return outcome

    # -- reading ---------------------------------------------------------------------------------------------------

    def _find(self, thread_id: str, namespace: str) -> _Namespace | None:
        thread = self._threads.get(thread_id)
        return thread.namespaces.get(namespace) if thread else None

    def read(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Snapshot:
        with self._lock:
            tombstone = self._tombstones.get(thread_id)
            through = tombstone.deleted_through if tombstone else None
            ns = self._find(thread_id, namespace)
            head = ns.head.checkpoint_id if ns and ns.head else None
            wanted = checkpoint_id or head
            if ns is None or wanted is None or wanted not in ns.checkpoints:
                return Snapshot(head=head, deleted_through=through)
            return self._snapshot(ns, wanted)._replace(head=head, deleted_through=through)

    @staticmethod
    def _snapshot(ns: _Namespace, checkpoint_id: str) -> Snapshot:
        row = ns.checkpoints[checkpoint_id]
        blobs = [ns.blobs[key] for key in row.versions.items() if key in ns.blobs]
        old = row.format < SENDS_IN_PARENT_BELOW
        sends = ns.sorted_writes(row.parent_id) if old else []
        return Snapshot(row, blobs, ns.sorted_writes(checkpoint_id), sends)

    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        with self._lock:
            thread = self._threads.get(thread_id)
            namespaces = thread.namespaces if thread else {}

            def versions(namespace: str, checkpoint_id: str) -> Mapping[str, str]:
                row = namespaces[namespace].checkpoints.get(checkpoint_id)
                return row.versions if row else {}

            def blobs(namespace: str, wanted: Mapping[str, str]) -> Sequence[BlobRow]:
                stored = namespaces[namespace].blobs
                return [stored[key] for key in wanted.items() if key in stored]

            return pulled(
                thread_id,
                held,
                [
                    (ns.head, self._snapshot(ns, ns.head.checkpoint_id))
                    for _, ns in sorted(namespaces.items())
                    if ns.head
                ],
                self._tombstones.get(thread_id),
                versions=versions,
                blobs=blobs,
            )

    def scan(self, query: Scan) -> Page:
        with self._lock:
            found: list[tuple[_Key, _Namespace]] = []
            for thread_id, thread in self._threads.items():
                if query.thread_id not in (None, thread_id):
                    continue
                for namespace, ns in thread.namespaces.items():
                    if query.namespace not in (None, namespace):
                        continue
                    for row in ns.checkpoints.values():
                        key = _Key(row.checkpoint_id, thread_id, namespace)
                        if _matches(query, key, row):
                            found.append((key, ns))
            found.sort(key=lambda pair: pair[0], reverse=True)
            entries = []
            for key, ns in found[: query.limit]:
                snapshot = (
                    self._snapshot(ns, key.checkpoint_id)
                    if query.values
                    else Snapshot(ns.checkpoints[key.checkpoint_id])
                )
                head = ns.head.checkpoint_id if ns.head else None
                entries.append(Entry(key.thread_id, key.namespace, snapshot._replace(head=head)))
            more = len(found) > query.limit
            return Page(entries, found[query.limit - 1][0] if more else None)

    def lineage(
        self, thread_id: str, namespace: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> Sequence[Ancestor]:
        with self._lock:
            ns = self._find(thread_id, namespace)
            if ns is None:
                return []
            start = checkpoint_id or (ns.head.checkpoint_id if ns.head else "")
            row = ns.checkpoints.get(start)
            open_channels = set(channels)
            found: list[Ancestor] = []
            seen: set[str] = set()
            while row is not None and open_channels and row.parent_id is not None:
                row = ns.checkpoints.get(row.parent_id)
                if row is None or row.checkpoint_id in seen:
                    break
                seen.add(row.checkpoint_id)
                writes = [
                    w for w in ns.sorted_writes(row.checkpoint_id) if w.channel in open_channels
                ]
                keys = [(c, row.versions[c]) for c in open_channels if c in row.versions]
                seeds = [ns.blobs[key] for key in keys if key in ns.blobs]
                open_channels.difference_update(b.channel for b in seeds)
                if seeds or writes:
                    found.append(Ancestor(row.checkpoint_id, seeds, writes))
            return found

    def threads(self, query: ThreadQuery) -> Sequence[ThreadRow]:
        with self._lock:
            rows = [
                self._thread_row(id, thread)
                for id, thread in self._threads.items()
                if query.thread_id in (None, id)
                and any(ns.head for ns in thread.namespaces.values())
            ]
        rows.sort(key=lambda r: (r.updated_at, r.thread_id), reverse=True)
        wanted = (
            row
            for row in rows
            if (query.after is None or (row.updated_at, row.thread_id) < query.after)
            and query.status in (None, row.status)
            and has_labels(row.labels, query.labels)
        )
        return list(islice(wanted, query.limit))

    @staticmethod
    def _thread_row(thread_id: str, thread: _Thread) -> ThreadRow:
        heads = [ns.head for _, ns in sorted(thread.namespaces.items()) if ns.head]
        root = thread.namespaces.get("")
        head = root.head.checkpoint_id if root and root.head else None
        status = status_of(w.channel for w in root.sorted_writes(head)) if root else "idle"
        labels = labels_of(root.checkpoints[head].metadata) if root and head else {}
        updated_at = max(head.moved_at for head in heads)
        return ThreadRow(thread_id, thread.created_at, updated_at, heads, status, labels)

    # -- deleting and copying --------------------------------------------------------------------------------------

    def delete(self, thread_id: str, *, at: float) -> bool:
        with self._lock:
            thread = self._threads.pop(thread_id, None)
            if thread is None:
                return False
            earlier = self._tombstones.get(thread_id) or Tombstone(at, "")
            root = thread.namespaces.get("", _Namespace())
            firsts = [r.checkpoint_id for r in root.checkpoints.values() if r.parent_id is None]
            self._tombstones[thread_id] = Tombstone(
                at, max([*thread.ids(), earlier.deleted_through]), (*earlier.first_ids, *firsts)
            )
            return True

    def delete_if(self, thread_id: str, seen: Seen, *, at: float) -> bool:
        """Delete a thread that is as it was seen."""
        with self._lock:
            thread = self._threads.get(thread_id)
            namespaces = thread.namespaces if thread else {}
            heads = {name: ns.head.checkpoint_id for name, ns in namespaces.items() if ns.head}
            if thread is None or Seen(heads, len(thread.ids())) != seen:
                return False
            return self.delete(thread_id, at=at)

    def copy(self, source: str, target: str, *, at: float) -> None:
        with self._lock:
            original = self._threads.get(source)
            if original is None or not original.ids():
                raise ThreadNotFoundError(f"thread {source!r} has no checkpoints to copy")
            existing = self._threads.get(target)
            if existing is not None and existing.ids():
                raise ThreadExistsError(
                    f"thread {target!r} already has checkpoints; delete it or copy to another id"
                )
            namespaces = {name: ns.copy() for name, ns in original.namespaces.items()}
            self._threads[target] = _Thread(at, namespaces)

    def prune(self, thread_id: str, drop: Sequence[tuple[str, str]]) -> int:
        with self._lock:
            removed = 0
            by_namespace: defaultdict[str, list[str]] = defaultdict(list)
            for namespace, checkpoint_id in drop:
                by_namespace[namespace].append(checkpoint_id)
            for namespace, ids in by_namespace.items():
                ns = self._find(thread_id, namespace)
                if ns is not None:
                    removed += _prune_namespace(ns, ids)
                    if not ns.checkpoints and not ns.writes:
                        del self._threads[thread_id].namespaces[namespace]
            return removed


def _grew_from(ns: _Namespace, ancestor_id: str, checkpoint_id: str) -> bool:
    seen: set[str | None] = set()
    at: str | None = checkpoint_id
    while at in ns.checkpoints and at not in seen:
        if at == ancestor_id:
            return True
        seen.add(at)
        at = ns.checkpoints[at].parent_id
    return False


def _clashes(ns: _Namespace, put: PutWrites) -> bool:
    overtaken = put.checkpoint_id in ns.checkpoints and (
        ns.head is None or ns.head.checkpoint_id != put.checkpoint_id
    )
    stored = ns.writes.get(put.checkpoint_id, {})
    return overtaken or any(
        row.idx >= 0 and stored.get((row.task_id, row.idx), row) != row for row in put.rows
    )


def _matches(query: Scan, key: _Key, row: CheckpointRow) -> bool:
    return (
        query.checkpoint_id in (None, key.checkpoint_id)
        and (query.before is None or key.checkpoint_id < query.before)
        and (query.run_ids is None or row.run_id in query.run_ids)
        and (query.after is None or key < query.after)
    )


def _prune_namespace(ns: _Namespace, ids: Sequence[str]) -> int:
    gone = {i: ns.checkpoints.pop(i) for i in ids if i in ns.checkpoints}
    removed = len(gone)
    for checkpoint_id in gone:
        ns.writes.pop(checkpoint_id, None)
    needed = {key for row in ns.checkpoints.values() for key in row.versions.items()}
    for key in [k for k in ns.blobs if k not in needed]:
        del ns.blobs[key]
    if ns.head is not None and ns.head.checkpoint_id in gone:
        ancestor: str | None = ns.head.checkpoint_id
        while ancestor in gone:  # each once, as a forged cycle of parents has no end
            ancestor = gone.pop(ancestor).parent_id
        if ancestor not in ns.checkpoints:
            ancestor = max(ns.checkpoints, default=None)
        row = ns.checkpoints[ancestor] if ancestor is not None else None
        ns.head = (
            HeadRow(ns.head.namespace, row.checkpoint_id, row.device, row.created_at)
            if row
            else None
        )
    return removed
