"""Backends that read something else than is stored."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from charm_checkpoint.backend import Ancestor, Page, Scan, Snapshot, WriteRow
from tests.contract.faults import ChangesSnapshots, Sound, caught_by


@caught_by("test_an_unknown_checkpoint_still_tells_the_head")
class TellsTheHeadOnlyWithACheckpoint(ChangesSnapshots):
    def snapshot(self, thread_id: str, namespace: str, snapshot: Snapshot) -> Snapshot:
        return snapshot if snapshot.checkpoint else snapshot._replace(head=None)


@caught_by(
    "test_writes_are_sorted_by_bytes",
    "test_pending_writes_are_in_task_order[async]",
    "test_it_is_what_walking_up_one_by_one_gives[sync]",
)
class SortsWritesByTaskAlone(ChangesSnapshots):
    def snapshot(self, thread_id: str, namespace: str, snapshot: Snapshot) -> Snapshot:
        return snapshot._replace(writes=sorted(snapshot.writes, key=lambda w: (w.task_id, w.idx)))


@caught_by("test_writes_are_sorted_by_bytes")
class SortsWritesByUtf16(ChangesSnapshots):
    def snapshot(self, thread_id: str, namespace: str, snapshot: Snapshot) -> Snapshot:
        def key(w: WriteRow) -> Any:
            return (w.task_path.encode("utf-16-be"), w.task_id.encode("utf-16-be"), w.idx)

        return snapshot._replace(writes=sorted(snapshot.writes, key=key))


@caught_by("test_sends_are_the_parents_writes_before_format_4")
class ForgetsOldSends(ChangesSnapshots):
    def snapshot(self, thread_id: str, namespace: str, snapshot: Snapshot) -> Snapshot:
        return snapshot._replace(sends=())


@caught_by("test_before_is_exclusive", "test_langgraph_conformance[sync-list_before]")
class ListsBeforeInclusively(Sound):
    def scan(self, query: Scan) -> Page:
        return super().scan(query._replace(before=query.before and query.before + "\x00"))


@caught_by("test_pages[3]")
class PromisesAPageTooMany(Sound):
    def scan(self, query: Scan) -> Page:
        page = super().scan(query)
        if len(page.entries) < query.limit:
            return page
        last = page.entries[-1]
        assert last.snapshot.checkpoint is not None
        key = (last.snapshot.checkpoint.checkpoint_id, last.thread_id, last.namespace)
        return page._replace(next=key)


@caught_by("test_scan_is_newest_first", "test_pages[1]")
class PagesByIdAlone(Sound):
    def scan(self, query: Scan) -> Page:
        return super().scan(query._replace(after=query.after and (query.after[0], "", "")))


@caught_by("test_scan_lists_branches_and_tells_heads", "test_policies[sync-branch]")
class HidesBranches(Sound):
    def scan(self, query: Scan) -> Page:
        page = super().scan(query)
        shown = []
        for entry in page.entries:
            on_path, row = set(), self.inner.read(entry.thread_id, entry.namespace, None).checkpoint
            while row is not None:
                on_path.add(row.checkpoint_id)
                row = self.inner.read(
                    entry.thread_id, entry.namespace, row.parent_id or "none"
                ).checkpoint
            assert entry.snapshot.checkpoint is not None
            if entry.snapshot.checkpoint.checkpoint_id in on_path:
                shown.append(entry)
        return page._replace(entries=shown)


@caught_by("test_scan_by_run")
class TakesNoRunsForAnyRun(Sound):
    def scan(self, query: Scan) -> Page:
        return super().scan(query._replace(run_ids=query.run_ids or None))


@caught_by(
    "test_lineage_goes_up_to_the_nearest_blob",
    "test_the_nearest_stored_value_is_the_seed[sync-[1]]",
)
class DropsTheSeedsOwnWrites(Sound):
    def lineage(self, *args: Any) -> Sequence[Ancestor]:
        return [a._replace(writes=() if a.blobs else a.writes) for a in super().lineage(*args)]


@caught_by("test_lineage_follows_parents_not_ids", "test_abandoned_branches_do_not_count[async]")
class TakesLineageFromTheOrderOfIds(Sound):
    def lineage(
        self, thread_id: str, namespace: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> Sequence[Ancestor]:
        start = checkpoint_id or self.read(thread_id, namespace, None).head
        found = []
        for _, _, ancestor in self.entries(thread_id=thread_id, namespace=namespace):
            if start is not None and ancestor != start:
                writes = self.read(thread_id, namespace, ancestor).writes
                wanted = [w for w in writes if w.channel in channels]
                found.append(Ancestor(ancestor, (), wanted))
        return found


@caught_by("test_a_read_sees_a_checkpoint_whole")
class ReadsInTwoSteps(Sound):
    def read(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Snapshot:
        head = super().read(thread_id, namespace, None).head
        time.sleep(0.0001)  # lets a writer in between
        found = super().read(thread_id, namespace, checkpoint_id)
        return found._replace(head=head)
