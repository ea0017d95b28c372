"""`pull`: a thread's live heads, and what somebody who held them once lacks now."""

from __future__ import annotations

from collections.abc import Hashable

import pytest

from charm_checkpoint.backend import (
    Backend,
    HeadMark,
    HeadRow,
    Pulled,
    ThreadQuery,
    Tombstone,
    WriteRow,
)
from charm_checkpoint.testing.fixtures import BackendFixtures
from charm_checkpoint.testing.rows import (
    AT,
    THREAD,
    beside_a_writer,
    blob,
    blobs_of,
    chain,
    pending,
    plain,
    put,
    store,
    write,
    writes_of,
)

_LATER = AT + 1000

_FIRST = write("task", -1, "ab", path="cd", data=b"old", type="text")
_CHANGED: dict[str, WriteRow] = {
    "added": _FIRST._replace(idx=-2),
    "of-another-task": _FIRST._replace(task_id="ksat"),
    "data": _FIRST._replace(data=b"new"),
    "channel": _FIRST._replace(channel="ba"),
    "path": _FIRST._replace(task_path="dc"),
    "type": _FIRST._replace(type="texT"),
    "letters-between-fields": _FIRST._replace(channel="abc", task_path="d"),
}

# Around those of tasks in the order of their bytes, and after them.
_STATEFUL = ["sub", "sub|inner", "task", "task9", "task;", "task|", "é", "\U0001d11e"]


def pull(backend: Backend, *held: HeadMark, thread: str = THREAD) -> Pulled:
    """Ask, and hold the answer to what `threads` and `read` tell."""
    answer = backend.pull(thread, held)
    listed = {
        head
        for row in backend.threads(ThreadQuery(limit=1, thread_id=thread))
        for head in row.heads
    }
    told = [mark.head for mark in answer.heads]
    assert len({head.namespace for head in told}) == len(told)
    assert listed.issuperset(told)
    for mark in answer.heads:
        assert mark.writes is not None
        there = backend.read(thread, mark.head.namespace, None).writes
        assert bool(mark.writes) == bool(there), "the mark is empty just when there are no writes"

    assert len(heads_of(answer).keys() & sent(answer).keys()) == len(answer.entries)
    for entry in answer.entries:
        whole = backend.read(thread, entry.namespace, None)
        known = [
            backend.read(thread, entry.namespace, mark.head.checkpoint_id).checkpoint
            for mark in held
            if mark.head.namespace == entry.namespace
        ]
        names = next((row.versions for row in known if row is not None), {})
        missing = {c: b for c, b in blobs_of(whole).items() if names.get(c) != b[0]}
        assert (entry.thread_id, entry.snapshot.head) == (thread, whole.head)
        assert plain(entry.snapshot.checkpoint) == plain(whole.checkpoint)
        assert blobs_of(entry.snapshot) == missing
        assert writes_of(entry.snapshot.writes) == writes_of(whole.writes)
        assert writes_of(entry.snapshot.sends) == writes_of(whole.sends)
    return answer


def heads_of(answer: Pulled) -> dict[str, str]:
    """Namespace to the head's id."""
    return {mark.head.namespace: mark.head.checkpoint_id for mark in answer.heads}


def sent(answer: Pulled) -> dict[str, set[str]]:
    """Namespace of each entry to the channels it has blobs of."""
    return {entry.namespace: set(blobs_of(entry.snapshot)) for entry in answer.entries}


def marked(checkpoint_id: str, writes: str | None = "", namespace: str = "") -> HeadMark:
    return HeadMark(HeadRow(namespace, checkpoint_id, "laptop", AT), writes)


class PullContract(BackendFixtures):
    """`Backend.pull` row by row."""

    def test_pull_of_nothing(self, ready: Backend) -> None:
        store(ready, put("1", None, blob("a"), thread="other"), pending("1", thread="early"))
        for thread in ("unknown", "early"):
            for held in ([], [marked("1")], [marked("1", None)]):
                answer = pull(ready, *held, thread=thread)
                assert not [*answer.heads, *answer.entries]
                assert answer.tombstone is None

    def test_pull_of_a_head(self, ready: Backend) -> None:
        newest = put("2", "1", blob("a"), versions={"none": "3"}, device="phone", at=_LATER)
        store(ready, put("1"), newest, pending("2"), pending("1"))
        answer = pull(ready)
        [mark] = answer.heads
        assert mark.head == HeadRow("", "2", "phone", _LATER)
        [entry] = answer.entries
        assert plain(entry.snapshot.checkpoint) == plain(newest.row)
        assert sent(answer) == {"": {"a"}}
        assert writes_of(entry.snapshot.writes) == [write()]
        assert answer.tombstone is None

    def test_what_is_pulled_survives(self, ready: Backend) -> None:
        """Bytes, text and numbers are those that `read` gives."""
        text, every_byte = (
            rb'{"a":"NUL \u0000, lone \ud800, \" and \ud83d\ude80"}',
            bytes(range(256)),
        )
        blobs = [
            *(blob("a", f"{2:032}.0.1", every_byte), blob("b", "1", b""), blob("c", "01")),
            *(blob("null", type="null", data=b""), blob("flag", type="msgpack", data=b"\xc3")),
        ]
        store(
            ready,
            put("1", body=text, metadata=text, run="run", device="phone \U0001f4f1", at=AT + 1 / 3),
            put("2", "1", *blobs, body=text, metadata=text, root="r", at=AT + 1 / 3),
            pending(
                "2", write("z", data=every_byte), write("é", -3, data=b""), write("\U0001d11e")
            ),
        )
        store(ready, put("1", None, *blobs, namespace='odd "%s" \\ {}'))
        assert len(pull(ready).entries) == 2

    def test_pull_tells_the_sends_of_old_formats(self, ready: Backend) -> None:
        store(ready, put("1", format=3), put("2", "1", format=3))
        store(ready, pending("1", write("parent")), pending("2", write("own")))
        [entry] = pull(ready).entries
        assert writes_of(entry.snapshot.sends) == [write("parent")]
        assert writes_of(entry.snapshot.writes) == [write("own")]

    # -- what is held ----------------------------------------------------------------------------------------------

    def test_what_is_held_is_not_sent(self, ready: Backend) -> None:
        store(
            ready,
            *(put("1", None, blob("a")), pending("1")),
            *(put("2", None, blob("a"), namespace="sub"), put("3", root="1", namespace="task:1")),
        )
        first = pull(ready)
        assert sent(first) == {"": {"a"}, "sub": {"a"}, "task:1": set()}
        again = pull(ready, *first.heads)
        assert set(again.heads) == set(first.heads)
        assert not again.entries
        *others, left_out = first.heads
        assert sent(pull(ready, *others)).keys() == {left_out.head.namespace}

    def test_what_is_held_counts_elsewhere(self, ready: Backend, elsewhere: Backend) -> None:
        """A mark stands for what is stored, not for the connection that saw it."""
        store(ready, put("1", None, blob("a")), pending("1"))
        assert not pull(elsewhere, *pull(ready).heads).entries

    def test_a_head_that_moved_is_sent_less_what_is_held(self, ready: Backend) -> None:
        store(
            ready, put("1", None, *map(blob, ("same", "new", "gone", "text")), versions={"e": "1"})
        )
        held = pull(ready).heads
        versions = {"same": "1", "e": "1"}
        store(
            ready,
            put("2", "1", blob("new", "2"), blob("text", "01"), blob("more"), versions=versions),
        )
        answer = pull(ready, *held)
        assert (heads_of(answer), sent(answer)) == ({"": "2"}, {"": {"new", "text", "more"}})
        versions |= {"new": "2", "text": "01", "more": "1"}
        store(ready, put("3", "2", blob("new", "3"), versions={**versions, "new": "3"}))
        assert sent(pull(ready, *held)) == {"": {"new", "text", "more"}}
        assert sent(pull(ready, *answer.heads)) == {"": {"new"}}

    def test_what_counts_is_the_held_checkpoint(self, ready: Backend) -> None:
        """Not what was stored before it, and not the head's parents: it may be ahead, or on a branch."""
        store(
            ready,
            put("1", None, blob("a", "1"), blob("b", "1")),
            put("2", "1", blob("a", "2"), versions={"b": "1"}),
            put("3", "1", blob("b", "3"), fenced=True, on_conflict="branch", versions={"a": "1"}),
        )
        assert sent(pull(ready, marked("3"))) == {"": {"a", "b"}}
        store(ready, put("4", "1", versions={"a": "1", "b": "1"}))
        assert sent(pull(ready, marked("3"))) == {"": {"b"}}
        assert sent(pull(ready, marked("2"))) == {"": {"a"}}

    def test_a_held_checkpoint_that_is_not_stored(self, ready: Backend) -> None:
        """Pruned, never sent, or of another place: nothing is known of what it named."""
        store(
            ready,
            put("1", None, blob("a")),
            put("2", "1", versions={"a": "1"}),
            put("7", None, blob("a"), namespace="sub"),
            put("8", None, blob("a"), thread="other"),
        )
        ready.prune(THREAD, [("", "1")])
        for checkpoint_id in ("1", "3", "7", "8"):
            assert sent(pull(ready, marked(checkpoint_id)))[""] == {"a"}

    def test_of_several_that_are_held_the_first_that_is_stored_counts(self, ready: Backend) -> None:
        """Who wrote some a moment ago does not know which of them has come."""
        on_the_way = [marked("3", None), marked("2", None)]
        store(ready, put("1", None, blob("a"), blob("b")))
        assert sent(pull(ready, *on_the_way, marked("1"))) == {}
        store(ready, put("2", "1", blob("b", "2"), versions={"a": "1"}))
        assert sent(pull(ready, *on_the_way, marked("1"))) == {"": set()}
        store(ready, put("3", "2", blob("a", "3"), versions={"b": "2"}), put("4", "3", blob("c")))
        store(ready, put("5", "4", blob("d"), versions={"a": "3", "b": "2", "c": "1"}))
        assert sent(pull(ready, *on_the_way, marked("1"))) == {"": {"c", "d"}}
        assert sent(pull(ready, marked("1"), *on_the_way)) == {"": {"a", "b", "c", "d"}}

    def test_namespaces_are_held_one_by_one(self, ready: Backend) -> None:
        store(ready, put("1", None, blob("a")), put("1", None, blob("a"), namespace="sub"))
        assert sent(pull(ready, marked("1"))) == {"sub": {"a"}}
        assert sent(pull(ready, marked("1", namespace="sub"))) == {"": {"a"}}
        assert sent(pull(ready, marked("1", namespace="gone"))) == {"": {"a"}, "sub": {"a"}}

    @pytest.mark.parametrize("kind", _CHANGED)
    def test_writes_that_changed_are_sent(self, ready: Backend, kind: str) -> None:
        """All of the head's, without the values."""
        store(ready, put("1", None, blob("a")), pending("1", _FIRST))
        before = pull(ready)
        store(ready, pending("1", _CHANGED[kind]))
        after = pull(ready, *before.heads)
        assert sent(after) == {"": set()}
        assert after.heads[0].head == before.heads[0].head
        assert after.heads[0].writes != before.heads[0].writes
        assert not pull(ready, *after.heads).entries

    def test_writes_that_come_first_are_sent(self, ready: Backend) -> None:
        store(ready, put("1", None, blob("a")))
        assert not pull(ready, marked("1", "")).entries
        store(ready, pending("1"))
        [entry] = pull(ready, marked("1", "")).entries
        assert writes_of(entry.snapshot.writes) == [write()]

    @pytest.mark.parametrize("rows", [(), (write(),)], ids=["none", "one"])
    def test_where_the_held_writes_are_unknown_they_are_sent(
        self, ready: Backend, rows: tuple[WriteRow, ...]
    ) -> None:
        store(ready, put("1", None, blob("a")), *(pending("1", row) for row in rows))
        answer = pull(ready, marked("1", None))
        assert sent(answer) == {"": set()}
        assert writes_of(answer.entries[0].snapshot.writes) == [*rows]

    def test_only_writes_of_the_head_count(self, ready: Backend) -> None:
        chain(ready, "1", "2")
        store(ready, pending("2"), put("2", namespace="sub"), put("2", thread="other"))
        held = pull(ready).heads
        store(ready, pending("1"), pending("3"), pending("2", write("b"), thread="other"))
        assert not pull(ready, *held).entries
        store(ready, pending("2", namespace="sub"))
        assert sent(pull(ready, *held)).keys() == {"sub"}

    # -- live heads ------------------------------------------------------------------------------------------------

    def test_branches_are_no_heads(self, ready: Backend) -> None:
        chain(ready, "1", "2")
        held = pull(ready).heads
        store(ready, put("3", "1", blob("a"), fenced=True, on_conflict="branch"))
        answer = pull(ready, *held)
        assert (heads_of(answer), sent(answer)) == ({"": "2"}, {})

    def test_live_are_stateful_subgraphs_and_the_tasks_of_the_roots_head(
        self, ready: Backend
    ) -> None:
        running = [":", "task:1", "task:1|sub", "task:1|sub:2", "task|sub:3", "é:1"]
        finished = ["task:0", "task:1|sub:1", "task:2", "tasl:1", "é:2"]
        store(
            ready,
            *(put("1"), put("2", "1"), put("9", thread="other", root="2", namespace="task:8")),
            *(put("1", root="1", namespace=name) for name in (*finished, *_STATEFUL)),
            *(put("1", root="2", namespace=name) for name in running),
            put("1", namespace="task:of no root"),
        )
        live = {"": "2", **dict.fromkeys([*_STATEFUL, *running], "1")}
        first = pull(ready)
        assert heads_of(first) == live
        assert sent(first).keys() == live.keys()
        assert not pull(ready, *first.heads).entries
        store(ready, put("3", "2"))
        answer = pull(ready, *first.heads)
        assert heads_of(answer) == {"": "3", **dict.fromkeys(_STATEFUL, "1")}
        assert sent(answer) == {"": set()}

    def test_a_task_belongs_where_its_head_does(self, ready: Backend) -> None:
        chain(ready, "1", "2")
        for namespace, first, last in (("live:1", "1", "2"), ("over:1", "2", "1")):
            branch = put("3", "1", root="2", namespace=namespace, fenced=True, on_conflict="branch")
            store(ready, put("1", root=first, namespace=namespace))
            store(ready, put("2", "1", root=last, namespace=namespace), branch)
        assert heads_of(pull(ready)) == {"": "2", "live:1": "2"}

    def test_without_a_roots_head_no_task_is_live(self, ready: Backend) -> None:
        store(
            ready,
            put("1", root="9", namespace="task:1"),
            put("1", namespace="task:2"),
            put("1", namespace="sub"),
            pending("9"),
        )
        assert heads_of(pull(ready)) == {"sub": "1"}

    def test_other_threads_do_not_count(self, ready: Backend) -> None:
        for thread in (THREAD, "thread2", "threa", "_hread", "THREAD"):
            names = [("", blob("a", data=thread.encode())), ("sub", blob("b"))]
            store(ready, *(put("1", None, b, thread=thread, namespace=n) for n, b in names))
        ready.delete("threa", at=_LATER)
        store(ready, put("2", "1", blob("a", "2"), thread="thread2"), pending("1", thread="THREAD"))
        answer = pull(ready)
        assert heads_of(answer) == {"": "1", "sub": "1"}
        assert answer.tombstone is None
        assert not pull(ready, *answer.heads).entries

    def test_pull_of_many(self, ready: Backend) -> None:
        """More than a statement takes parameters, or a careless page has room for."""
        names = [f"task:{n}" for n in range(120)]
        wide = [blob(f"c{n}", "1") for n in range(1200)]
        store(ready, put("1", None, *wide))
        store(ready, *(put("1", None, blob("a"), root="1", namespace=name) for name in names))
        first = pull(ready)
        assert len(first.heads) == len(first.entries) == 121
        assert len(sent(first)[""]) == 1200
        assert not pull(ready, *first.heads).entries

    # -- deletion --------------------------------------------------------------------------------------------------

    def test_a_deletion_is_told(self, ready: Backend) -> None:
        store(ready, put("1", None, blob("a")), put("2", "1", versions={"a": "1"}), pending("2"))
        store(ready, put("1", namespace="sub"))
        held = pull(ready).heads
        ready.delete(THREAD, at=_LATER)
        for marks in ([], held):
            answer = pull(ready, *marks)
            assert not [*answer.heads, *answer.entries]
            assert answer.tombstone == Tombstone(_LATER, "2")
        store(ready, put("0", None, blob("a", data=b"anew")))
        answer = pull(ready, *held)
        assert (heads_of(answer), sent(answer)) == ({"": "0"}, {"": {"a"}})
        assert answer.tombstone == Tombstone(_LATER, "2")
        assert pull(ready, *answer.heads).tombstone == Tombstone(_LATER, "2")

    def test_pruning_is_no_deletion(self, ready: Backend) -> None:
        chain(ready, "1", "2")
        chain(ready, "1", namespace="sub")
        held = pull(ready).heads
        ready.prune(THREAD, [("", "2"), ("sub", "1")])
        assert heads_of(pull(ready, *held)) == {"": "1"}
        ready.prune(THREAD, [("", "1")])
        answer = pull(ready, *held)
        assert not [*answer.heads, *answer.entries]
        assert answer.tombstone is None

    # -- one view --------------------------------------------------------------------------------------------------

    def test_an_answer_is_of_one_moment(self, ready: Backend) -> None:
        """Beside a writer, heads, marks and entries belong together, in all namespaces."""
        names = ("", "sub", "task:1")
        held: list[HeadMark] = []

        def step(n: int) -> None:
            name, data = f"{n:06}", b"%d" % n
            parent = f"{n - 1:06}" if n else None
            value, kept = blob("a", name, data), {"kept": "1"} if n else {}
            first = () if n else (blob("kept"),)
            store(
                ready,
                *(
                    put(name, parent, value, *first, versions=kept, root=name, namespace=ns)
                    for ns in names
                ),
            )
            store(ready, *(pending(name, write(data=data), namespace=ns) for ns in names))

        def look() -> Hashable:
            answer = ready.pull(THREAD, held)
            assert heads_of(answer).keys() == set(names)
            [newest] = set(heads_of(answer).values())
            [written] = {bool(mark.writes) for mark in answer.heads}
            known = {mark.head.namespace: mark for mark in held}
            new = {m.head.namespace for m in answer.heads if m != known.get(m.head.namespace)}
            assert sent(answer).keys() == new
            for entry in answer.entries:
                row, old = entry.snapshot.checkpoint, known.get(entry.namespace)
                assert row is not None
                assert (row.checkpoint_id, entry.snapshot.head) == (newest, newest)
                moved = old is None or old.head.checkpoint_id != newest
                data = b"%d" % int(newest)
                assert blobs_of(entry.snapshot).get("a") == (
                    (newest, "bytes", data) if moved else None
                )
                assert [w.data for w in entry.snapshot.writes] == [data] * written
            held[:] = answer.heads
            return newest, written

        beside_a_writer(step, look)
