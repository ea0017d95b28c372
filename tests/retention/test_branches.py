"""Branches: those that somebody may still go on from stay, the others go with the history."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated, Any

import pytest
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt
from typing_extensions import TypedDict

from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.moving import copy_threads
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.sqlite import SqliteBackend
from charm_checkpoint.store import CheckpointStore, store_from_saver
from charm_checkpoint.testing import rows
from tests.core.support import chat_graph, id_of, place, put
from tests.replica.support import Device
from tests.retention.conftest import later

KEEP_ONE = {"keep_last": 1}


def opened(backend: Any, device: str = "laptop", **options: Any) -> CheckpointStore:
    store = store_from_saver(CheckpointSaver(backend, device=device, **options))
    assert isinstance(store, CheckpointStore)
    return store


def graph_of(store: CheckpointStore) -> Any:
    return chat_graph(store.get_langgraph_checkpointer())


def ids(store: CheckpointStore) -> set[str]:
    return {id_of(found.config) for found in store.history("t")}


def said(store: CheckpointStore, checkpoint_id: str | None = None) -> list[str]:
    turns: list[str] = graph_of(store).get_state(place("t", checkpoint_id)).values["turns"]
    return [turn for turn in turns if not turn.startswith("re ")]


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


def lose(backend: MemoryBackend) -> tuple[CheckpointStore, CheckpointStore, str]:
    """Let two devices go on from one checkpoint. Returns their stores, and where the loser's branch ends."""
    laptop, phone = (opened(backend, name, on_conflict="branch") for name in ("laptop", "phone"))
    for turn in range(3):
        graph_of(laptop).invoke({"turns": [f"both {turn}"]}, place("t"))
    saver = phone.get_langgraph_checkpointer()
    read = saver.get_tuple(place("t"))
    assert read is not None
    for text in ("laptop", "on"):
        graph_of(laptop).invoke({"turns": [text]}, place("t"))
    turns = read.checkpoint["channel_values"]["turns"]
    first = put(saver, read.config, turns=[*turns, "phone"])
    tip = put(saver, first, turns=[*turns, "phone", "re phone"])
    assert said(laptop)[-1] == "on"
    return laptop, phone, id_of(tip)


def test_the_branch_of_another_device_stays(backend: MemoryBackend) -> None:
    laptop, phone, tip = lose(backend)
    had = ids(laptop)
    tried = laptop.prune(KEEP_ONE, dry_run=True)
    done = laptop.prune(KEEP_ONE)
    left = ids(laptop)
    assert tried.checkpoints == done.checkpoints == len(had) - len(left) > 0
    assert said(phone, tip) == ["both 0", "both 1", "both 2", "phone"]
    for _ in range(3):
        graph_of(laptop).invoke({"turns": ["more"]}, place("t"))
        laptop.prune(KEEP_ONE)
        laptop.get_langgraph_checkpointer().prune(["t"])
    assert tip in ids(laptop)
    assert said(phone, tip)[-1] == "phone"
    told = graph_of(phone).invoke({"turns": ["again"]}, place("t", tip))
    assert "phone" in told["turns"]


def test_who_goes_back_leaves_nothing(backend: MemoryBackend) -> None:
    """What the same device left behind is history like any other."""
    store = opened(backend)
    graph = graph_of(store)
    for turn in range(3):
        graph.invoke({"turns": [f"{turn}"]}, place("t"))
    tip = id_of(graph.get_state(place("t")).config)
    ended = [state for state in graph.get_state_history(place("t")) if not state.next]
    graph.invoke({"turns": ["otherwise"]}, ended[1].config)
    assert len(said(store)) == 3
    store.prune({"keep_last": 2})
    assert tip not in ids(store)
    store.prune(KEEP_ONE)
    assert len(ids(store)) == 1


class State(TypedDict):
    said: Annotated[list[str], operator.add]


def asks(saver: CheckpointSaver) -> Any:
    """Asks in a subgraph, when it is told to."""

    def ask(state: State) -> Any:
        return {"said": [interrupt("?")] if state["said"][-1] == "ask" else []}

    below = StateGraph(State).add_node("ask", ask).add_edge(START, "ask").compile()
    builder = StateGraph(State).add_node("sub", below).add_edge(START, "sub")
    return builder.compile(checkpointer=saver)


def test_a_branch_that_waits_for_an_answer_stays(backend: MemoryBackend) -> None:
    store = opened(backend)
    graph = asks(store.get_langgraph_checkpointer())
    for turn in range(3):
        graph.invoke({"said": [f"{turn}"]}, place("t"))
    before = graph.get_state(place("t")).config
    graph.invoke({"said": ["ask"]}, place("t"))
    asking = graph.get_state(place("t")).config
    graph.invoke({"said": ["never mind"]}, before)
    graph.invoke({"said": ["on"]}, place("t"))
    for _ in range(2):
        assert store.prune(KEEP_ONE).threads or _
        state = graph.get_state(place("t", id_of(asking)), subgraphs=True)
        assert [each.value for each in state.interrupts] == ["?"]
    told = graph.invoke(Command(resume="well"), place("t", id_of(asking)))
    assert told["said"][-1] == "well"


def test_an_idle_thread_whose_branch_waits_for_an_answer_stays(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(backend)
    graph = asks(store.get_langgraph_checkpointer())
    graph.invoke({"said": ["0"]}, place("t"))
    before = graph.get_state(place("t")).config
    graph.invoke({"said": ["ask"]}, place("t"))
    graph.invoke({"said": ["never mind"]}, before)
    later(monkeypatch, 5)
    [told] = store.prune({"idle_ttl": "4d"}).threads
    assert told.kept == "it waits for an answer"


def test_a_copy_that_is_under_way_stays(tmp_path: Path, backend: MemoryBackend) -> None:
    """Its newest steps are beside the head until all have come."""
    source = opened(SqliteBackend(tmp_path / "source.db"))
    graph = graph_of(source)
    graph.invoke({"turns": ["one"]}, place("t"))
    copy_threads(source, backend)
    graph.invoke({"turns": ["two"]}, place("t"))
    store = opened(backend)

    class Stops(MemoryBackend):
        def write(self, units: Any) -> Any:
            if any(type(unit).__name__ == "MoveHead" for unit in units):
                store.prune({"max_age": 0})
            return backend.write(units)

        def __getattribute__(self, name: str) -> Any:
            own = name == "write" or name.startswith("__")
            return super().__getattribute__(name) if own else getattr(backend, name)

    report = copy_threads(source, Stops())
    assert [each.outcome for each in report.threads] == ["updated"]
    assert said(store) == ["one", "two"]
    source.close()


def test_a_namespace_without_a_head_is_left_alone(tmp_path: Path, backend: MemoryBackend) -> None:
    """A copy that has only begun, of a thread whose subgraph is there already."""
    parents = (("1", None), ("2", "1"))
    rows.store(
        backend,
        *(rows.put(*each, thread="t", on_conflict="beside") for each in parents),
        rows.pending("2", thread="t"),
        *(rows.put(*each, thread="t", namespace="sub") for each in parents),
    )
    store = opened(backend)
    assert store.prune(KEEP_ONE).checkpoints == 1
    assert [
        (ns, len(found.checkpoints)) for ns, found in backend._threads["t"].namespaces.items()
    ] == [
        ("", 2),
        ("sub", 1),
    ]


# -- replicas ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[tuple[Device, Device]]:
    """Two with one remote, the first of which lost."""
    remote = SqliteBackend(tmp_path / "remote.db")
    with ExitStack() as stack:
        # Of one name: only the list of conflicts tells that one of them lost.
        one, other = (
            stack.enter_context(closing(Device("laptop", tmp_path / f"{n}.db", remote)))
            for n in "ab"
        )
        stack.callback(remote.close)
        for turn in range(3):
            one.turn(f"both {turn}")
        one.sync()
        other.turn("other")
        one.away()
        other.sync()
        one.turn("one")
        one.turn("one more")
        one.back()
        other.turn("on")
        other.sync()
        assert one.conflict()
        yield one, other


def test_a_conflict_can_be_decided_after_pruning(devices: tuple[Device, Device]) -> None:
    one, _ = devices
    assert one.prune(KEEP_ONE).checkpoints
    assert not one.prune(KEEP_ONE).checkpoints
    assert one.said()[-1] == "on"
    one.promote(one.conflict())
    assert one.said() == ["both 0", "both 1", "both 2", "one", "one more"]
    assert one.turn("and on")


def test_a_dismissed_one_goes(devices: tuple[Device, Device]) -> None:
    one, _ = devices
    tip = one.conflict().tip_id
    one.dismiss(one.conflict())
    one.prune(KEEP_ONE)
    assert tip not in ids(one)
    assert len(ids(one)) == 1


def test_an_idle_thread_with_a_conflict_stays(
    devices: tuple[Device, Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = devices
    later(monkeypatch, 5)
    [told] = one.prune({"idle_ttl": "4d"}).threads
    assert "somebody has to decide about" in str(told.kept)
    one.dismiss(one.conflict())
    assert [t.deleted for t in one.prune({"idle_ttl": "4d"}).threads] == [True]
