"""What a save does to a graph that waits or has failed."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from charm_checkpoint.errors import (
    CheckpointStoreError,
)
from charm_checkpoint.history import MessageHistory
from tests.history.faces import (
    THREAD,
    DeltaState,
    Saver,
    echo,
    state_of,
    user,
    waiting,
)


@pytest.mark.parametrize("schema", [MessagesState, DeltaState])
def test_a_save_leaves_an_interrupted_graph_resumable(saver: Saver, schema: Any) -> None:
    def ask(state: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [AIMessage(f"you said {interrupt('sure?')}")]}

    history, graph = MessageHistory(saver), waiting(saver, schema, ask)
    graph.invoke({"messages": [HumanMessage("buy", id="1")]}, THREAD)
    assert graph.get_state(THREAD).interrupts
    history.append("trip", [user("hurry")])
    assert graph.get_state(THREAD).next == ("ask",)
    asked = graph.invoke(None, THREAD)
    assert [i.value for i in asked["__interrupt__"]] == ["sure?"]
    history.append("trip", [user("please")])
    graph.invoke(Command(resume="yes"), THREAD)
    texts = ["buy", "hurry", "please", "you said yes"]
    assert [d["content"] for d in history.load("trip")] == texts
    assert graph.get_state(THREAD).next == ()


def test_a_save_leaves_a_failed_step_repeatable(saver: Saver) -> None:
    healthy = False

    def good(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage("good")]}

    def bad(state: MessagesState) -> dict[str, Any]:
        if not healthy:
            raise RuntimeError("no network")
        return {"messages": [AIMessage("better")]}

    history, graph = MessageHistory(saver), waiting(saver, MessagesState, good, bad)
    with pytest.raises(RuntimeError, match="no network"):
        graph.invoke({"messages": [HumanMessage("go")]}, THREAD)
    history.append("trip", [user("again")])
    healthy = True
    graph.invoke(None, THREAD)
    texts = sorted(d["content"] for d in history.load("trip"))
    assert texts == ["again", "better", "go", "good"]


def test_a_save_stops_at_a_breakpoint(saver: Saver) -> None:
    builder = StateGraph(MessagesState)
    builder.add_node("model", echo)
    builder.add_edge(START, "model")
    graph = builder.compile(checkpointer=saver, interrupt_before=["model"])
    graph.invoke({"messages": [HumanMessage("hi")]}, THREAD)
    MessageHistory(saver).append("trip", [user("ho")])
    graph.invoke(None, THREAD)
    assert [m.text for m in state_of(graph)] == ["hi", "ho", "2: ho"]


@pytest.mark.parametrize("by_id", [False, True])
def test_a_save_is_refused_where_it_would_lose_an_answer(saver: Saver, by_id: bool) -> None:
    def ask(state: MessagesState) -> dict[str, Any]:
        who, when = interrupt("who?"), interrupt("when?")
        return {"messages": [AIMessage(f"{who} {when}")]}

    history, graph = MessageHistory(saver), waiting(saver, MessagesState, ask)
    graph.invoke({"messages": [HumanMessage("invite", id="1")]}, THREAD)
    (question,) = graph.get_state(THREAD).interrupts
    graph.invoke(Command(resume={question.id: "Ann"} if by_id else "Ann"), THREAD)
    for write in (history.save, history.append):
        with pytest.raises(CheckpointStoreError, match=r"'trip'.* middle of a step"):
            write("trip", [user("hurry")])
    history.save("trip", [user("invite", id="1")])
    graph.invoke(Command(resume="now"), THREAD)
    assert history.load("trip")[1]["content"] == "Ann now"
    history.append("trip", [user("thanks")])
    assert history.load("trip")[2] == user("thanks")


def test_a_save_is_refused_where_it_would_lose_an_update(saver: Saver) -> None:
    class State(MessagesState):
        city: str

    def ask(state: State) -> dict[str, Any]:
        return {"messages": [AIMessage(f"{state['city']} {interrupt('sure?')}")]}

    history, graph = MessageHistory(saver), waiting(saver, State, ask)
    graph.invoke({"messages": [HumanMessage("go")], "city": "Rome"}, THREAD)
    graph.invoke(Command(update={"city": "Oslo"}), THREAD)
    with pytest.raises(CheckpointStoreError, match="city"):
        history.append("trip", [user("hurry")])
    graph.invoke(Command(resume="yes"), THREAD)
    assert history.load("trip")[-1]["content"] == "Oslo yes"


def test_a_save_beside_a_finished_task_has_its_messages_once(saver: Saver) -> None:
    def note(state: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [AIMessage("noted", id="n")]}

    def ask(state: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [AIMessage(interrupt("sure?"), id="a")]}

    history, graph = MessageHistory(saver), waiting(saver, DeltaState, note, ask)
    graph.invoke({"messages": [HumanMessage("go", id="g")]}, THREAD)
    history.append("trip", [user("hurry")])
    graph.invoke(Command(resume="yes"), THREAD)
    assert sorted(d["content"] for d in history.load("trip")) == ["go", "hurry", "noted", "yes"]


def test_a_save_is_refused_where_a_delta_channel_would_get_an_update_twice(saver: Saver) -> None:
    def note(state: dict[str, Any]) -> dict[str, Any]:
        return {"log": ["noted"]}

    def ask(state: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [AIMessage(interrupt("sure?"))]}

    history, graph = MessageHistory(saver), waiting(saver, DeltaState, note, ask)
    graph.invoke({"messages": [HumanMessage("go")]}, THREAD)
    with pytest.raises(CheckpointStoreError, match="log"):
        history.append("trip", [user("hurry")])
    graph.invoke(Command(resume="yes"), THREAD)
    history.append("trip", [user("thanks")])
    assert graph.get_state(THREAD).values["log"] == ["noted"]
