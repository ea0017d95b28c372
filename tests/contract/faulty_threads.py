"""Backends that list, delete, copy or prune threads wrongly."""

from __future__ import annotations

from collections.abc import Sequence

from charm_checkpoint.backend import (
    BlobRow,
    Outcome,
    PutCheckpoint,
    Seen,
    Snapshot,
    ThreadQuery,
    ThreadRow,
    Unit,
)
from tests.contract.faults import ChangesSnapshots, ChangesUnits, Sound, caught_by


@caught_by("test_threads_by_recency", "test_pages_of_threads[2]")
class ListsThreadsByName(Sound):
    def threads(self, query: ThreadQuery) -> Sequence[ThreadRow]:
        return sorted(super().threads(query), key=lambda row: row.thread_id)


@caught_by("test_status_is_that_of_the_root_head[puts-writes]", "test_threads_of_a_store")
class SeesNoInterrupts(Sound):
    def threads(self, query: ThreadQuery) -> Sequence[ThreadRow]:
        return [row._replace(status="idle") for row in super().threads(query)]


@caught_by("test_labels_are_of_the_root_heads_metadata", "test_pages_of_some_threads[1]")
class ForgetsWhatWasAsked(Sound):
    def threads(self, query: ThreadQuery) -> Sequence[ThreadRow]:
        return super().threads(query._replace(labels=None))


@caught_by("test_pages_of_some_threads[1]")
class LooksForSomeLabel(Sound):
    """Finds threads that have one of the labels."""

    def threads(self, query: ThreadQuery) -> Sequence[ThreadRow]:
        asked = (query.labels or {}).items()
        found = super().threads(query._replace(limit=1000, labels=None))
        return [row for row in found if not asked or asked & row.labels.items()][: query.limit]


@caught_by("test_labels_are_of_the_root_heads_metadata")
class TakesZeroForFalse(Sound):
    def threads(self, query: ThreadQuery) -> Sequence[ThreadRow]:
        asked = (query.labels or {}).items()
        found = super().threads(query._replace(limit=1000, labels=None))
        return [row for row in found if asked <= row.labels.items()][: query.limit]


@caught_by("test_pages_of_some_threads[1]")
class FiltersPagesAfterwards(Sound):
    def threads(self, query: ThreadQuery) -> Sequence[ThreadRow]:
        found = super().threads(query._replace(status=None))
        return [row for row in found if query.status in (None, row.status)]


@caught_by(
    "test_late_writes_are_refused[child]",
    "test_late_writes_to_a_deleted_thread[sync]",
    "test_a_run_whose_thread_is_deleted_ends_and_the_thread_stays_deleted[async-async]",
)
class LeavesNoTombstone(Sound):
    def delete(self, thread_id: str, *, at: float) -> bool:
        drop = [(namespace, id) for _, namespace, id in self.entries(thread_id=thread_id)]
        return self.prune(thread_id, drop) > 0


@caught_by("test_delete_of_a_thread_as_it_was_seen")
class DeletesWhatCameSince(Sound):
    def delete_if(self, thread_id: str, seen: Seen, *, at: float) -> bool:
        return self.delete(thread_id, at=at)


@caught_by("test_delete_of_a_thread_as_it_was_seen")
class LooksAtHeadsOnly(Sound):
    """Before it deletes: not at branches."""

    def delete_if(self, thread_id: str, seen: Seen, *, at: float) -> bool:
        [row, *_] = self.threads(ThreadQuery(1, thread_id=thread_id)) or [None]
        found = {head.namespace: head.checkpoint_id for head in row.heads} if row else None
        return found == seen.heads and self.delete(thread_id, at=at)


@caught_by("test_a_thread_starts_anew", "test_a_fresh_run_starts_a_deleted_thread_anew[async]")
class NeverForgivesDeletion(Sound):
    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        gone = [self.read(u.thread_id, u.namespace, None).deleted_through for u in units]
        fresh = iter(super().write([u for u, t in zip(units, gone, strict=True) if t is None]))
        return [next(fresh) if t is None else Outcome("deleted") for t in gone]


@caught_by("test_delete_leaves_other_threads", "test_any_text_is_an_id[long]")
class DeletesByPrefix(Sound):
    def delete(self, thread_id: str, *, at: float) -> bool:
        ids = {id for id, _, _ in self.entries() if id.startswith(thread_id[:1000])}
        return sum(self.inner.delete(id, at=at) for id in ids) > 0


@caught_by("test_case_and_composition_tell_ids_apart[thread]")
class IgnoresCase(ChangesUnits):
    def checkpoint(self, put: PutCheckpoint) -> PutCheckpoint:
        return put._replace(thread_id=put.thread_id.lower())

    def read(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Snapshot:
        return super().read(thread_id.lower(), namespace, checkpoint_id)


@caught_by("test_copy_copies_everything", "test_pruned_and_copied_they_go_on[async-async-3]")
class CopiesHeadsOnly(Sound):
    def copy(self, source: str, target: str, *, at: float) -> None:
        super().copy(source, target, at=at)
        entries = self.entries(thread_id=target)
        drop = [(n, id) for _, n, id in entries if id != self.read(target, n, None).head]
        self.prune(target, drop)


@caught_by("test_a_copy_lives_by_itself")
class CopiesByReference(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.sources: dict[str, str] = {}

    def copy(self, source: str, target: str, *, at: float) -> None:
        super().copy(source, target, at=at)
        self.sources[target] = source

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        shared = [u._replace(thread_id=self.sources.get(u.thread_id, u.thread_id)) for u in units]
        super().write(shared)
        return super().write(units)


@caught_by("test_prune_keeps_blobs_that_others_need")
class PrunesBlobsThatAreNeeded(ChangesSnapshots):
    def __init__(self) -> None:
        super().__init__()
        self.came_with: dict[tuple[str, str], str] = {}
        self.pruned: set[str] = set()

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        for u in units:
            for blob in u.blobs if isinstance(u, PutCheckpoint) else ():
                self.came_with.setdefault((blob.channel, blob.version), u.row.checkpoint_id)
        return super().write(units)

    def prune(self, thread_id: str, drop: Sequence[tuple[str, str]]) -> int:
        self.pruned.update(id for _, id in drop)
        return super().prune(thread_id, drop)

    def snapshot(self, thread_id: str, namespace: str, snapshot: Snapshot) -> Snapshot:
        kept = [
            b for b in snapshot.blobs if self.came_with[b.channel, b.version] not in self.pruned
        ]
        return snapshot._replace(blobs=kept)


@caught_by("test_prune_keeps_blobs_that_others_need", "test_delete_removes_a_thread_whole")
class NeverFreesBlobs(ChangesSnapshots):
    def __init__(self) -> None:
        super().__init__()
        self.ever: dict[tuple[str, str], BlobRow] = {}

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        for u in units:
            for blob in u.blobs if isinstance(u, PutCheckpoint) else ():
                self.ever[blob.channel, blob.version] = blob
        return super().write(units)

    def snapshot(self, thread_id: str, namespace: str, snapshot: Snapshot) -> Snapshot:
        versions = snapshot.checkpoint.versions.items() if snapshot.checkpoint else ()
        return snapshot._replace(blobs=[self.ever[key] for key in versions if key in self.ever])


@caught_by("test_a_pruned_head_moves_to_its_nearest_ancestor")
class LosesAPrunedHead(ChangesSnapshots):
    lost = False

    def prune(self, thread_id: str, drop: Sequence[tuple[str, str]]) -> int:
        self.lost = self.read(thread_id, "", None).head in [id for _, id in drop]
        return super().prune(thread_id, drop)

    def snapshot(self, thread_id: str, namespace: str, snapshot: Snapshot) -> Snapshot:
        return Snapshot() if self.lost else snapshot


@caught_by("test_prune_removes_what_is_named", "test_prune_again_finds_nothing")
class LeavesATombstoneWhenPruning(Sound):
    def prune(self, thread_id: str, drop: Sequence[tuple[str, str]]) -> int:
        removed = super().prune(thread_id, drop)
        self.delete(thread_id, at=0.0)
        return removed
