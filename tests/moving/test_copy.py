"""Copies: complete, exact, not seen by half, never over what is another's."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from charm_checkpoint.backend import (
    Backend,
    BlobRow,
    CheckpointRow,
    Entry,
    HeadRow,
    MoveHead,
    Outcome,
    PutCheckpoint,
    PutWrites,
    Scan,
    Snapshot,
    ThreadQuery,
    Unit,
    WriteRow,
)
from charm_checkpoint.errors import (
    BackendError,
    ConfigError,
    DeletedInTargetError,
    InvalidIdError,
    ThreadExistsError,
    ThreadNotFoundError,
)
from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.moving import CopiedThread, Thread, copy_threads
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.sqlite import SqliteBackend
from charm_checkpoint.store import CheckpointStore, store_from_saver
from charm_checkpoint.testing.scenarios import SCENARIOS, chat, turn
from charm_memory_postgres import PostgresBackend
from tests.moving.support import at, entries, held, messages, names

Fresh = Callable[[str], SqliteBackend]


def outcomes(threads: Sequence[CopiedThread]) -> set[str]:
    return {thread.outcome for thread in threads}


class Watched:
    """A backend that counts its reads and writes, and shows what it has after each write."""

    def __init__(self, backend: Backend, look: Callable[[], object] = lambda: None) -> None:
        self._backend = backend
        self._look = look
        self.largest = 0
        self.writes: list[Sequence[Unit]] = []
        self.seen: list[object] = []

    def __getattr__(self, verb: str) -> Any:
        return getattr(self._backend, verb)

    def scan(self, query: Scan) -> Any:
        page = self._backend.scan(query)
        size = sum(len(b.data) for entry in page.entries for b in entry.snapshot.blobs)
        self.largest = max(self.largest, size)
        return page

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        self.writes.append(units)
        answer = self._backend.write(units)
        self.seen.append(self._look())
        return answer


def test_a_copy_is_complete_and_exact(origin: SqliteBackend, target: SqliteBackend) -> None:
    seen: list[tuple[int, int]] = []
    report = copy_threads(origin, target, progress=lambda *done: seen.append(done))
    assert outcomes(report.threads) == {"copied"}
    assert {t.thread_id for t in report.threads} == names(origin) == names(target)
    assert len(report.threads) == len(SCENARIOS) + 1
    for thread in report.threads:
        assert held(target, thread.thread_id) == held(origin, thread.thread_id)
        assert thread.sent == thread.checkpoints == len(entries(origin, thread.thread_id))
    assert (report.source, report.target) == (origin.name, target.name)
    assert seen == [(n, len(report.threads)) for n in range(len(report.threads) + 1)]


def test_a_second_copy_changes_nothing(origin: SqliteBackend, target: SqliteBackend) -> None:
    copy_threads(origin, target)
    watched = Watched(target)
    report = copy_threads(origin, watched)
    assert outcomes(report.threads) == {"same"}
    assert not watched.writes
    assert sum(thread.sent + thread.bytes for thread in report.threads) == 0


def test_only_named_threads(origin: SqliteBackend, target: SqliteBackend) -> None:
    copy_threads(origin, target, ["chat", "goto", "chat"])
    assert names(target) == {"chat", "goto"}
    with pytest.raises(ThreadNotFoundError, match="'nowhere'"):
        copy_threads(origin, target, ["messages", "nowhere"])
    assert names(target) == {"chat", "goto"}
    with pytest.raises(InvalidIdError):
        copy_threads(origin, target, [""])
    with pytest.raises(ConfigError, match="on_existing"):
        copy_threads(origin, target, on_existing="overwrite")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="int"):
        copy_threads(origin, 7)  # type: ignore[arg-type]


def test_a_dry_run_writes_nothing(origin: SqliteBackend, target: SqliteBackend) -> None:
    watched = Watched(target)
    report = copy_threads(origin, watched, dry_run=True)
    assert report.dry_run
    assert outcomes(report.threads) == {"copied"}
    assert sum(thread.sent for thread in report.threads) == len(entries(origin))
    assert not watched.writes
    assert not names(target)


def test_a_thread_is_seen_once_it_is_complete(origin: SqliteBackend, target: SqliteBackend) -> None:
    thread = "nested-subgraphs"
    watched = Watched(target, lambda: (names(target), target.read(thread, "", None).head))
    copy_threads(origin, watched, [thread])
    assert len(watched.seen) > 1
    assert all(seen == (set(), None) for seen in watched.seen[:-1])
    assert watched.seen[-1] == ({thread}, origin.read(thread, "", None).head)
    moves = watched.writes[-1]
    assert all(isinstance(unit, MoveHead) for unit in moves)


def test_threads_go_on_from_where_they_were(origin: SqliteBackend, target: SqliteBackend) -> None:
    """A copied question is answered; a copied chat goes on."""
    waiting = CheckpointSaver(MemoryBackend())
    asking = next(s for s in SCENARIOS if s.name == "nested-subgraphs")
    asking.build(waiting).invoke(turn("go"), at("waiting"))
    saver = CheckpointSaver(target, device="phone")
    copy_threads(waiting, saver)
    ended = []
    for graph in (asking.build(waiting), asking.build(saver)):
        state = graph.get_state(at("waiting"), subgraphs=True)
        assert [i.value for i in state.interrupts] == ["first?"]
        graph.invoke(Command(resume="one"), at("waiting"))
        ended.append(graph.invoke(Command(resume="two"), at("waiting")))
    assert ended[0] == ended[1]
    assert "two" in ended[0]["items"]

    copy_threads(origin, saver, ["messages"])
    told = messages(saver).invoke({"messages": [("user", "more")]}, at("messages"))["messages"]
    assert len(told) == 8


# -- the target has something already ----------------------------------------------------------------------------------


@pytest.fixture
def pair(target: SqliteBackend) -> tuple[CheckpointSaver, SqliteBackend]:
    """A store with a chat of one turn, and another one that has a copy of it."""
    saver = CheckpointSaver(MemoryBackend(), device="laptop")
    chat(saver).invoke(turn("a"), at("t"))
    copy_threads(saver, target)
    return saver, target


def test_an_earlier_state_is_brought_up_to_date(
    pair: tuple[CheckpointSaver, SqliteBackend],
) -> None:
    saver, target = pair
    before = len(entries(target))
    chat(saver).invoke(turn("b"), at("t"))
    [planned] = copy_threads(saver, target, dry_run=True).threads
    assert len(entries(target)) == before
    [copied] = copy_threads(saver, target).threads
    assert (planned.outcome, planned.sent) == (copied.outcome, copied.sent) == ("updated", 4)
    assert held(target, "t") == held(saver.engine.backend, "t")


class Dies(Exception):
    pass


class Dying(Watched):
    """A backend that is not reached any more when heads are to be set."""

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        if any(isinstance(unit, MoveHead) for unit in units):
            raise Dies
        return super().write(units)


@pytest.fixture(params=["sqlite", "postgres"])
def there(request: pytest.FixtureRequest, target: SqliteBackend) -> Iterator[Backend]:
    """Databases that tell in their own way since when a head is where it is."""
    if request.param == "sqlite":
        yield target
        return
    backend = PostgresBackend(request.getfixturevalue("bare_database"))
    yield backend
    backend.close()


def brought(saver: CheckpointSaver, there: Backend) -> None:
    """Copy the thread `t`, and that breaks off once before the heads are set."""
    before = held(there, "t")[0]
    with pytest.raises(Dies):
        copy_threads(saver, Dying(there), ["t"])
    assert held(there, "t")[0][1] == before[1], "the heads"
    [planned] = copy_threads(saver, there, ["t"], dry_run=True).threads
    [copied] = copy_threads(saver, there, ["t"]).threads
    assert (planned.outcome, copied.outcome, copied.sent) == ("updated", "updated", 0)
    assert held(there, "t") == held(saver.engine.backend, "t")
    assert outcomes(copy_threads(saver, there, ["t"]).threads) == {"same"}


def test_an_update_that_broke_off_goes_on(there: Backend) -> None:
    saver = CheckpointSaver(MemoryBackend(), device="laptop")
    chat(saver).invoke(turn("a"), at("t"))
    copy_threads(saver, there)
    for text in "bc":
        chat(saver).invoke(turn(text), at("t"))
        brought(saver, there)


def test_the_source_went_back_and_on_from_there(there: Backend) -> None:
    saver = CheckpointSaver(MemoryBackend(), device="laptop")
    graph = chat(saver)
    for text in "ab":
        graph.invoke(turn(text), at("t"))
    copy_threads(saver, there)
    for text in "cd":
        past = list(graph.get_state_history(at("t")))[4].config
        graph.update_state(past, {"items": [text]}, as_node="say")
        graph.invoke(turn(text), at("t"))
        brought(saver, there)


def test_an_update_of_a_fork_that_broke_off_goes_on(there: Backend) -> None:
    """Its head was moved where it is, in the source and so in the target."""
    store = store_from_saver(CheckpointSaver(MemoryBackend(), device="laptop"))
    assert isinstance(store, CheckpointStore)
    saver = store.get_langgraph_checkpointer()
    chat(saver).invoke(turn("a"), at("origin"))
    store.fork("origin", "t")
    copy_threads(saver, there, ["t"])
    chat(saver).invoke(turn("b"), at("t"))
    brought(saver, there)


def test_the_source_promoted_a_branch(target: SqliteBackend) -> None:
    saver = CheckpointSaver(MemoryBackend(), device="laptop")
    graph = chat(saver)
    graph.invoke(turn("a"), at("t"))
    left = saver.engine.backend.read("t", "", None).head
    graph.update_state(list(graph.get_state_history(at("t")))[2].config, {"items": ["aside"]})
    chosen = saver.engine.backend.read("t", "", None).head
    assert left
    assert chosen
    copy_threads(saver, target)
    saver.engine.backend.write([MoveHead("t", "", left, chosen, "laptop", time.time())])
    assert outcomes(copy_threads(saver, target).threads) == {"updated"}
    assert held(target, "t") == held(saver.engine.backend, "t")


def test_a_head_that_somebody_moved_back_there_stays(
    pair: tuple[CheckpointSaver, SqliteBackend],
) -> None:
    saver, target = pair
    head = target.read("t", "", None).checkpoint
    assert head is not None
    assert head.parent_id is not None
    back = MoveHead("t", "", head.parent_id, head.checkpoint_id, "laptop", time.time())
    target.write([back])
    for dry_run in (True, False):
        [left] = copy_threads(saver, target, on_existing="skip", dry_run=dry_run).left
        assert left.outcome == "differs"
    assert target.read("t", "", None).head == head.parent_id


def test_a_thread_that_went_on_there_is_left(
    pair: tuple[CheckpointSaver, SqliteBackend], fresh: Fresh
) -> None:
    saver, target = pair
    there = CheckpointSaver(target, device="phone")
    chat(there).invoke(turn("elsewhere"), at("t"))
    chat(saver).invoke(turn("b"), at("t"))
    chat(saver).invoke(turn("x"), at("other"))
    before = held(target, "t")
    with pytest.raises(ThreadExistsError, match=r"thread 't' .* in another state \(its checkpoint"):
        copy_threads(saver, target, ["t"])
    assert held(target, "t") == before
    report = copy_threads(saver, target, on_existing="skip")
    assert {t.thread_id: t.outcome for t in report.threads} == {"t": "differs", "other": "copied"}
    assert [t.thread_id for t in report.left] == ["t"]
    assert held(target, "t") == before
    assert copy_threads(saver, target, on_existing="skip", dry_run=True).left == report.left


def answer(checkpoint_id: str, value: bytes, idx: int = 0) -> PutWrites:
    row = WriteRow("task", idx, "items", "", "msgpack", value)
    return PutWrites("t", "", checkpoint_id, (row,))


@pytest.mark.parametrize("what", ["more", "other", "replaced", "head", "fields", "value"])
def test_other_differences(pair: tuple[CheckpointSaver, SqliteBackend], what: str) -> None:
    """Writes, where the thread goes on from, a checkpoint of the same id: nothing of it is changed."""
    saver, target = pair
    source = saver.engine.backend
    head = target.read("t", "", None).checkpoint
    assert head is not None
    if what == "more":
        target.write([answer(head.checkpoint_id, b"\xc0")])
    elif what == "other":
        target.write([answer(head.checkpoint_id, b"\xc0")])
        source.write([answer(head.checkpoint_id, b"\xc2")])
    elif what == "replaced":
        target.write([answer(head.checkpoint_id, b"\xc0", idx=-4)])
        source.write([answer(head.checkpoint_id, b"\xc2", idx=-4)])
    elif what == "head":
        assert head.parent_id is not None
        target.write([MoveHead("t", "", head.parent_id, head.checkpoint_id, "phone", 1.0)])
    elif what == "fields":
        for backend, body in ((source, b"{}"), (target, b'{"a":1}')):
            row = head._replace(checkpoint_id="ff", parent_id=head.checkpoint_id, body=body)
            backend.write([PutCheckpoint("t", "", row, (), False, "raise")])
    else:
        for backend, data in ((source, b"here"), (target, b"there")):
            row = head._replace(
                checkpoint_id="ff", parent_id=head.checkpoint_id, versions={"note": "v"}
            )
            blob = BlobRow("note", "v", "bytes", data)
            backend.write([PutCheckpoint("t", "", row, (blob,), False, "raise")])
    before = held(target, "t")
    [copied] = copy_threads(saver, target, on_existing="skip").threads
    assert copied.outcome == "differs"
    assert copied.detail
    assert held(target, "t") == before
    with pytest.raises(ThreadExistsError, match="another state"):
        copy_threads(saver, target)


def test_writes_that_came_later_are_brought(pair: tuple[CheckpointSaver, SqliteBackend]) -> None:
    saver, target = pair
    head = target.read("t", "", None).head
    assert head is not None
    saver.engine.backend.write([answer(head, b"\xc0")])
    [copied] = copy_threads(saver, target).threads
    assert copied.outcome == "updated"
    assert held(target, "t") == held(saver.engine.backend, "t")


def test_a_thread_that_was_deleted_there_does_not_come_back(
    pair: tuple[CheckpointSaver, SqliteBackend],
) -> None:
    saver, target = pair
    target.delete("t", at=1e9)
    with pytest.raises(
        DeletedInTargetError, match="'t' was deleted in the target at 2001-09"
    ) as caught:
        copy_threads(saver, target)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    [copied] = copy_threads(saver, target, on_existing="skip").threads
    assert copied.outcome == "deleted"
    assert not entries(target)

    # But its name may be used again.
    saver.delete_thread("t")
    chat(saver).invoke(turn("anew"), at("t"))
    assert outcomes(copy_threads(saver, target).threads) == {"copied"}


def test_somebody_begins_the_thread_meanwhile(origin: SqliteBackend, target: SqliteBackend) -> None:
    other = CheckpointSaver(target, device="phone")

    def begin() -> None:
        if len(watched.writes) == 1:
            chat(other).invoke(turn("me first"), at("messages"))

    watched = Watched(target, begin)
    with pytest.raises(ThreadExistsError, match="'messages'"):
        copy_threads(origin, watched, ["messages"])
    assert chat(other).get_state(at("messages")).values["items"] == ["me first", "said me first"]


# -- while agents work -------------------------------------------------------------------------------------------------


def test_agents_may_work_on_the_source(target: SqliteBackend) -> None:
    saver = CheckpointSaver(MemoryBackend(), device="laptop")
    graph = chat(saver)
    graph.invoke(turn("a"), at("t"))
    left = [turn("b"), turn("c")]

    def work() -> None:
        if left:
            graph.invoke(left.pop(), at("t"))

    [copied] = copy_threads(saver, Watched(target, work)).threads
    assert copied.outcome == "copied"
    assert not left
    assert held(target, "t") == held(saver.engine.backend, "t")


def test_an_agent_that_never_pauses(target: SqliteBackend) -> None:
    saver = CheckpointSaver(MemoryBackend(), device="laptop")
    graph = chat(saver)
    graph.invoke(turn("a"), at("t"))
    watched = Watched(target, lambda: graph.invoke(turn("more"), at("t")))
    with pytest.raises(BackendError, match="'t' changed each of the"):
        copy_threads(saver, watched)
    assert not names(target)


# -- odd threads -------------------------------------------------------------------------------------------------------


def test_pruned_threads_and_forks(target: SqliteBackend) -> None:
    """What has lost its parent stands on its own; branches stay branches."""
    saver = CheckpointSaver(MemoryBackend(), device="laptop")
    graph = chat(saver)
    for text in "abc":
        graph.invoke(turn(text), at("t"))
    past = list(graph.get_state_history(at("t")))[5].config
    graph.invoke(turn("fork"), past)
    graph.update_state(past, {"items": ["aside"]}, as_node="say")
    source = saver.engine.backend
    rows = sorted(e.snapshot.checkpoint.checkpoint_id for e in entries(source))  # type: ignore[union-attr]
    source.prune("t", [("", id) for id in rows[:3]])
    watched = Watched(target)
    assert outcomes(copy_threads(saver, watched).threads) == {"copied"}
    assert held(target, "t") == held(source, "t")
    puts = [u for units in watched.writes for u in units if isinstance(u, PutCheckpoint)]
    whole = [put for put in puts if put.whole]
    assert whole
    for put in whole:
        found = source.read("t", "", put.row.checkpoint_id).blobs
        assert sorted(put.blobs) == sorted(found)


class Sparse:
    """A saver that keeps a value with the first checkpoint that has it, and only names its version later."""

    name = "sparse"

    def threads(self) -> Any:
        return iter(["t"])

    def thread(self, thread_id: str) -> Thread:
        return Thread("t", 1.0, (HeadRow("", "2", "d", 2.0),))

    def entries(self, thread_id: str) -> Any:
        for id, parent, blobs in (("1", None, [BlobRow("c", "v", "bytes", b"x")]), ("2", "1", [])):
            row = CheckpointRow(id, parent, 4, b"{}", {"c": "v"}, b"{}", None, None, "d", 1.0)
            yield Entry("t", "", Snapshot(row, blobs))


def test_values_that_are_only_named(target: SqliteBackend) -> None:
    assert outcomes(copy_threads(Sparse(), target).threads) == {"copied"}
    assert outcomes(copy_threads(Sparse(), target).threads) == {"same"}
    [blob] = target.read("t", "", None).blobs
    assert blob.data == b"x"
    # But what the source never had is a difference.
    row = CheckpointRow("2", "1", 4, b"{}", {"c": "v", "d": "v"}, b"{}", None, None, "d", 1.0)
    other = MemoryBackend()
    first = next(Sparse().entries("t")).snapshot
    other.write([PutCheckpoint("t", "", first.checkpoint, tuple(first.blobs), False, "raise")])
    extra = BlobRow("d", "v", "bytes", b"y")
    other.write([PutCheckpoint("t", "", row, (extra,), True, "raise")])
    named = Sparse()
    named.entries = lambda thread_id: iter(  # type: ignore[method-assign]
        [Entry("t", "", first), Entry("t", "", Snapshot(row, []))]
    )
    with pytest.raises(ThreadExistsError, match="has a value of channel 'd'"):
        copy_threads(named, other)


def test_what_stands_alone_has_all_its_values(target: SqliteBackend) -> None:
    """Also what came with the checkpoint before it: of a pruned thread the target may forget that one."""
    pruned = Sparse()
    rows = [
        CheckpointRow(id, f"gone {id}", 4, b"{}", {"c": "v"}, b"{}", None, None, "d", 1.0)
        for id in ("1", "2")
    ]
    blob = BlobRow("c", "v", "bytes", b"x")
    pruned.entries = lambda thread_id: iter(  # type: ignore[method-assign]
        [Entry("t", "", Snapshot(row, [blob])) for row in rows]
    )
    watched = Watched(target)
    copy_threads(pruned, watched)
    puts = [u for units in watched.writes for u in units if isinstance(u, PutCheckpoint)]
    assert [(put.whole, put.blobs) for put in puts] == [(True, (blob,))] * 2


def test_pages_that_end_early(origin: SqliteBackend, target: SqliteBackend) -> None:
    """A backend may give less than was asked for."""

    class Short(Watched):
        def scan(self, query: Scan) -> Any:
            return super().scan(query._replace(limit=min(query.limit, 2)))

    report = copy_threads(Short(origin), Short(target))
    assert outcomes(report.threads) == {"copied"}
    for thread in names(origin):
        assert held(target, thread) == held(origin, thread)


def test_ids_against_the_order_of_time(target: SqliteBackend) -> None:
    """A device with a slow clock gave a child the smaller id, and old formats keep sends in the parent's writes."""
    source = MemoryBackend()
    saver = CheckpointSaver(source)
    chat(saver).invoke(turn("a"), at("t"))
    head = source.read("t", "", None).checkpoint
    assert head is not None
    slow = head._replace(checkpoint_id="0", parent_id=head.checkpoint_id, format=3)
    source.write([PutCheckpoint("t", "", slow, (), True, "raise")])
    sends = WriteRow("task", 0, "__pregel_tasks", "", "msgpack", b"\x90")
    source.write([PutWrites("t", "", head.checkpoint_id, (sends,))])
    # A forged cycle of parents ends, too.
    for id, parent in (("aa", "bb"), ("bb", "aa")):
        row = head._replace(checkpoint_id=id, parent_id=parent)
        source.write([PutCheckpoint("t", "", row, (), True, "beside", whole=True)])
    watched = Watched(target)
    copy_threads(source, watched)
    assert held(target, "t") == held(source, "t")
    assert target.read("t", "", "0").sends == [sends]
    puts = [u for units in watched.writes for u in units if isinstance(u, PutCheckpoint)]
    assert [put.row.checkpoint_id for put in puts if put.whole] == ["bb"]


@pytest.mark.parametrize("bad", ["", "a\x00b", "\ud800", "x" * 2000])
def test_ids_that_nobody_could_ask_for(target: SqliteBackend, bad: str) -> None:
    """Other savers take them; a copy would be there and could not even be deleted."""
    theirs = InMemorySaver()
    for thread in ("fine", bad):
        messages(theirs).invoke({"messages": [("user", "hi")]}, at(thread))
    report = copy_threads(theirs, target, on_existing="skip")
    assert {t.thread_id: t.outcome for t in report.threads} == {"fine": "copied", bad: "invalid"}
    assert [t.thread_id for t in report.left] == [bad]
    assert {entry.thread_id for entry in entries(target)} == {"fine"}
    with pytest.raises(InvalidIdError, match="a thread of InMemorySaver cannot be copied: its id"):
        copy_threads(theirs, target)


def test_odd_ids(target: SqliteBackend) -> None:
    saver = CheckpointSaver(MemoryBackend())
    for thread in ("a'b", "%", "😀\n", "-o", "a" * 1000):
        chat(saver).invoke(turn("x"), at(thread))
    copy_threads(saver, target)
    for thread in names(saver.engine.backend):
        assert held(target, thread) == held(saver.engine.backend, thread)


def test_memory_is_bounded(target: SqliteBackend) -> None:
    """Large values are read in small pages, and what did not change is sent once."""
    saver = CheckpointSaver(MemoryBackend())
    graph = chat(saver)
    large = "x" * 600_000
    graph.invoke({"items": [large]}, at("t"))
    for n in range(6):
        graph.invoke(turn(str(n)), at("t"))
    source, into = Watched(saver.engine.backend), Watched(target)
    [copied] = copy_threads(source, into).threads
    assert copied.bytes > 14_000_000
    assert source.largest < 12_000_000
    largest = max(
        sum(len(b.data) for u in units if isinstance(u, PutCheckpoint) for b in u.blobs)
        for units in into.writes
    )
    assert largest < 4_000_000
    assert held(target, "t") == held(saver.engine.backend, "t")


def test_when_a_thread_was_made(origin: SqliteBackend) -> None:
    """A store that dates threads by their first head gets it right, too."""

    class ByHeads(MemoryBackend):
        def __init__(self) -> None:
            super().__init__()
            self.made: dict[str, float] = {}

        def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
            for unit in units:
                if isinstance(unit, MoveHead):
                    self.made.setdefault(unit.thread_id, unit.at)
            return super().write(units)

    target = ByHeads()
    copy_threads(origin, target)
    for row in origin.threads(ThreadQuery()):
        assert target.made[row.thread_id] == row.created_at
