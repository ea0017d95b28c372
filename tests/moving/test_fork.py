"""Forks: what led to a checkpoint, and nothing else; they go on as if nothing had come after it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from langgraph.channels import DeltaChannel
from langgraph.graph import START, StateGraph
from langgraph.types import Command
from typing_extensions import TypedDict

from charm_checkpoint import open_store
from charm_checkpoint.backend import SENDS_IN_PARENT_BELOW, PutCheckpoint, PutWrites, WriteRow
from charm_checkpoint.errors import (
    CheckpointNotFoundError,
    DeletedInTargetError,
    InvalidIdError,
    ThreadExistsError,
    ThreadNotFoundError,
)
from charm_checkpoint.moving.copying import Copier
from charm_checkpoint.store import CheckpointStore
from charm_checkpoint.testing.scenarios import SCENARIOS, turn
from tests.moving.support import at, entries, held


class Log(TypedDict):
    log: Annotated[
        list[str], DeltaChannel(lambda old, writes: [*old, *(x for w in writes for x in w)])
    ]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CheckpointStore]:
    with open_store(f"sqlite:///{tmp_path}/threads.db", device="laptop") as opened:
        assert isinstance(opened, CheckpointStore)
        yield opened


def graph_of(name: str, store: CheckpointStore) -> Any:
    return next(s for s in SCENARIOS if s.name == name).build(store.get_langgraph_checkpointer())


def ids(store: CheckpointStore, thread: str, namespace: str = "") -> list[str]:
    return [t.checkpoint["id"] for t in store.history(thread, namespace=namespace)]


def test_from_the_newest(store: CheckpointStore) -> None:
    graph = graph_of("chat", store)
    graph.invoke(turn("a"), at("t"))
    graph.invoke(turn("b"), at("t"))
    before = held(store.get_langgraph_checkpointer().engine.backend, "t")
    info = store.fork("t", "new")
    assert (info.thread_id, info.checkpoint_id) == ("new", ids(store, "t")[0])
    assert (info.device, info.status) == ("laptop", "idle")
    assert ids(store, "new") == ids(store, "t")
    assert [i.thread_id for i in store.threads()] == ["new", "t"]
    assert graph.get_state(at("new")).values == graph.get_state(at("t")).values
    assert graph.invoke(turn("c"), at("new"))["items"][-1] == "said c"
    assert held(store.get_langgraph_checkpointer().engine.backend, "t") == before


def test_from_an_older_one(store: CheckpointStore) -> None:
    """What came after is not there, branches neither; the step runs again."""
    graph = graph_of("chat", store)
    graph.invoke(turn("a"), at("t"))
    past = graph.get_state(at("t"))
    graph.invoke(turn("b"), at("t"))
    graph.update_state(past.config, {"items": ["aside"]}, as_node="say")
    wanted = next(
        s
        for s in graph.get_state_history(at("t"))
        if s.values["items"][-1:] == ["b"] and s.next == ("say",)
    )
    checkpoint_id = wanted.config["configurable"]["checkpoint_id"]
    assert store.fork("t", "new", at=checkpoint_id).checkpoint_id == checkpoint_id
    made = graph.get_state(at("new"))
    assert (made.values, made.next) == (wanted.values, ("say",))
    assert not made.tasks[0].result
    told = list(graph.get_state_history(at("new")))
    chain, step = [], wanted
    while step.parent_config is not None:
        chain.append(step.values)
        step = graph.get_state(step.parent_config)
    assert [s.values for s in told] == [*chain, step.values]
    assert all("aside" not in s.values["items"] for s in told)
    graph.update_state(at("new"), {"items": ["changed"]})
    assert graph.invoke(None, at("new"))["items"][-2:] == ["changed", "said changed"]


def test_a_branch(store: CheckpointStore) -> None:
    """The tip of a branch stands as it is, with what its tasks did."""
    graph = graph_of("chat", store)
    graph.invoke(turn("a"), at("t"))
    past = graph.get_state(at("t")).config
    graph.invoke(turn("left"), past)
    tip = ids(store, "t")[0]
    graph.invoke(turn("right"), past)
    assert store.fork("t", "new", at=tip).checkpoint_id == tip
    values = graph.get_state(at("new")).values
    assert values["items"] == ["a", "said a", "left", "said left"]
    assert len(ids(store, "new")) == 8


def test_a_branch_that_asks(store: CheckpointStore) -> None:
    """Nothing came after it, so the answers that it was given stay."""
    graph = graph_of("interrupts", store)
    graph.invoke(turn("go"), at("t"))
    past = graph.get_state(at("t")).parent_config
    asked = graph.get_state(at("t")).config
    graph.invoke(Command(resume="one"), asked)
    tip = ids(store, "t")[0]
    graph.update_state(past, {"items": ["aside"]}, as_node="__start__")
    assert ids(store, "t")[0] != tip
    store.fork("t", "new", at=tip)
    state = graph.get_state(at("new"))
    assert [i.value for i in state.interrupts] == ["second?"]
    assert graph.invoke(Command(resume="two"), at("new"))["items"][-3:] == [
        "one",
        "two",
        "answered",
    ]


def test_by_how_an_id_begins(store: CheckpointStore) -> None:
    graph_of("chat", store).invoke(turn("a"), at("t"))
    first = ids(store, "t")[-1]
    assert store.fork("t", "one", at=first[:18]).checkpoint_id == first
    with pytest.raises(
        CheckpointNotFoundError, match=r"'t' has 4 checkpoints whose ids begin with '1'"
    ):
        store.fork("t", "two", at=first[:1])
    for odd in ("x", "", first + "0"):
        with pytest.raises(CheckpointNotFoundError, match="no checkpoint whose id begins"):
            store.fork("t", "two", at=odd)
    assert store.thread("two") is None


def test_bad_use(store: CheckpointStore) -> None:
    graph = graph_of("chat", store)
    graph.invoke(turn("a"), at("t"))
    graph.invoke(turn("a"), at("other"))
    before = ids(store, "other")
    with pytest.raises(ThreadNotFoundError, match="'nowhere'"):
        store.fork("nowhere", "new")
    for taken in ("other", "t"):
        with pytest.raises(ThreadExistsError, match="already has checkpoints"):
            store.fork("t", taken)
    with pytest.raises(InvalidIdError):
        store.fork("t", "")
    assert ids(store, "other") == before
    store.fork("t", "gone")
    store.delete("gone")
    with pytest.raises(DeletedInTargetError, match="'gone'"):
        store.fork("t", "gone")


# -- questions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scenario", ["interrupts", "subgraph", "subgraph-with-own", "nested-subgraphs"]
)
def test_a_question_that_waits(store: CheckpointStore, scenario: str) -> None:
    """It waits in the fork, too, after the answers that were given; both are answered, each in its own way."""
    graph = graph_of(scenario, store)
    graph.invoke(turn("go"), at("t"))
    graph.invoke(Command(resume="one"), at("t"))
    assert store.fork("t", "new").status == "interrupted"
    state = graph.get_state(at("new"), subgraphs=True)
    assert [i.value for i in state.interrupts] == ["second?"]
    here = graph.invoke(Command(resume="here"), at("t"))["items"]
    there = graph.invoke(Command(resume="there"), at("new"))["items"]
    assert "here" in here
    assert [item.replace("here", "there") for item in here] == there


@pytest.mark.parametrize(
    "scenario", ["interrupts", "subgraph", "subgraph-with-own", "nested-subgraphs"]
)
def test_a_question_that_was_answered(store: CheckpointStore, scenario: str) -> None:
    """It is asked again, and answered otherwise."""
    graph = graph_of(scenario, store)
    graph.invoke(turn("go"), at("t"))
    asked = graph.get_state(at("t")).config["configurable"]["checkpoint_id"]
    for answer in ("one", "two"):
        graph.invoke(Command(resume=answer), at("t"))
    done = graph.get_state(at("t")).values
    assert store.fork("t", "new", at=asked).status == "interrupted"
    again = graph.invoke(Command(resume="uno"), at("new"))
    assert [i.value for i in again["__interrupt__"]] == ["second?"]
    answered = graph.invoke(Command(resume="dos"), at("new"))["items"]
    assert [{"uno": "one", "dos": "two"}.get(i, i) for i in answered] == done["items"]
    assert graph.get_state(at("t")).values == done


def test_a_subgraph_that_remembers(store: CheckpointStore) -> None:
    """It remembers what was when the checkpoint was made."""
    graph = graph_of("subgraph-remembers", store)
    for text in ("a", "b"):
        graph.invoke(turn(text), at("t"))
    past = graph.get_state(at("t")).config["configurable"]["checkpoint_id"]
    graph.invoke(turn("c"), at("t"))
    store.fork("t", "old", at=past)
    store.fork("t", "new")
    assert graph.invoke(turn("x"), at("old"))["items"][-1] == "3"
    assert graph.invoke(turn("x"), at("new"))["items"][-1] == "4"


class Said(TypedDict):
    said: str


def test_a_subgraph_that_remembers_other_branches(store: CheckpointStore) -> None:
    """It has one memory for all branches: what it goes on from can be of another one."""
    work = StateGraph(Log).add_node("work", lambda state: {"log": [f"after {len(state['log'])}"]})
    inner = work.add_edge(START, "work").compile(checkpointer=True)

    def call(state: Said) -> Said:
        return {"said": " ".join(inner.invoke({"log": [state["said"]]})["log"])}

    outer = StateGraph(Said).add_node("call", call).add_edge(START, "call")
    graph = outer.compile(checkpointer=store.get_langgraph_checkpointer())
    graph.invoke({"said": "a"}, at("t"))
    past = graph.get_state(at("t")).config
    graph.invoke({"said": "b"}, at("t"))
    graph.invoke({"said": "c"}, past)
    store.fork("t", "new")
    assert ids(store, "new", "call") == ids(store, "t", "call")
    assert len(ids(store, "new")) < len(ids(store, "t"))
    said = graph.invoke({"said": "d"}, at("new"))
    assert said == {"said": "a after 1 b after 3 c after 5 d after 7"}
    assert said == graph.invoke({"said": "d"}, at("t"))


# -- values that are elsewhere -----------------------------------------------------------------------------------------


def test_delta_channels(store: CheckpointStore) -> None:
    builder = StateGraph(Log)
    builder.add_node("work", lambda state: {"log": [f"after {len(state['log'])}"]})
    builder.add_edge(START, "work")
    graph = builder.compile(checkpointer=store.get_langgraph_checkpointer())
    for n in range(3):
        graph.invoke({"log": [f"turn {n}"]}, at("t"))
    history = list(graph.get_state_history(at("t")))
    for number, state in enumerate(history):
        name = f"new {number}"
        store.fork("t", name, at=state.config["configurable"]["checkpoint_id"])
        assert graph.get_state(at(name)).values == state.values
        assert graph.get_state(at(name)).next == state.next
    log = graph.invoke({"log": ["more"]}, at("new 3"))["log"]
    assert log[-2:] == ["more", f"after {len(log) - 1}"]


def test_old_formats_and_pruned_threads(store: CheckpointStore) -> None:
    """Sends are taken along with the parent that holds them; a parent that is gone is not missed."""
    graph = graph_of("chat", store)
    for text in "ab":
        graph.invoke(turn(text), at("t"))
    engine = store.get_langgraph_checkpointer().engine
    head = engine.backend.read("t", "", None).checkpoint
    assert head is not None
    sends = WriteRow("task", 0, "__pregel_tasks", "", "msgpack", b"\x90")
    old = head._replace(
        checkpoint_id="2" + head.checkpoint_id[1:],
        parent_id=head.checkpoint_id,
        format=SENDS_IN_PARENT_BELOW - 1,
    )
    engine.backend.write(
        [
            PutWrites("t", "", head.checkpoint_id, (sends,)),
            PutCheckpoint("t", "", old, (), True, "raise"),
        ]
    )
    engine.backend.prune("t", [("", id) for id in ids(store, "t")[-3:]])
    store.fork("t", "new")
    assert len(ids(store, "new")) == len(ids(store, "t")) == 6
    assert engine.backend.read("new", "", None).sends == [sends]
    middle = ids(store, "t")[3]
    store.fork("t", "middle", at=middle)
    assert ids(store, "middle") == ids(store, "t")[3:]


def test_a_fork_that_broke_off_goes_on(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph_of("chat", store).invoke(turn("a"), at("t"))
    backend = store.get_langgraph_checkpointer().engine.backend
    write, count = backend.write, 0

    def fails(units: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return write(units)

    monkeypatch.setattr(backend, "write", fails)
    with pytest.raises(KeyboardInterrupt):
        store.fork("t", "new")
    assert store.thread("new") is None
    assert entries(backend, "new")
    store.fork("t", "new")
    assert ids(store, "new") == ids(store, "t")


def test_what_a_fork_left_that_broke_off(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeated as it was it goes on; from elsewhere it cannot."""

    class Dies(Exception):
        pass

    def die(*_: object) -> Any:
        raise Dies

    graph = graph_of("chat", store)
    for text in "ab":
        graph.invoke(turn(text), at("t"))
    earlier = ids(store, "t")[3]
    with monkeypatch.context() as patched:
        patched.setattr(Copier, "_set_heads", die)
        for new_id in ("new", "other"):
            with pytest.raises(Dies):
                store.fork("t", new_id)
    with pytest.raises(ThreadExistsError, match=r"'new' is the beginning of .* that broke off"):
        store.fork("t", "new", at=earlier)
    assert store.fork("t", "other").checkpoint_id == ids(store, "t")[0]
    assert store.delete("new").done
    assert store.fork("t", "third", at=earlier).checkpoint_id == earlier
