"""Backends whose `pull` tells too much, too little, or of two moments."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

from charm_checkpoint.backend import (
    Entry,
    HeadMark,
    HeadRow,
    Outcome,
    Pulled,
    Snapshot,
    ThreadQuery,
    Tombstone,
    Unit,
    WriteRow,
)
from tests.contract.faults import Sound, caught_by


class ChangesHeld(Sound):
    """Takes what is held for something else."""

    def held(self, thread_id: str, mark: HeadMark) -> HeadMark:
        return mark

    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        return super().pull(thread_id, [self.held(thread_id, mark) for mark in held])


class ChangesEntries(Sound):
    """Changes what is sent."""

    def snapshot(self, before: Snapshot | None, snapshot: Snapshot) -> Snapshot:
        return snapshot

    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        answer = super().pull(thread_id, held)
        known = {
            mark.head.namespace: self.read(thread_id, mark.head.namespace, mark.head.checkpoint_id)
            for mark in held
        }
        entries = [
            entry._replace(snapshot=self.snapshot(known.get(entry.namespace), entry.snapshot))
            for entry in answer.entries
        ]
        return answer._replace(entries=entries)


class MarksWrites(Sound):
    """Has marks of its own."""

    def mark(self, writes: Sequence[WriteRow]) -> str:
        raise NotImplementedError

    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        answer = super().pull(thread_id, [mark._replace(writes=None) for mark in held])
        marks = {entry.namespace: self.mark(entry.snapshot.writes) for entry in answer.entries}
        known = {(m.head.namespace, m.head.checkpoint_id, m.writes) for m in held}
        return Pulled(
            [HeadMark(head, marks[head.namespace]) for head, _ in answer.heads],
            [
                entry
                for entry in answer.entries
                if (entry.namespace, entry.snapshot.head, marks[entry.namespace]) not in known
            ],
            answer.tombstone,
        )


class ChoosesHeads(Sound):
    """Takes other namespaces for live."""

    def is_live(self, thread_id: str, head: HeadRow, root: str | None) -> bool:
        raise NotImplementedError

    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        answer = super().pull(thread_id, held)
        sound = {mark.head.namespace for mark in answer.heads}
        listed = [
            head for row in self.threads(ThreadQuery(1, thread_id=thread_id)) for head in row.heads
        ]
        root = self.read(thread_id, "", None).head
        live = {h.namespace for h in listed if self.is_live(thread_id, h, root)}
        more = [head for head in listed if head.namespace in live - sound]
        return Pulled(
            [
                *(mark for mark in answer.heads if mark.head.namespace in live),
                *(HeadMark(head, "") for head in more),
            ],
            [
                *(entry for entry in answer.entries if entry.namespace in live),
                *(
                    Entry(thread_id, h.namespace, self.read(thread_id, h.namespace, None))
                    for h in more
                ),
            ],
            answer.tombstone,
        )


# -- what is held ------------------------------------------------------------------------------------------------------


@caught_by("test_what_is_held_is_not_sent", "test_a_head_that_moved_is_sent_less_what_is_held")
class SendsEverything(Sound):
    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        return super().pull(thread_id, [])


@caught_by(
    "test_a_head_that_moved_is_sent_less_what_is_held",
    "test_writes_that_changed_are_sent[data]",
    "test_where_the_held_writes_are_unknown_they_are_sent[one]",
)
class SendsAllValues(Sound):
    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        answer, told = super().pull(thread_id, held), super().pull(thread_id, [])
        lacking = {entry.namespace for entry in answer.entries}
        return answer._replace(entries=[e for e in told.entries if e.namespace in lacking])


@caught_by("test_a_head_that_moved_is_sent_less_what_is_held", "test_an_answer_is_of_one_moment")
class LeavesOutChannelsThatAreHeld(ChangesEntries):
    def snapshot(self, before: Snapshot | None, snapshot: Snapshot) -> Snapshot:
        names = before.checkpoint.versions if before and before.checkpoint else {}
        return snapshot._replace(blobs=[b for b in snapshot.blobs if b.channel not in names])


@caught_by("test_a_head_that_moved_is_sent_less_what_is_held")
class LeavesOutVersionsThatAreHeld(ChangesEntries):
    def snapshot(self, before: Snapshot | None, snapshot: Snapshot) -> Snapshot:
        names = before.checkpoint.versions if before and before.checkpoint else {}
        kept = [b for b in snapshot.blobs if b.version not in names.values()]
        return snapshot._replace(blobs=kept)


@caught_by("test_what_counts_is_the_held_checkpoint")
class LeavesOutWhatIsOlderThanTheHeldCheckpoint(ChangesEntries):
    def snapshot(self, before: Snapshot | None, snapshot: Snapshot) -> Snapshot:
        names = before.checkpoint.versions if before and before.checkpoint else {}
        kept = [b for b in snapshot.blobs if b.version > names.get(b.channel, "")]
        return snapshot._replace(blobs=kept)


@caught_by("test_a_held_checkpoint_that_is_not_stored", "test_a_deletion_is_told")
class TakesWhatIsHeldForStored(ChangesEntries):
    def snapshot(self, before: Snapshot | None, snapshot: Snapshot) -> Snapshot:
        unknown = before is not None and before.checkpoint is None
        return snapshot._replace(blobs=[]) if unknown else snapshot


@caught_by("test_namespaces_are_held_one_by_one", "test_what_is_held_is_not_sent")
class TakesWhatTheRootHeldForAll(Sound):
    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        roots = [mark for mark in held if mark.head.namespace == ""]
        names = {mark.head.namespace for mark in super().pull(thread_id, []).heads}
        spread = [m._replace(head=m.head._replace(namespace=n)) for m in roots for n in names]
        return super().pull(thread_id, spread)


# -- marks of writes ---------------------------------------------------------------------------------------------------


@caught_by("test_writes_that_changed_are_sent[added]", "test_writes_that_come_first_are_sent")
class LooksAtIdsOnly(ChangesHeld):
    def held(self, thread_id: str, mark: HeadMark) -> HeadMark:
        now = {m.head.namespace: m.writes for m in self.inner.pull(thread_id, []).heads}
        return mark._replace(writes=now.get(mark.head.namespace))


@caught_by(
    "test_writes_that_changed_are_sent[data]",
    "test_writes_that_changed_are_sent[channel]",
    "test_writes_that_changed_are_sent[path]",
    "test_writes_that_changed_are_sent[type]",
)
class CountsWrites(MarksWrites):
    def mark(self, writes: Sequence[WriteRow]) -> str:
        return str(len(writes) or "")


@caught_by("test_writes_that_changed_are_sent[added]")
class MarksTheLastWrite(MarksWrites):
    def mark(self, writes: Sequence[WriteRow]) -> str:
        return repr(writes[-1]) if writes else ""


@caught_by("test_writes_that_changed_are_sent[of-another-task]")
class MarksNoTasks(MarksWrites):
    def mark(self, writes: Sequence[WriteRow]) -> str:
        return repr({tuple(row[1:]) for row in writes}) if writes else ""


@caught_by("test_writes_that_changed_are_sent[letters-between-fields]")
class RunsFieldsTogether(MarksWrites):
    def mark(self, writes: Sequence[WriteRow]) -> str:
        text = "".join(str(field) for row in writes for field in row)
        return hashlib.sha256(text.encode()).hexdigest() if writes else ""


@caught_by("test_writes_that_come_first_are_sent")
class MarksNoWritesToo(MarksWrites):
    def mark(self, writes: Sequence[WriteRow]) -> str:
        return repr(list(writes))


@caught_by("test_only_writes_of_the_head_count")
class MarksTheMoment(MarksWrites):
    moment = 0

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        self.moment += 1
        return super().write(units)

    def mark(self, writes: Sequence[WriteRow]) -> str:
        return str(self.moment) if writes else ""


@caught_by("test_where_the_held_writes_are_unknown_they_are_sent[none]")
class TakesUnknownWritesForNone(ChangesHeld):
    def held(self, thread_id: str, mark: HeadMark) -> HeadMark:
        return mark._replace(writes=mark.writes or "")


# -- live heads --------------------------------------------------------------------------------------------------------


@caught_by("test_live_are_stateful_subgraphs_and_the_tasks_of_the_roots_head")
class PullsTheRootAlone(ChoosesHeads):
    def is_live(self, thread_id: str, head: HeadRow, root: str | None) -> bool:
        return head.namespace == ""


@caught_by("test_live_are_stateful_subgraphs_and_the_tasks_of_the_roots_head")
class PullsNoSubgraphsOfSubgraphs(ChoosesHeads):
    def is_live(self, thread_id: str, head: HeadRow, root: str | None) -> bool:
        row = self.read(thread_id, head.namespace, None).checkpoint
        is_task = ":" in head.namespace
        return "|" not in head.namespace and (not is_task or (row and row.root_id) == root)


@caught_by(
    "test_live_are_stateful_subgraphs_and_the_tasks_of_the_roots_head",
    "test_a_task_belongs_where_its_head_does",
    "test_without_a_roots_head_no_task_is_live",
)
class PullsAllHeads(ChoosesHeads):
    def is_live(self, thread_id: str, head: HeadRow, root: str | None) -> bool:
        return True


@caught_by("test_without_a_roots_head_no_task_is_live")
class ComparesNoRootToNone(ChoosesHeads):
    def is_live(self, thread_id: str, head: HeadRow, root: str | None) -> bool:
        row = self.read(thread_id, head.namespace, None).checkpoint
        return ":" not in head.namespace or (row and row.root_id) == root


@caught_by("test_a_task_belongs_where_its_head_does")
class TakesTasksByAnyCheckpoint(ChoosesHeads):
    def is_live(self, thread_id: str, head: HeadRow, root: str | None) -> bool:
        roots = {
            row.root_id
            for _, namespace, id in self.entries(thread_id=thread_id, namespace=head.namespace)
            if (row := self.read(thread_id, namespace, id).checkpoint)
        }
        return ":" not in head.namespace or (root is not None and root in roots)


@caught_by("test_branches_are_no_heads")
class PullsTheGreatestId(Sound):
    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        answer = super().pull(thread_id, held)
        newest = {n: id for _, n, id in reversed(self.entries(thread_id=thread_id))}
        heads = [
            mark._replace(head=mark.head._replace(checkpoint_id=newest[mark.head.namespace]))
            for mark in answer.heads
        ]
        return answer._replace(heads=heads)


@caught_by("test_pull_of_many")
class PullsAPage(Sound):
    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        answer = super().pull(thread_id, held)
        return answer._replace(entries=answer.entries[:100])


# -- the rest of an answer ---------------------------------------------------------------------------------------------


@caught_by("test_pull_tells_the_sends_of_old_formats")
class PullsNoSends(ChangesEntries):
    def snapshot(self, before: Snapshot | None, snapshot: Snapshot) -> Snapshot:
        return snapshot._replace(sends=())


@caught_by("test_pull_of_a_head", "test_an_answer_is_of_one_moment")
class SendsEntriesWithoutTheHead(ChangesEntries):
    def snapshot(self, before: Snapshot | None, snapshot: Snapshot) -> Snapshot:
        return snapshot._replace(head=None)


@caught_by("test_a_moved_head_is_pulled")
class TellsHeadsAsTheyWereHeld(Sound):
    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        answer = super().pull(thread_id, held)
        known = {(mark.head[:2], mark.writes): mark for mark in held}
        heads = [known.get((mark.head[:2], mark.writes), mark) for mark in answer.heads]
        return answer._replace(heads=heads)


@caught_by("test_what_is_pulled_survives")
class PullsPayloadsAsText(ChangesEntries):
    def snapshot(self, before: Snapshot | None, snapshot: Snapshot) -> Snapshot:
        blobs = [b._replace(data=b.data.decode(errors="replace").encode()) for b in snapshot.blobs]
        return snapshot._replace(blobs=blobs)


@caught_by("test_a_deletion_is_told")
class ForgetsADeletionOnceAThreadBeganAnew(Sound):
    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        answer = super().pull(thread_id, held)
        return answer._replace(tombstone=None if answer.heads else answer.tombstone)


@caught_by("test_a_deletion_is_told")
class TellsADeletionOnlyBesideHeads(Sound):
    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        answer = super().pull(thread_id, held)
        return answer if answer.heads else Pulled()


@caught_by("test_pruning_is_no_deletion", "test_pull_of_nothing")
class TakesWhatIsGoneForDeleted(Sound):
    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        answer = super().pull(thread_id, held)
        gone = Tombstone(0.0, "") if held and not answer.heads else None
        return answer._replace(tombstone=answer.tombstone or gone)


@caught_by("test_other_threads_do_not_count")
class TellsTheLastTombstone(Sound):
    dead: str | None = None

    def delete(self, thread_id: str, *, at: float) -> bool:
        self.dead = thread_id
        return super().delete(thread_id, at=at)

    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        dead = super().pull(self.dead or thread_id, []).tombstone
        return super().pull(thread_id, held)._replace(tombstone=dead)


@caught_by("test_an_answer_is_of_one_moment", "test_heads_of_one_batch_move_at_once")
class PullsInTwoSteps(Sound):
    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        heads = super().pull(thread_id, held).heads
        time.sleep(0.0001)  # lets a writer in between
        return super().pull(thread_id, held)._replace(heads=heads)
