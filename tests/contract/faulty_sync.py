"""Backends that take what a replica writes for what a saver writes, and that move heads wrongly."""

from __future__ import annotations

from collections.abc import Sequence

from charm_checkpoint.backend import (
    STORED,
    Ancestor,
    MoveHead,
    Outcome,
    PutCheckpoint,
    PutWrites,
    Snapshot,
    Unit,
    WriteRow,
)
from tests.contract.faults import ChangesUnits, Sound, caught_by

# -- over and whole ----------------------------------------------------------------------------------------------------


@caught_by(
    "test_a_fork_takes_the_place_of_the_head_that_its_writer_saw[1-raise]",
    "test_a_fork_takes_the_place_of_the_head_that_its_writer_saw[None-raise]",
    "test_the_same_fork_again_changes_nothing",
    "test_a_whole_checkpoint_may_be_grown_from",
)
class KnowsNoForks(ChangesUnits):
    def checkpoint(self, put: PutCheckpoint) -> PutCheckpoint:
        return put._replace(over=None)


@caught_by("test_a_fork_takes_the_place_of_the_head_that_its_writer_saw[1-raise]")
class TakesOverForTheParent(ChangesUnits):
    def checkpoint(self, put: PutCheckpoint) -> PutCheckpoint:
        return put._replace(row=put.row._replace(parent_id=put.over or put.row.parent_id))


@caught_by("test_a_fork_over_another_head_is_a_conflict[1]", "test_over_the_parent_is_no_fork")
class DoesNotFenceForks(ChangesUnits):
    def checkpoint(self, put: PutCheckpoint) -> PutCheckpoint:
        return put._replace(fenced=put.fenced and put.over is None)


@caught_by(
    "test_a_fork_over_another_head_is_a_conflict[3]",
    "test_a_fork_over_another_head_may_branch_or_overwrite[3]",
)
class IsContentWithTheParent(ChangesUnits):
    def checkpoint(self, put: PutCheckpoint) -> PutCheckpoint:
        head = self.read(put.thread_id, put.namespace, None).head
        return put._replace(over=None) if put.row.parent_id == head else put


@caught_by("test_what_is_not_fenced_is_over_anything")
class FencesWhatIsOver(ChangesUnits):
    def checkpoint(self, put: PutCheckpoint) -> PutCheckpoint:
        return put._replace(fenced=put.fenced or put.over is not None)


@caught_by("test_over_a_head_where_there_is_none")
class WantsTheHeadToBeThere(Sound):
    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        over = [u.over for u in units if isinstance(u, PutCheckpoint) and u.fenced and u.over]
        there = [self.read(u.thread_id, u.namespace, None).head for u in units]
        return super().write(units) if any(there) or not over else [Outcome("conflict")]


@caught_by("test_a_head_does_not_stand_for_the_parent")
class NeedsNoParentForAFork(ChangesUnits):
    def checkpoint(self, put: PutCheckpoint) -> PutCheckpoint:
        return put._replace(whole=put.whole or put.over is not None)


@caught_by(
    "test_a_whole_checkpoint_stands_without_its_parent[True]",
    "test_a_whole_checkpoint_stands_without_its_parent[False]",
)
class AlwaysNeedsTheParent(ChangesUnits):
    def checkpoint(self, put: PutCheckpoint) -> PutCheckpoint:
        return put._replace(whole=False)


@caught_by(
    "test_a_whole_checkpoint_stands_without_its_parent[True]",
    "test_a_whole_checkpoint_does_not_undo_a_deletion",
)
class CutsAWholeCheckpointOff(ChangesUnits):
    def checkpoint(self, put: PutCheckpoint) -> PutCheckpoint:
        return put._replace(row=put.row._replace(parent_id=None)) if put.whole else put


@caught_by("test_a_whole_checkpoint_is_fenced")
class DoesNotFenceWholeCheckpoints(ChangesUnits):
    def checkpoint(self, put: PutCheckpoint) -> PutCheckpoint:
        return put._replace(fenced=put.fenced and not put.whole)


@caught_by("test_a_lineage_ends_at_a_whole_checkpoint")
class ExpectsARoot(Sound):
    def lineage(
        self, thread_id: str, namespace: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> Sequence[Ancestor]:
        row = self.read(thread_id, namespace, checkpoint_id).checkpoint
        while row is not None and row.parent_id is not None:
            row = self.read(thread_id, namespace, row.parent_id).checkpoint
            if row is None:
                raise LookupError("a parent is missing")
        return super().lineage(thread_id, namespace, checkpoint_id, channels)


# -- moving the head ---------------------------------------------------------------------------------------------------


class Moves(Sound):
    """Does something else for a `MoveHead`."""

    def move(self, move: MoveHead, head: str | None) -> Outcome:
        raise NotImplementedError

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        outcomes: list[Outcome] = []
        for u in units:
            if isinstance(u, MoveHead):
                outcomes.append(self.move(u, self.read(u.thread_id, u.namespace, None).head))
            else:
                outcomes += super().write([u])
        return outcomes


@caught_by("test_a_head_moves_to_a_branch", "test_a_moved_head_is_pulled")
class MovesNoHead(Moves):
    def move(self, move: MoveHead, head: str | None) -> Outcome:
        return STORED


@caught_by("test_what_follows_a_moved_head")
class MovesTheHeadForReadersOnly(Moves):
    def __init__(self) -> None:
        super().__init__()
        self.moved: dict[tuple[str, str], str] = {}

    def move(self, move: MoveHead, head: str | None) -> Outcome:
        self.moved[move.thread_id, move.namespace] = move.checkpoint_id
        return STORED

    def read(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Snapshot:
        head = self.moved.get((thread_id, namespace))
        found = super().read(thread_id, namespace, checkpoint_id or head)
        return found._replace(head=head or found.head)


@caught_by("test_heads_of_one_batch_move_at_once")
class MovesTheRootsHeadOnly(Moves):
    def move(self, move: MoveHead, head: str | None) -> Outcome:
        return STORED if move.namespace else self.inner.write([move])[0]


@caught_by(
    "test_a_head_that_moved_meanwhile_stays[1]",
    "test_a_head_that_was_pruned_is_not_the_one_decided_upon",
    "test_a_refused_move_does_not_disturb_the_others",
)
class MovesOverAnyHead(Moves):
    def move(self, move: MoveHead, head: str | None) -> Outcome:
        return self.inner.write([move._replace(over=head or "")])[0]


@caught_by("test_a_head_that_was_pruned_is_not_the_one_decided_upon")
class MovesOverAHeadThatIsGone(Moves):
    def move(self, move: MoveHead, head: str | None) -> Outcome:
        gone = self.read(move.thread_id, move.namespace, move.over).checkpoint is None
        return self.inner.write([move._replace(over=head or "") if gone else move])[0]


@caught_by("test_a_head_that_is_there_already_stays_as_it_is[1]")
class WantsTheHeadToMove(Moves):
    def move(self, move: MoveHead, head: str | None) -> Outcome:
        if head is not None and head != move.over:
            return Outcome("conflict")
        return self.inner.write([move])[0]


@caught_by("test_a_head_does_not_move_to_what_is_not_stored")
class LooksForTheHeadFirst(Moves):
    def move(self, move: MoveHead, head: str | None) -> Outcome:
        [outcome] = self.inner.write([move])
        return outcome if head in (None, move.over) else outcome._replace(status="conflict")


@caught_by("test_a_head_that_moved_meanwhile_stays[none]")
class KeepsTheFactsOfARefusedMove(Moves):
    def move(self, move: MoveHead, head: str | None) -> Outcome:
        return self.inner.write([move])[0]._replace(head=None)


@caught_by("test_a_head_moves_to_a_branch", "test_a_moved_head_is_pulled")
class KeepsTheFormerMover(ChangesUnits):
    def move(self, move: MoveHead) -> MoveHead:
        row = self.read(move.thread_id, move.namespace, move.checkpoint_id).checkpoint
        return move._replace(device=row.device, at=row.created_at) if row else move


@caught_by(
    "test_the_same_move_again_changes_nothing",
    "test_a_head_that_is_there_already_stays_as_it_is[2]",
)
class MovesTheHeadOntoItself(Moves):
    def move(self, move: MoveHead, head: str | None) -> Outcome:
        for _, _, id in self.entries(thread_id=move.thread_id, namespace=move.namespace):
            if head == move.checkpoint_id != id:
                away = move._replace(checkpoint_id=id, over=head)
                self.inner.write([away, move._replace(over=id)])
                return STORED
        return self.inner.write([move])[0]


@caught_by("test_a_head_does_not_move_where_nothing_is", "test_no_head_moves_in_a_deleted_thread")
class BringsAThreadBackForARefusedMove(Moves):
    def move(self, move: MoveHead, head: str | None) -> Outcome:
        [outcome] = self.inner.write([move])
        if outcome.status == "orphaned":
            row = WriteRow("task", 0, "channel", "", "bytes", b"")
            self.inner.write([PutWrites(move.thread_id, move.namespace, "~", (row,))])
        return outcome
