"""Idle threads: which are idle, and that nothing of one that wakes up is deleted."""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import pytest
from langgraph.channels import LastValue
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.pregel import NodeBuilder, Pregel
from langgraph.types import Command, Send, interrupt
from typing_extensions import TypedDict

from charm_checkpoint import Encryption
from charm_checkpoint.backend import Backend, Scan
from charm_checkpoint.errors import BackendUnavailable
from charm_checkpoint.keeping import is_unfinished
from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.retention import Pruned
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.sqlite import SqliteBackend
from charm_checkpoint.store import CheckpointStore, store_from_saver
from tests.core.support import Through, place
from tests.replica.support import Device
from tests.retention.conftest import MakeStore, later


class State(TypedDict):
    said: Annotated[list[str], operator.add]


def steps(saver: CheckpointSaver, third: Any = None, **options: Any) -> Any:
    """One, two, and a third that waits for both."""
    builder = StateGraph(State).add_node("one", lambda _: {"said": ["1"]})
    builder.add_node("two", lambda _: {"said": ["2"]})
    builder.add_node("three", third or (lambda _: {"said": ["3"]}))
    builder.add_edge(START, "one").add_edge("one", "two").add_edge(["one", "two"], "three")
    return builder.compile(checkpointer=saver, **options)


def short_names(saver: CheckpointSaver) -> Any:
    """Names that an empty set of names has in it, as it is stored."""
    builder = StateGraph(State)
    for name in ("s", "t", "u" * 40):
        builder.add_node(name, lambda _: {"said": []}).add_edge(START, name)
    builder.add_node("all", lambda _: {"said": []})
    builder.add_edge(["s", "t"], "all").add_edge(["u" * 40, "all"], END)
    return builder.compile(checkpointer=saver)


def fans_out(saver: CheckpointSaver, **options: Any) -> Any:
    builder = StateGraph(State).add_node("one", lambda _: {"said": ["1"]})
    builder.add_node("each", lambda state: {"said": state["said"]}).add_edge(START, "one")
    builder.add_conditional_edges("one", lambda _: [Send("each", {"said": [c]}) for c in "ab"])
    return builder.compile(checkpointer=saver, **options)


def fail(_: State) -> Any:
    raise ValueError("it fails")


def ask(_: State) -> Any:
    return {"said": [interrupt("?")]}


def nested(saver: CheckpointSaver, **inner: Any) -> Any:
    below = StateGraph(State).add_node("below", lambda _: {"said": ["b"]}).add_edge(START, "below")
    builder = StateGraph(State).add_node("sub", below.compile(**inner)).add_edge(START, "sub")
    return builder.compile(checkpointer=saver)


def function(saver: CheckpointSaver, fails: bool = False) -> Any:
    @task
    def part(x: State) -> State:
        return x

    @entrypoint(checkpointer=saver)
    def whole(x: State) -> State:
        done = part(x).result()
        return fail(done) if fails else done

    return whole


def by_hand(saver: CheckpointSaver) -> Any:
    nodes = {
        "p": NodeBuilder().subscribe_only("said").do(len).write_to("count"),
        "q": NodeBuilder().subscribe_only("count").do(lambda count: f"{count}").write_to("told"),
    }
    channels = {name: LastValue(object) for name in ("said", "count", "told")}
    names: Any = {"input_channels": ["said"], "output_channels": ["told"]}
    return Pregel(nodes=nodes, channels=channels, checkpointer=saver, **names)  # type: ignore[arg-type]


WAITING: dict[str, Callable[[CheckpointSaver], Any]] = {
    "before the first": lambda saver: steps(saver, interrupt_before=["one"]),
    "before": lambda saver: steps(saver, interrupt_before=["two"]),
    "after": lambda saver: steps(saver, interrupt_after=["one"]),
    "before one that waits for two": lambda saver: steps(saver, interrupt_before=["three"]),
    "before what was sent": lambda saver: fans_out(saver, interrupt_before=["each"]),
    "in a subgraph": lambda saver: nested(saver, interrupt_before=["below"]),
    "for an answer": lambda saver: steps(saver, ask),
    "failed": lambda saver: steps(saver, fail),
    "a failed function": lambda saver: function(saver, fails=True),
}

ENDED: dict[str, Callable[[CheckpointSaver], Any]] = {
    "steps": steps,
    "short names": short_names,
    "after the last": lambda saver: steps(saver, interrupt_after=["three"]),
    "what was sent": fans_out,
    "subgraph": nested,
    "a subgraph that lives on": lambda saver: nested(saver, checkpointer=True),
    "function": function,
    "by hand": by_hand,
}


def run(graph: Any) -> None:
    try:
        graph.invoke({"said": ["0"]}, place("t"))
    except ValueError as error:
        assert str(error) == "it fails"  # noqa: PT017 -- some fail


@pytest.mark.parametrize("kind", ["memory", "replica"])
@pytest.mark.parametrize("name", WAITING)
def test_one_that_waits_is_not_deleted(
    make_store: MakeStore, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(kind)
    graph = WAITING[name](store.get_langgraph_checkpointer())
    run(graph)
    before = graph.get_state(place("t"))
    assert before.next
    later(monkeypatch, 5)
    for dry in (True, False):
        [told] = store.prune({"idle_ttl": "4d", "keep_last": 1}, dry_run=dry).threads
        assert told.kept
        assert not told.checkpoints
    monkeypatch.undo()
    store.prune({"keep_last": 1})
    after = graph.get_state(place("t"))
    assert (after.values, after.next) == (before.values, before.next)
    if "failed" not in name:
        graph.invoke(Command(resume="yes") if name == "for an answer" else None, place("t"))
        assert graph.get_state(place("t")).next != before.next


@pytest.mark.parametrize("kind", ["memory", "replica"])
@pytest.mark.parametrize("name", ENDED)
def test_one_that_has_ended_is(
    make_store: MakeStore, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(kind)
    graph = ENDED[name](store.get_langgraph_checkpointer())
    run(graph)
    run(graph)
    assert not graph.get_state(place("t")).next
    later(monkeypatch, 5)
    [told] = store.prune({"idle_ttl": "4d"}).threads
    assert told.deleted
    assert store.thread("t") is None


def test_one_that_was_killed_within_a_step(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its task had written, and the step's checkpoint never came."""
    saver = store.get_langgraph_checkpointer()
    run(function(saver))
    found = saver.get_tuple(place("t"))
    assert found is not None
    saver.put_writes(found.config, [("said", "x")], "task")
    later(monkeypatch, 5)
    [told] = store.prune({"idle_ttl": "4d"}).threads
    assert "has not ended" in str(told.kept)


def test_a_subgraph_whose_question_has_not_reached_the_root(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = MemoryBackend()
    with closing(CheckpointSaver(backend)) as saver:
        run(nested(saver))
        below = StateGraph(State).add_node("ask", ask).add_edge(START, "ask").compile()
        builder = StateGraph(State).add_node("sub", below).add_edge(START, "sub")
        graph = builder.compile(checkpointer=saver)
        graph.invoke({"said": ["0"]}, place("t"))
        assert graph.get_state(place("t")).interrupts
        root = backend._threads["t"].namespaces[""]
        assert root.head is not None
        root.writes[root.head.checkpoint_id].clear()
        with store_from_saver(saver) as store:
            assert isinstance(store, CheckpointStore)
            assert store.thread("t").status == "idle"  # type: ignore[union-attr]
            done = store.prune({"keep_last": 1})
            assert done.threads == (Pruned("t", kept="it waits for an answer"),)


@pytest.mark.parametrize("name", ["before", "steps", "what was sent"])
def test_without_the_key(name: str) -> None:
    """What cannot be told of values that are encrypted counts as not ended."""
    backend, found = MemoryBackend(), {**WAITING, **ENDED}[name]
    with closing(CheckpointSaver(backend, encryption=Encryption(b"k" * 32))) as saver:
        graph = found(saver)
        run(graph)
        heads = backend.pull("t", ()).entries
        cannot_tell = name == "steps"
        assert [is_unfinished(e.snapshot) for e in heads] == [name in WAITING or cannot_tell]
        opened = Encryption(b"k" * 32).over(backend).pull("t", ()).entries
        assert [is_unfinished(e.snapshot) for e in opened] == [name in WAITING]


def test_a_branch_that_somebody_wrote_lately(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread's head is where it was all the time."""
    saver = store.get_langgraph_checkpointer()
    run(steps(saver))
    [*_, first] = saver.list(place("t"))
    later(monkeypatch, 5)
    row = saver.engine.call(lambda b: b.read("t", "", first.checkpoint["id"])).checkpoint
    assert row is not None
    saver.engine.call(lambda b: b.write([_beside(row, created_at=row.created_at + 4 * 86400)]))
    assert store.prune({"idle_ttl": "3d"}).threads == ()
    later(monkeypatch, 9)
    assert [t.deleted for t in store.prune({"idle_ttl": "3d"}).threads] == [True]


def _beside(row: Any, **changes: Any) -> Any:
    from charm_checkpoint.backend import PutCheckpoint

    new = row._replace(checkpoint_id=row.checkpoint_id[:-1] + "x", **changes)
    return PutCheckpoint("t", "", new, (), True, "beside")


# -- between the look and the deletion ---------------------------------------------------------------------------------


class Between(Through):
    """Lets an agent in right before a thread is deleted."""

    def __init__(self, backend: Backend, agent: Callable[[], object], fenced: bool = True) -> None:
        super().__init__(backend)
        self.agent = agent
        self.fenced = fenced

    def __getattr__(self, verb: str) -> Any:
        if verb == "delete_if" and not self.fenced:
            raise AttributeError(verb)
        if verb == ("delete_if" if self.fenced else "sizes"):
            self.agent()
        return super().__getattr__(verb)


def backends(kind: str, folder: Path) -> Backend:
    return MemoryBackend() if kind == "memory" else SqliteBackend(folder / "t.db")


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("what", ["a turn", "a branch"])
def test_a_step_right_before_the_deletion_is_not_lost(
    tmp_path: Path, kind: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backends(kind, tmp_path)
    with closing(CheckpointSaver(backend)) as agent:
        graph = steps(agent)
        run(graph)
        row = backend.read("t", "", None).checkpoint
        assert row is not None

        def branch() -> None:
            assert backend.write([_beside(row)])[0].status == "branched"

        act = branch if what == "a branch" else (lambda: run(graph))
        later(monkeypatch, 5)
        saver = CheckpointSaver(Between(backend, act))  # type: ignore[arg-type]
        store = store_from_saver(saver)
        assert isinstance(store, CheckpointStore)
        had = len(list(agent.list(place("t"))))
        assert store.prune({"idle_ttl": "4d"}).threads == ()
        assert len(list(agent.list(place("t")))) > had
        assert len(graph.get_state(place("t")).values["said"]) == (4 if act is branch else 8)


def test_a_backend_that_cannot_compare_is_looked_at_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = MemoryBackend()
    with closing(CheckpointSaver(backend)) as agent:
        graph = steps(agent)
        run(graph)
        later(monkeypatch, 5)
        wakes = iter([lambda: run(graph)])
        between = Between(backend, lambda: next(wakes, lambda: None)(), fenced=False)
        with store_from_saver(CheckpointSaver(between)) as store:  # type: ignore[arg-type]
            assert isinstance(store, CheckpointStore)
            assert store.prune({"idle_ttl": "4d"}).threads == ()
            assert len(graph.get_state(place("t")).values["said"]) == 8
            assert [t.deleted for t in store.prune({"idle_ttl": "1s"}).threads] == [True]
        assert backend.read("t", "", None).deleted_through


def test_another_device_goes_on_right_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = SqliteBackend(tmp_path / "remote.db")
    with closing(Device("phone", tmp_path / "phone.db", remote)) as phone:
        phone.turn("one")
        phone.sync()

        def go_on() -> None:
            phone.turn("two")
            phone.sync()

        later(monkeypatch, 5)
        between = Between(remote, go_on)
        with closing(Device("laptop", tmp_path / "laptop.db", between)) as laptop:  # type: ignore[arg-type]
            assert laptop.prune({"idle_ttl": "4d"}).threads == ()
            assert laptop.said() == ["one", "two"]
            assert phone.turn("three")
            phone.sync()
            between.agent = lambda: None
            later(monkeypatch, 9)
            assert [t.deleted for t in laptop.prune({"idle_ttl": "4d"}).threads] == [True]
            assert laptop.said() == []
            assert phone.said() == []
    remote.close()


# -- counting ----------------------------------------------------------------------------------------------------------


class Loses(Through):
    """Does what it is told, and loses each answer once."""

    verbs = ("delete_if", "delete", "prune")

    def __getattr__(self, verb: str) -> Any:
        found = super().__getattr__(verb)
        if verb not in self.verbs:
            return found
        lost: list[str] = self.__dict__.setdefault("lost", [])

        def call(*args: Any, **options: Any) -> Any:
            answer = found(*args, **options)
            if repr(args) not in lost:
                lost.append(repr(args))
                raise BackendUnavailable("the answer was lost")
            return answer

        return call


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_counts_where_answers_are_lost(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charm_checkpoint.retention._BATCH", 4)
    backend = backends(kind, tmp_path)
    saver = CheckpointSaver(Loses(backend))  # type: ignore[arg-type]
    with store_from_saver(saver) as store:
        assert isinstance(store, CheckpointStore)
        for _ in range(4):
            run(steps(saver))
        had = len(list(saver.list(place("t"))))
        done = store.prune({"keep_last": 3})
        left = len(list(saver.list(place("t"))))
        assert (done.checkpoints, left) == (had - 3, 3)
        later(monkeypatch, 5)
        [told] = store.prune({"idle_ttl": "4d"}).threads
        assert (told.checkpoints, told.deleted) == (3, True)
        assert not backend.scan(Scan(thread_id="t")).entries
