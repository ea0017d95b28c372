"""What a replica writes beyond a saver: forks over a named head, checkpoints without their parent, moved heads."""

from __future__ import annotations

import pytest

from charm_checkpoint.backend import Backend, HeadRow, OnConflict, Scan, ThreadQuery
from charm_checkpoint.testing.fixtures import BackendFixtures
from charm_checkpoint.testing.pull import heads_of, pull, sent
from charm_checkpoint.testing.rows import (
    AT,
    THREAD,
    beside_a_writer,
    blob,
    blobs_of,
    chain,
    contents,
    head,
    ids,
    move,
    pending,
    plain,
    put,
    read,
    statuses,
    store,
    write,
    writes_of,
)

_POLICIES: list[OnConflict] = ["raise", "branch", "overwrite"]
_LATER = AT + 1000


def _fork(backend: Backend, namespace: str = "") -> None:
    """1 and 2 on it, the head; and 3, a branch from 1."""
    chain(backend, "1", "2", namespace=namespace)
    branch = put("3", "1", blob("a"), namespace=namespace, fenced=True, on_conflict="branch")
    store(backend, branch)


class SyncContract(BackendFixtures):
    """`PutCheckpoint.over` and `whole`, and `MoveHead`, row by row."""

    # -- branches --------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("on_conflict", ["branch", "beside"])
    def test_a_branch_that_comes_again_is_answered_as_one(
        self, ready: Backend, on_conflict: OnConflict
    ) -> None:
        """The first answer may have been lost. A step that was stored is, whatever grew from it since."""
        chain(ready, "1", "2")
        step = put("3", "2", fenced=True, on_conflict="branch")
        branch = put("4", "1", fenced=True, on_conflict=on_conflict)
        for _ in range(2):
            assert statuses(ready.write([step, branch])) == ["stored", "branched"]
        [outcome] = ready.write([branch])
        assert outcome.head == HeadRow("", "3", "laptop", AT)
        store(ready, put("5", "3"))
        assert statuses(ready.write([step, branch])) == ["stored", "branched"]
        again = [branch._replace(fenced=False), branch._replace(on_conflict="raise")]
        assert statuses(ready.write(again)) == ["stored", "stored"]
        store(ready, move("4", over="5"))
        assert statuses(ready.write([step, branch])) == ["branched", "stored"]
        assert (head(ready), ids(ready)) == ("4", ["5", "4", "3", "2", "1"])

    @pytest.mark.parametrize("fenced", [True, False])
    def test_what_is_put_beside_leaves_the_head(self, ready: Backend, fenced: bool) -> None:
        """Also where it could have been the head, and where there is none."""
        chain(ready, "1", "2")
        for n, namespace in enumerate(["", "sub"]):
            unit = put("3", "2", blob("a"), fenced=fenced, on_conflict="beside")._replace(
                namespace=namespace, whole=True
            )
            [outcome] = ready.write([unit])
            assert outcome.status == "branched"
            assert outcome.head == (None if n else HeadRow("", "2", "laptop", AT))
            assert blobs_of(read(ready, "3", namespace=namespace)).keys() == {"a"}
        assert head(ready) == "2"
        orphan = put("5", "4", fenced=fenced, on_conflict="beside")
        assert statuses(ready.write([orphan])) == ["orphaned"]

    def test_a_deleted_first_step_that_comes_again_is_late(self, ready: Backend) -> None:
        """Its answer was lost, and the thread deleted meanwhile. Another first step begins the thread anew."""
        store(ready, put("4"), put("5", "4"), put("6", namespace="sub", root="5"))
        ready.delete(THREAD, at=_LATER)
        assert statuses(ready.write([put("4")])) == ["deleted"]
        store(ready, put("3"), put("7", "3"))
        ready.delete(THREAD, at=_LATER)
        late = [put("4"), put("3"), put("3", thread="other"), put("2")]
        assert statuses(ready.write(late)) == ["deleted", "deleted", "stored", "stored"]
        assert head(ready) == "2"

    # -- over ------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("on_conflict", _POLICIES)
    @pytest.mark.parametrize("parent", ["1", None])
    def test_a_fork_takes_the_place_of_the_head_that_its_writer_saw(
        self, ready: Backend, parent: str | None, on_conflict: OnConflict
    ) -> None:
        chain(ready, "1", "2", "3")
        fork = put("4", parent, fenced=True, on_conflict=on_conflict, over="3")
        assert statuses(ready.write([fork])) == ["stored"]
        assert head(ready) == "4"
        assert plain(read(ready, "4").checkpoint) == plain(fork.row)

    @pytest.mark.parametrize("parent", ["1", "3"])
    def test_a_fork_over_another_head_is_a_conflict(self, ready: Backend, parent: str) -> None:
        """Also where its parent is the head: `over` is what counts."""
        chain(ready, "1", "2", "3")
        store(ready, pending("4"))
        [outcome] = ready.write([put("4", parent, blob("a"), fenced=True, over="2")])
        assert outcome.status == "conflict"
        assert outcome.head == HeadRow("", "3", "laptop", AT)
        assert (head(ready), ids(ready)) == ("3", ["3", "2", "1"])
        store(ready, put("4", "3", versions={"a": "1"}))
        assert blobs_of(read(ready, "4")) == {}, "the refused checkpoint's blob was stored"
        assert not read(ready, "4").writes

    @pytest.mark.parametrize("parent", ["1", "3"])
    def test_a_fork_over_another_head_may_branch_or_overwrite(
        self, ready: Backend, parent: str
    ) -> None:
        chain(ready, "1", "2", "3")
        branch = put("4", parent, blob("a"), fenced=True, on_conflict="branch", over="2")
        [outcome] = ready.write([branch])
        assert outcome.status == "branched"
        assert outcome.head == HeadRow("", "3", "laptop", AT)
        assert (head(ready), ids(ready)) == ("3", ["4", "3", "2", "1"])
        assert blobs_of(read(ready, "4")).keys() == {"a"}
        store(ready, put("5", parent, fenced=True, on_conflict="overwrite", over="2"))
        assert head(ready) == "5"

    def test_over_the_parent_is_no_fork(self, ready: Backend) -> None:
        chain(ready, "1", "2")
        outcomes = ready.write([put(i, "2", fenced=True, over="2") for i in ("3", "4")])
        assert statuses(outcomes) == ["stored", "conflict"]
        assert head(ready) == "3"

    def test_what_is_not_fenced_is_over_anything(self, ready: Backend) -> None:
        chain(ready, "1", "2", "3")
        store(ready, put("4", "1", over="2"), put("5", "4", over="none", on_conflict="branch"))
        assert head(ready) == "5"

    def test_over_a_head_where_there_is_none(self, ready: Backend) -> None:
        store(ready, put("1", thread="other"), put("1", fenced=True, over="9"))
        assert head(ready) == "1"

    def test_a_head_does_not_stand_for_the_parent(self, ready: Backend) -> None:
        chain(ready, "1", "2")
        [outcome] = ready.write([put("4", "3", fenced=True, over="2")])
        assert (outcome.status, outcome.head) == ("orphaned", HeadRow("", "2", "laptop", AT))
        ready.delete(THREAD, at=_LATER)
        assert statuses(ready.write([put("3", "1", fenced=True, over="2")])) == ["deleted"]

    def test_the_same_fork_again_changes_nothing(self, ready: Backend) -> None:
        chain(ready, "1", "2")
        batch = [put("3", "1", fenced=True, over="2"), put("4", "3", fenced=True)]
        for _ in range(2):
            assert statuses(ready.write(batch)) == ["stored", "stored"]
        assert head(ready) == "4"

    # -- whole -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("fenced", [True, False])
    def test_a_whole_checkpoint_stands_without_its_parent(
        self, ready: Backend, fenced: bool
    ) -> None:
        unit = put(
            "5", "4", blob("a"), blob("b"), versions={"none": "1"}, whole=True, fenced=fenced
        )
        store(ready, pending("5"), unit)
        assert head(ready) == "5"
        found = read(ready, "5")
        assert plain(found.checkpoint) == plain(unit.row), "the parent's id stays"
        assert blobs_of(found).keys() == {"a", "b"}
        assert writes_of(found.writes) == [write()]
        assert ids(ready) == ["5"]
        [row] = ready.threads(ThreadQuery(limit=1))
        assert row.heads[0].checkpoint_id == "5"

    def test_a_whole_checkpoint_may_be_grown_from(self, ready: Backend) -> None:
        chain(ready, "1", "2")
        store(ready, put("5", "4", blob("a"), whole=True, fenced=True, over="2"))
        store(ready, put("6", "5", versions={"a": "1"}, fenced=True))
        assert (head(ready), set(blobs_of(read(ready, "6")))) == ("6", {"a"})
        ready.prune(THREAD, [("", "6"), ("", "5")])
        assert head(ready) == "2"

    def test_a_lineage_ends_at_a_whole_checkpoint(self, ready: Backend) -> None:
        store(ready, put("1", None, blob("b")), pending("4", write(channel="b")))
        store(ready, put("5", "4", blob("a"), whole=True), put("6", "5"))
        store(ready, pending("5", write(channel="a"), write(idx=1, channel="b")))
        [seed] = ready.lineage(THREAD, "", "6", ["a", "b"])
        assert (seed.checkpoint_id, [b.channel for b in seed.blobs]) == ("5", ["a"])
        assert [w.channel for w in seed.writes] == ["a", "b"]
        assert not [a for a in ready.lineage(THREAD, "", "5", ["b"]) if a.blobs or a.writes]

    def test_a_whole_checkpoint_may_have_its_parent(self, ready: Backend) -> None:
        store(ready, put("1", None, blob("a", "1", b"first")))
        store(ready, put("2", "1", blob("a", "1", b"other"), blob("b"), whole=True, fenced=True))
        assert head(ready) == "2"
        assert blobs_of(read(ready, "2"))["a"] == ("1", "bytes", b"first")

    def test_a_whole_checkpoint_is_fenced(self, ready: Backend) -> None:
        chain(ready, "1", "2")
        conflict = put("5", "4", blob("a"), whole=True, fenced=True)
        store(ready, pending("5"))
        [outcome] = ready.write([conflict])
        assert (outcome.status, outcome.head) == ("conflict", HeadRow("", "2", "laptop", AT))
        assert ids(ready) == ["2", "1"]
        [outcome] = ready.write([conflict._replace(on_conflict="branch")])
        assert (outcome.status, outcome.head) == ("branched", HeadRow("", "2", "laptop", AT))
        assert (head(ready), set(blobs_of(read(ready, "5")))) == ("2", {"a"})
        assert not read(ready, "5").writes
        child = put("6", "5", versions={"a": "1"}, fenced=True, on_conflict="branch")
        assert statuses(ready.write([child])) == ["branched"]
        assert blobs_of(read(ready, "6")).keys() == {"a"}
        store(ready, put("7", "6", whole=True, fenced=True, on_conflict="overwrite"))
        assert head(ready) == "7"

    def test_a_whole_checkpoint_does_not_undo_a_deletion(self, ready: Backend) -> None:
        chain(ready, "1", "2", "4")
        ready.delete(THREAD, at=_LATER)
        for late in (put("5", "3"), put("5", "4"), put("5", root="4"), put("5", "8", root="1")):
            [outcome] = ready.write([late._replace(whole=True)])
            assert (outcome.status, outcome.deleted_at) == ("deleted", _LATER)
        assert ids(ready) == []
        store(ready, put("6", "5", whole=True, fenced=True))
        assert head(ready) == "6"

    # -- moving the head -------------------------------------------------------------------------------------------

    def test_a_head_moves_to_a_branch(self, ready: Backend) -> None:
        _fork(ready)
        before = contents(ready, THREAD)
        assert statuses(ready.write([move("3", "2", at=_LATER)])) == ["stored"]
        assert head(ready) == "3"
        [row] = ready.threads(ThreadQuery(limit=9))
        assert list(row.heads) == [HeadRow("", "3", "phone", _LATER)]
        assert (row.created_at, row.updated_at) == (AT, _LATER)
        moved = {key: (*fields[:-1], "3") for key, fields in before.items()}
        assert contents(ready, THREAD) == moved, "only the head is another"
        store(ready, move("1", "3"))
        assert head(ready) == "1"

    def test_what_follows_a_moved_head(self, ready: Backend) -> None:
        """The fence is where the head is; so is the walk through its parents."""
        _fork(ready)
        store(ready, move("3", "2"), put("4", "3", fenced=True))
        assert statuses(ready.write([put("5", "2", fenced=True)])) == ["conflict"]
        assert [a.checkpoint_id for a in ready.lineage(THREAD, "", None, ["a"])] == ["3"]
        late = pending("2", write(channel="__error__"))
        store(ready, move("2", "4"), late._replace(fenced=True))
        assert statuses(ready.write([pending("4")._replace(fenced=True)])) == ["conflict"]
        [row] = ready.threads(ThreadQuery(limit=9))
        assert row.status == "failed"
        store(ready, put("5", "2", fenced=True))
        assert ready.prune(THREAD, [("", "5")]) == 1
        assert head(ready) == "2"

    @pytest.mark.parametrize("over", ["1", "2", "none"])
    def test_a_head_that_is_there_already_stays_as_it_is(self, ready: Backend, over: str) -> None:
        _fork(ready)
        store(ready, move("2", over, at=_LATER))
        [row] = ready.threads(ThreadQuery(limit=9))
        assert list(row.heads) == [HeadRow("", "2", "laptop", AT)]

    def test_the_same_move_again_changes_nothing(self, ready: Backend) -> None:
        _fork(ready)
        store(ready, move("3", "2", at=_LATER))
        store(ready, move("3", "2", at=_LATER + 1, device="tablet"))
        [row] = ready.threads(ThreadQuery(limit=9))
        assert list(row.heads) == [HeadRow("", "3", "phone", _LATER)]

    def test_a_head_does_not_move_to_what_is_not_stored(self, ready: Backend) -> None:
        _fork(ready)
        store(ready, put("7", namespace="sub"), put("8", thread="other"), pending("9"))
        for checkpoint_id in ("7", "8", "9"):
            for over in ("2", "3"):
                [outcome] = ready.write([move(checkpoint_id, over)])
                assert outcome.status == "orphaned"
                assert outcome.head == HeadRow("", "2", "laptop", AT)
        assert head(ready) == "2"
        store(ready, put("9", "2"))
        assert writes_of(read(ready, "9").writes) == [write()]

    def test_a_head_does_not_move_where_nothing_is(self, ready: Backend) -> None:
        chain(ready, "1")
        for unit in (move("1", "1", thread="unknown"), move("1", "1", namespace="sub")):
            [outcome] = ready.write([unit])
            assert (outcome.status, outcome.head) == ("orphaned", None)
        assert [row.thread_id for row in ready.threads(ThreadQuery(limit=9))] == [THREAD]
        assert ready.delete("unknown", at=_LATER) is False, "the refused move left something"

    @pytest.mark.parametrize("over", ["1", "3", "none"])
    def test_a_head_that_moved_meanwhile_stays(self, ready: Backend, over: str) -> None:
        _fork(ready)
        [outcome] = ready.write([move("3", over)])
        assert outcome.status == "conflict"
        assert outcome.head == HeadRow("", "2", "laptop", AT)
        assert head(ready) == "2"

    def test_a_head_that_was_pruned_is_not_the_one_decided_upon(self, ready: Backend) -> None:
        _fork(ready)
        ready.prune(THREAD, [("", "2")])
        [outcome] = ready.write([move("3", "2")])
        assert outcome.status == "conflict"
        assert outcome.head is not None
        assert outcome.head.checkpoint_id == "1"
        store(ready, move("3", "1"))
        assert head(ready) == "3"

    def test_no_head_moves_in_a_deleted_thread(self, ready: Backend) -> None:
        _fork(ready)
        ready.delete(THREAD, at=_LATER)
        [outcome] = ready.write([move("3", "2")])
        assert (outcome.status, outcome.head) == ("orphaned", None)
        assert ready.delete(THREAD, at=_LATER) is False, "the refused move left something"
        store(ready, put("0", device="tablet"))
        [outcome] = ready.write([move("3", "2")])
        assert (outcome.status, outcome.head) == ("orphaned", HeadRow("", "0", "tablet", AT))
        assert head(ready) == "0"

    def test_a_refused_move_does_not_disturb_the_others(self, ready: Backend) -> None:
        for namespace in ("", "a", "b"):
            _fork(ready, namespace)
        outcomes = ready.write(
            [
                move("3", "1", namespace="a"),
                move("3", "2", namespace="b"),
                put("4", "2", fenced=True),
                move("3", "2"),
                move("3", "4"),
                put("5", "3", fenced=True),
                move("9", "3", namespace="b"),
            ]
        )
        told = ["conflict", "stored", "stored", "conflict", "stored", "stored", "orphaned"]
        assert statuses(outcomes) == told
        assert [head(ready, namespace=n) for n in ("", "a", "b")] == ["5", "2", "3"]
        assert ids(ready, Scan(namespace="")) == ["5", "4", "3", "2", "1"]

    def test_no_head_moves_with_a_batch_that_fails(self, ready: Backend) -> None:
        """Text that no UTF-8 stands for is refused by most drivers."""
        _fork(ready)
        try:
            ready.write([move("3", "2"), put("4", "3", blob("a", type="lone \ud800"))])
        except Exception:  # noqa: BLE001 the contract leaves open which
            assert head(ready) == "2"
        else:
            assert head(ready) == "4"

    def test_a_moved_head_is_pulled(self, ready: Backend) -> None:
        """And the tasks that belong to it are live again."""
        _fork(ready)
        _fork(ready, "sub")
        store(ready, pending("3"), put("1", root="3", namespace="task:3"))
        store(ready, put("1", root="2", namespace="task:2"))
        held = pull(ready).heads
        store(ready, move("3", "2", at=_LATER))
        answer = pull(ready, *held)
        assert heads_of(answer) == {"": "3", "sub": "2", "task:3": "1"}
        assert sent(answer) == {"": {"a"}, "task:3": set()}
        store(ready, move("2", "3", at=_LATER + 1))
        answer = pull(ready, *held)
        assert not answer.entries
        assert {mark.head.moved_at for mark in answer.heads} == {AT, _LATER + 1}

    def test_heads_of_one_batch_move_at_once(self, ready: Backend) -> None:
        """What is promoted is a thread: its subgraphs go with the root."""
        names = ("", "a", "b")
        for namespace in names:
            _fork(ready, namespace)

        def step(n: int) -> None:
            to, over = ("2", "3") if n % 2 else ("3", "2")
            store(ready, *(move(to, over, namespace=name, at=AT + n) for name in names))

        def look() -> float:
            answer = ready.pull(THREAD, [])
            [checkpoint_id] = set(heads_of(answer).values())
            assert [e.snapshot.head for e in answer.entries] == [checkpoint_id] * len(names)
            [moved_at] = {mark.head.moved_at for mark in answer.heads}
            return moved_at

        beside_a_writer(step, look)
