"""Backends that store something else than they were given."""

from __future__ import annotations

import time
from collections.abc import Sequence

from charm_checkpoint.backend import (
    BlobRow,
    HeadRow,
    Outcome,
    PutCheckpoint,
    PutWrites,
    Snapshot,
    Unit,
    WriteRow,
)
from charm_checkpoint.memory import MemoryBackend
from tests.contract.faults import ChangesSnapshots, ChangesUnits, Sound, caught_by


@caught_by(
    "test_a_conflict_stores_nothing[None]",
    "test_the_second_of_two_writers_is_told[sync]",
    "test_a_run_that_is_overtaken_ends_in_a_conflict[sync-sync]",
    "test_of_two_devices_one_wins_each_step",
)
class IgnoresTheFence(ChangesUnits):
    def checkpoint(self, put: PutCheckpoint) -> PutCheckpoint:
        return put._replace(fenced=False)


@caught_by(
    "test_an_unfenced_checkpoint_moves_the_head_from_anywhere",
    "test_an_asked_for_past_may_be_forked[async]",
    "test_ends_as_in_memory[sync-time-travel-sync]",
)
class FencesEverything(ChangesUnits):
    def checkpoint(self, put: PutCheckpoint) -> PutCheckpoint:
        return put._replace(fenced=True)


@caught_by("test_a_branch_is_stored_beside_the_head", "test_policies[async-branch]")
class TakesBranchForOverwrite(ChangesUnits):
    def checkpoint(self, put: PutCheckpoint) -> PutCheckpoint:
        return put._replace(on_conflict=put.on_conflict.replace("branch", "overwrite"))  # type: ignore[arg-type]


@caught_by("test_latest_is_what_was_stored_last_not_the_greatest_id")
class TakesTheGreatestIdForLatest(Sound):
    def read(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Snapshot:
        found = self.entries(thread_id=thread_id, namespace=namespace)
        head = found[0][2] if found else None
        wanted = checkpoint_id or head or "none"
        return super().read(thread_id, namespace, wanted)._replace(head=head)


@caught_by("test_each_namespace_has_a_head")
class HasOneHeadPerThread(Sound):
    def read(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Snapshot:
        root = super().read(thread_id, "", None).head
        found = super().read(thread_id, namespace, checkpoint_id or root or "none")
        return found._replace(head=root)


@caught_by("test_a_conflict_stores_nothing[1]", "test_the_second_of_two_writers_is_told[async]")
class KeepsTheFactsOfAConflictToItself(Sound):
    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        outcomes = super().write(units)
        return [o._replace(head=o.head and HeadRow("", "?", "?", 0.0)) for o in outcomes]


@caught_by("test_the_same_id_again_stores_nothing_and_leaves_the_head[raise]")
class MovesTheHeadForTheSameId(ChangesSnapshots):
    again: str | None = None

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        for unit in units:
            if isinstance(unit, PutCheckpoint):
                known = self.inner.read(unit.thread_id, unit.namespace, unit.row.checkpoint_id)
                self.again = unit.row.checkpoint_id if known.checkpoint else None
        return super().write(units)

    def snapshot(self, thread_id: str, namespace: str, snapshot: Snapshot) -> Snapshot:
        return snapshot._replace(head=self.again or snapshot.head)


@caught_by("test_the_first_blob_stays", "test_a_whole_checkpoint_may_have_its_parent")
class ReplacesBlobs(ChangesSnapshots):
    def __init__(self) -> None:
        super().__init__()
        self.last: dict[tuple[str, str, str, str], BlobRow] = {}

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        for u in units:
            for blob in u.blobs if isinstance(u, PutCheckpoint) else ():
                self.last[u.thread_id, u.namespace, blob.channel, blob.version] = blob
        return super().write(units)

    def snapshot(self, thread_id: str, namespace: str, snapshot: Snapshot) -> Snapshot:
        return snapshot._replace(
            blobs=[self.last[thread_id, namespace, b.channel, b.version] for b in snapshot.blobs]
        )


@caught_by("test_writes_from_zero_on_stay", "test_special_writes_replace_and_others_stay[sync]")
class ReplacesWrites(ChangesSnapshots):
    def __init__(self) -> None:
        super().__init__()
        self.last: dict[tuple[str, int], WriteRow] = {}

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        for unit in units:
            if isinstance(unit, PutWrites):
                self.last.update({(row.task_id, row.idx): row for row in unit.rows})
        return super().write(units)

    def snapshot(self, thread_id: str, namespace: str, snapshot: Snapshot) -> Snapshot:
        return snapshot._replace(writes=[self.last[w.task_id, w.idx] for w in snapshot.writes])


@caught_by("test_writes_below_zero_replace", "test_special_writes_replace_and_others_stay[async]")
class KeepsTheFirstSpecialWrite(ChangesUnits):
    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        outcomes: list[Outcome] = []
        for unit in units:
            outcomes += super().write([unit])
        return outcomes

    def pending(self, put: PutWrites) -> PutWrites:
        there = self.inner.read(put.thread_id, put.namespace, put.checkpoint_id).writes
        known = {(w.task_id, w.idx) for w in there}
        rows = tuple(r for r in put.rows if (r.task_id, r.idx) not in known)
        return put._replace(rows=rows)


@caught_by("test_a_conflict_takes_the_writes_that_came_first_with_it")
class KeepsWritesOfRefusedCheckpoints(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.early: list[PutWrites] = []

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        self.early += [u for u in units if isinstance(u, PutWrites)]
        outcomes = super().write(units)
        if any(o.status == "conflict" for o in outcomes):
            super().write(self.early)
        return outcomes


@caught_by("test_units_are_stored_in_order")
class WritesABatchBackwards(Sound):
    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        return super().write(units[::-1])[::-1]


@caught_by(
    "test_a_refused_unit_does_not_disturb_the_others",
    "test_a_refused_move_does_not_disturb_the_others",
)
class EndsABatchAtTheFirstRefusal(Sound):
    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        outcomes: list[Outcome] = []
        for unit in units:
            refused = [o for o in outcomes if o.status == "conflict"]
            outcomes += refused[:1] or super().write([unit])
        return outcomes


@caught_by(
    "test_all_of_a_batch_or_nothing",
    "test_no_head_moves_with_a_batch_that_fails",
    "test_heads_of_one_batch_move_at_once",
)
class HasNoTransaction(Sound):
    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        outcomes: list[Outcome] = []
        for unit in units:
            for blob in unit.blobs if isinstance(unit, PutCheckpoint) else ():
                blob.type.encode()
            time.sleep(0.0001)  # lets a reader in between
            outcomes += super().write([unit])
        return outcomes


@caught_by("test_payloads_are_bytes[no-text]", "test_payloads_are_bytes[all-bytes]")
class KeepsPayloadsAsText(ChangesUnits):
    def checkpoint(self, put: PutCheckpoint) -> PutCheckpoint:
        blobs = [b._replace(data=b.data.decode(errors="replace").encode()) for b in put.blobs]
        return put._replace(blobs=tuple(blobs))


@caught_by("test_every_field_of_a_checkpoint_survives")
class KeepsWholeSeconds(ChangesUnits):
    def checkpoint(self, put: PutCheckpoint) -> PutCheckpoint:
        return put._replace(row=put.row._replace(created_at=float(int(put.row.created_at))))


@caught_by("test_setup_twice_keeps_what_is_there")
class BeginsAnewAtSetup(Sound):
    def setup(self) -> None:
        self.inner = MemoryBackend()


@caught_by("test_close_twice_then_use_again")
class ForgetsAtClose(Sound):
    def close(self) -> None:
        self.inner = MemoryBackend()
