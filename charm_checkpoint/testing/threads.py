"""`delete`, `copy` and `prune`: whole threads, and what stays of them."""

from __future__ import annotations

import pytest

from charm_checkpoint.backend import Backend, Scan, Seen, ThreadQuery, Unit
from charm_checkpoint.errors import ThreadExistsError, ThreadNotFoundError
from charm_checkpoint.testing.fixtures import BackendFixtures
from charm_checkpoint.testing.listing import thread_ids
from charm_checkpoint.testing.rows import (
    AT,
    THREAD,
    blob,
    blobs_of,
    chain,
    contents,
    head,
    ids,
    pending,
    put,
    read,
    statuses,
    store,
    write,
    writes_of,
)

_LATER = AT + 1000

# Of a thread that had 1, 2, 3, and 1 in "sub".
_LATE: dict[str, Unit] = {
    "child": put("4", "3"),
    "child-of-an-old-one": put("2", "1"),
    "child-in-a-namespace": put("4", "1", namespace="sub"),
    "under-a-root": put("9", root="3", namespace="sub:new"),
    "under-an-old-root": put("9", root="2", namespace="other"),
    "child-that-would-overwrite": put("4", "3", fenced=True, on_conflict="overwrite"),
    "child-that-would-branch": put("4", "3", fenced=True, on_conflict="branch"),
    "writes": pending("3"),
    "writes-of-an-old-one": pending("2"),
    "writes-in-a-namespace": pending("1", namespace="sub"),
}


class ThreadContract(BackendFixtures):
    """`Backend.delete`, `copy` and `prune` row by row."""

    # -- delete ----------------------------------------------------------------------------------------------------

    def test_delete_removes_a_thread_whole(self, ready: Backend) -> None:
        store(
            ready,
            put("1", None, blob("a")),
            put("2", None, namespace="sub"),
            put("3", "1", fenced=True),
            pending("3"),
            pending("4"),
        )
        assert ready.delete(THREAD, at=_LATER) is True
        assert ids(ready) == []
        assert thread_ids(ready) == []
        for namespace in ("", "sub"):
            found = read(ready, None, namespace=namespace)
            assert (found.checkpoint, found.head) == (None, None)
            assert found.deleted_through == "3"
        store(ready, put("5", versions={"a": "1"}), put("6", "5"), put("4", "6"))
        assert blobs_of(read(ready, "5")) == {}
        assert not read(ready, "4").writes

    def test_delete_of_nothing(self, ready: Backend) -> None:
        assert ready.delete("unknown", at=_LATER) is False
        assert read(ready, None, "unknown").deleted_through is None
        store(ready, put("1"))
        assert ready.delete(THREAD, at=_LATER) is True
        assert ready.delete(THREAD, at=_LATER + 1) is False
        assert read(ready, None).deleted_through == "1"

    def test_delete_leaves_other_threads(self, ready: Backend) -> None:
        others = ["thread2", "threa", "thread-2", "%", "_hread", "THREAD", "thread/", "thread:sub"]
        for thread in others:
            store(ready, put("1", None, blob("a"), thread=thread), pending("1", thread=thread))
        store(ready, put("1"))
        assert ready.delete(THREAD, at=_LATER) is True
        assert sorted(thread_ids(ready)) == sorted(others)
        for thread in others:
            found = read(ready, "1", thread)
            assert (len(found.blobs), len(found.writes)) == (1, 1)
            assert found.deleted_through is None

    @pytest.mark.parametrize("kind", _LATE)
    def test_late_writes_are_refused(self, ready: Backend, kind: str) -> None:
        chain(ready, "1", "2", "3")
        chain(ready, "1", namespace="sub")
        ready.delete(THREAD, at=_LATER)
        [outcome] = ready.write([_LATE[kind]])
        assert outcome.status == "deleted"
        assert outcome.deleted_at == _LATER
        assert ids(ready) == []
        assert thread_ids(ready) == []
        assert ready.delete(THREAD, at=_LATER) is False, "the late write left something"

    def test_a_late_checkpoint_takes_the_writes_that_came_first_with_it(
        self, ready: Backend
    ) -> None:
        chain(ready, "1", "2")
        ready.delete(THREAD, at=_LATER)
        store(ready, pending("3"), pending("4"))
        assert statuses(ready.write([put("3", "2")])) == ["deleted"]
        store(ready, put("3"), put("4", "3"))
        assert not read(ready, "3").writes
        assert writes_of(read(ready, "4").writes) == [write()]

    def test_being_late_comes_before_being_in_conflict(self, ready: Backend) -> None:
        chain(ready, "1", "2")
        ready.delete(THREAD, at=_LATER)
        store(ready, put("5", fenced=True))
        assert statuses(ready.write([put("3", "2", fenced=True)])) == ["deleted"]
        assert statuses(ready.write([put("6", "7", fenced=True)])) == ["conflict"]

    def test_a_thread_starts_anew(self, ready: Backend) -> None:
        """Also on a device whose clock gives ids below the deleted ones."""
        chain(ready, "3", "5")
        ready.delete(THREAD, at=_LATER)
        store(ready, put("4", fenced=True), pending("4"), put("2", "4", fenced=True))
        store(ready, put("1", root="4", namespace="sub"), pending("9"))
        assert head(ready) == "2"
        assert read(ready, None).deleted_through == "5"
        assert writes_of(read(ready, "4").writes) == [write()]
        assert thread_ids(ready) == [THREAD]

    def test_a_parent_above_the_tombstone_is_no_deleted_one(self, ready: Backend) -> None:
        """A root may be on its way, in a batch behind this one; a parent comes before its children."""
        chain(ready, "1", "2")
        ready.delete(THREAD, at=_LATER)
        store(ready, put("5", root="3", namespace="sub"))
        assert statuses(ready.write([put("4", "3")])) == ["orphaned"]

    def test_a_thread_starts_anew_with_a_batch(self, ready: Backend) -> None:
        chain(ready, "1", "2")
        ready.delete(THREAD, at=_LATER)
        outcomes = ready.write(
            [put("0"), put("00", "0"), pending("00"), put("3", "2"), pending("2")]
        )
        assert statuses(outcomes) == ["stored", "stored", "stored", "deleted", "deleted"]

    def test_a_tombstone_stays_and_grows(self, ready: Backend) -> None:
        chain(ready, "5")
        ready.delete(THREAD, at=_LATER)
        chain(ready, "3")
        ready.delete(THREAD, at=_LATER + 1)
        assert read(ready, None).deleted_through == "5"
        [outcome] = ready.write([pending("4")])
        assert (outcome.status, outcome.deleted_at) == ("deleted", _LATER + 1)
        chain(ready, "7")
        ready.delete(THREAD, at=_LATER + 2)
        assert read(ready, None).deleted_through == "7"

    def test_delete_of_a_thread_as_it_was_seen(self, ready: Backend) -> None:
        """For those that can: whatever came since, nothing is removed."""
        delete_if = getattr(ready, "delete_if", None)
        if delete_if is None:
            pytest.skip("this backend has no delete_if")
        chain(ready, "1", "2")
        chain(ready, "7", namespace="sub")
        seen = Seen({"": "2", "sub": "7"}, 3)
        others = (
            seen._replace(heads={"": "1", "sub": "7"}),
            seen._replace(heads={"": "2"}),
            seen._replace(checkpoints=2),
            seen._replace(checkpoints=4),
        )
        for other in others:
            assert delete_if(THREAD, other, at=_LATER) is False
        store(ready, put("3", "1", fenced=True, on_conflict="branch"))
        assert delete_if(THREAD, seen, at=_LATER) is False
        assert ids(ready) == ["7", "3", "2", "1"]
        assert read(ready, None).deleted_through is None
        assert delete_if(THREAD, seen._replace(checkpoints=4), at=_LATER) is True
        assert ids(ready) == []
        assert read(ready, None).deleted_through == "7"
        assert statuses(ready.write([put("4", "2")])) == ["deleted"]
        for gone in (seen, Seen({}, 0)):
            assert delete_if(THREAD, gone, at=_LATER) is False
            assert delete_if("unknown", gone, at=_LATER) is False
        assert read(ready, None, "unknown").deleted_through is None

    # -- copy ------------------------------------------------------------------------------------------------------

    def test_copy_copies_everything(self, ready: Backend) -> None:
        store(
            ready,
            put("1", None, blob("a", data=b"\x00"), run="r", root="x", format=3),
            put("2", "1", versions={"a": "1"}, format=3),
            put("3", "1", fenced=True, on_conflict="branch"),
            put("9", namespace="sub:1"),
            pending("1"),
            pending("2", write(idx=-1)),
        )
        before = contents(ready, THREAD)
        ready.copy(THREAD, "copy", at=_LATER)
        assert contents(ready, "copy") == before
        assert contents(ready, THREAD) == before
        assert (head(ready, "copy"), head(ready, "copy", "sub:1")) == ("2", "9")
        [row] = ready.threads(ThreadQuery(limit=1, thread_id="copy"))
        assert (row.created_at, row.updated_at) == (_LATER, AT)

    def test_a_copy_lives_by_itself(self, ready: Backend) -> None:
        store(ready, put("1", None, blob("a", "1")), pending("1"))
        ready.copy(THREAD, "copy", at=_LATER)
        store(ready, put("2", "1", thread="copy", fenced=True), pending("1", write("new")))
        assert (head(ready), head(ready, "copy")) == ("1", "2")
        assert len(read(ready, "1", "copy").writes) == 1
        ready.delete(THREAD, at=_LATER)
        assert blobs_of(read(ready, "1", "copy"))
        assert read(ready, None, "copy").deleted_through is None
        store(ready, put("3", "2", thread="copy", fenced=True))

    def test_copy_of_nothing(self, ready: Backend) -> None:
        store(ready, pending("1"))
        for source in ("unknown", THREAD):
            with pytest.raises(ThreadNotFoundError):
                ready.copy(source, "copy", at=_LATER)
        assert ids(ready, Scan(thread_id="copy")) == []

    @pytest.mark.parametrize("target", ["copy", THREAD])
    def test_copy_onto_a_thread(self, ready: Backend, target: str) -> None:
        chain(ready, "1", "2")
        chain(ready, "7", thread="copy")
        with pytest.raises(ThreadExistsError):
            ready.copy(THREAD, target, at=_LATER)
        assert ids(ready, Scan(thread_id="copy")) == ["7"]
        assert ids(ready, Scan(thread_id=THREAD)) == ["2", "1"]

    def test_copy_onto_a_deleted_thread(self, ready: Backend) -> None:
        chain(ready, "5", thread="copy")
        ready.delete("copy", at=_LATER)
        chain(ready, "1", "2")
        ready.copy(THREAD, "copy", at=_LATER)
        store(ready, put("3", "2", thread="copy", fenced=True))
        assert head(ready, "copy") == "3"

    # -- prune -----------------------------------------------------------------------------------------------------

    def test_prune_removes_what_is_named(self, ready: Backend) -> None:
        chain(ready, "1", "2", "3")
        chain(ready, "1", "2", namespace="sub")
        chain(ready, "1", "2", thread="other")
        store(ready, pending("1"), pending("3"))
        assert ready.prune(THREAD, [("", "1"), ("", "2"), ("sub", "1"), ("", "unknown")]) == 3
        assert sorted(contents(ready, THREAD)) == [("", "3"), ("sub", "2")]
        assert ids(ready, Scan(thread_id="other")) == ["2", "1"]
        assert (head(ready), head(ready, namespace="sub")) == ("3", "2")
        assert len(read(ready, "3").writes) == 1
        assert read(ready, None).deleted_through is None

    def test_prune_of_parents_in_a_circle_ends(self, ready: Backend) -> None:
        store(ready, put("2", "3", whole=True), put("3", "2"), put("1", on_conflict="beside"))
        assert ready.prune(THREAD, [("", "2"), ("", "3")]) == 2
        assert (head(ready), ids(ready)) == ("1", ["1"])

    def test_prune_again_finds_nothing(self, ready: Backend) -> None:
        chain(ready, "1", "2")
        assert ready.prune(THREAD, [("", "1")]) == 1
        assert ready.prune(THREAD, [("", "1")]) == 0
        assert ready.prune(THREAD, []) == 0
        assert ready.prune("unknown", [("", "1")]) == 0
        assert ids(ready) == ["2"]

    def test_prune_removes_writes(self, ready: Backend) -> None:
        chain(ready, "1", "2")
        store(ready, pending("1"))
        ready.prune(THREAD, [("", "1")])
        store(ready, put("1"))
        assert not read(ready, "1").writes

    def test_prune_keeps_blobs_that_others_need(self, ready: Backend) -> None:
        store(
            ready,
            put("1", None, blob("a", "1"), blob("b", "1"), blob("c", "1")),
            put("2", "1", blob("b", "2"), versions={"a": "1"}),
            put("3", "1", versions={"c": "1"}, fenced=True, on_conflict="branch"),
        )
        ready.prune(THREAD, [("", "1")])
        assert {c: b[0] for c, b in blobs_of(read(ready, "2")).items()} == {"a": "1", "b": "2"}
        assert {c: b[0] for c, b in blobs_of(read(ready, "3")).items()} == {"c": "1"}
        store(ready, put("4", versions={"b": "1"}))
        assert blobs_of(read(ready, "4")) == {}, "a blob that nothing refers to is still there"

    def test_prune_keeps_blobs_of_other_namespaces_apart(self, ready: Backend) -> None:
        store(ready, put("1", None, blob("a")), put("1", None, blob("a"), namespace="sub"))
        store(ready, put("2", "1"), put("2", "1", namespace="sub"))
        ready.prune(THREAD, [("", "1")])
        assert blobs_of(read(ready, "1", namespace="sub"))
        store(ready, put("3", versions={"a": "1"}))
        assert blobs_of(read(ready, "3")) == {}

    def test_a_pruned_head_moves_to_its_nearest_ancestor(self, ready: Backend) -> None:
        chain(ready, "1", "2", "3", "4")
        store(ready, put("9", "2", fenced=True, on_conflict="branch"))
        assert ready.prune(THREAD, [("", "4"), ("", "3")]) == 2
        assert head(ready) == "2"
        store(ready, put("5", "2", fenced=True))
        assert head(ready) == "5"

    def test_without_an_ancestor_it_moves_to_the_greatest_id(self, ready: Backend) -> None:
        store(ready, put("1"), put("5"), put("3"), put("4", "3", device="phone"))
        assert head(ready) == "4"
        ready.prune(THREAD, [("", "4"), ("", "3")])
        assert head(ready) == "5"

    def test_an_emptied_namespace_has_no_head(self, ready: Backend) -> None:
        chain(ready, "1", "2")
        chain(ready, "1", namespace="sub")
        assert ready.prune(THREAD, [("sub", "1")]) == 1
        assert (head(ready), head(ready, namespace="sub")) == ("2", None)
        [row] = ready.threads(ThreadQuery(limit=9))
        assert [h.namespace for h in row.heads] == [""]
        assert ready.prune(THREAD, [("", "2"), ("", "1")]) == 2
        assert head(ready) is None
        assert thread_ids(ready) == []
        assert statuses(ready.write([put("3", "2", fenced=True)])) == ["orphaned"]
        store(ready, put("3", fenced=True))
        assert head(ready) == "3"

    def test_a_pruned_parent_is_not_grown_from(self, ready: Backend) -> None:
        """What the child carries on from it may be gone."""
        store(ready, put("1", None, blob("a")), put("2", "1", blob("b")), pending("3"))
        ready.prune(THREAD, [("", "1")])
        for put_on_it in (put("3", "1", versions={"a": "1"}), put("3", "1", on_conflict="branch")):
            assert statuses(ready.write([put_on_it])) == ["orphaned"]
        assert (head(ready), ids(ready)) == ("2", ["2"])
        assert read(ready, "3").checkpoint is None
        store(ready, put("3", "2"))
        assert read(ready, "3").writes == [], "the refused checkpoint's writes were kept"
