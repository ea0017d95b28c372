"""Messages that a graph keeps in a DeltaChannel."""

from __future__ import annotations

import functools
import uuid
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import id as uuid6_state
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.graph.message import REMOVE_ALL_MESSAGES, add_messages
from langgraph.types import Overwrite
from typing_extensions import TypedDict

from charm_checkpoint.history import MessageHistory
from tests.history.faces import (
    THREAD,
    DeltaState,
    Saver,
    SnapshotDeltaState,
    chat,
    count,
    delta_echo,
    state_of,
    user,
)


@pytest.mark.parametrize("schema", [DeltaState, SnapshotDeltaState])
def test_a_delta_channel_reads_as_in_the_graph(saver: Saver, schema: Any) -> None:
    turns: list[Any] = [
        [HumanMessage("a", id="1"), ("user", "b")],
        {"role": "user", "content": "c", "id": "3"},
        [RemoveMessage("1"), AIMessage("C", id="3")],
        "d",
        Overwrite([HumanMessage("e", id="5"), HumanMessage("f", id="6")]),
        [HumanMessage("g", id="7"), RemoveMessage("5")],
        [HumanMessage("h", id="5")],
    ]
    history = MessageHistory(saver)
    graph = chat(saver, schema, delta_echo)
    for turn in turns:
        graph.invoke({"messages": turn}, THREAD)
        expected = [(m.id, m.type, m.text) for m in state_of(graph)]
        thread = history._read("trip")
        assert [(m.id, m.type, m.text) for m in thread.stored] == expected
    before = saver.get_tuple(THREAD)
    history.append("trip", [user("x")])
    after = saver.get_tuple(THREAD)
    assert before is not None
    assert after is not None
    assert isinstance(after.checkpoint["channel_values"]["messages"], _DeltaSnapshot)
    updates, steps = before.metadata["counters_since_delta_snapshot"]["log"]
    counters = after.metadata["counters_since_delta_snapshot"]
    assert {c: tuple(n) for c, n in counters.items()} == {"log": (updates, steps + 1)}
    log = graph.get_state(THREAD).values["log"]
    assert len(log) == len(turns)
    for text in ("y", "z", "0", "1"):
        graph.invoke({"messages": [HumanMessage(text)]}, THREAD)
        history.append("trip", [user(text)])
    texts = [m.text for m in state_of(graph)]
    assert [d["content"] for d in history.load("trip")] == texts
    assert texts[-3:-1] == ["1", f"{len(texts) - 2}: 1"]
    assert graph.get_state(THREAD).values["log"][: len(log)] == log
    assert len(graph.get_state(THREAD).values["log"]) == len(log) + 4


def test_a_delta_channel_cleared_by_remove_all(saver: Saver) -> None:
    def reducer(old: Any, writes: list[Any]) -> Any:
        return functools.reduce(add_messages, writes, old)

    hint = Annotated[list[AnyMessage], DeltaChannel(reducer)]
    graph = chat(saver, TypedDict("State", {"messages": hint}))
    for turn in ([HumanMessage("a")], [RemoveMessage(REMOVE_ALL_MESSAGES), HumanMessage("b")]):
        graph.invoke({"messages": turn}, THREAD)
    shown = MessageHistory(saver).load("trip")
    assert [d["content"] for d in shown] == [m.text for m in state_of(graph)] == ["b", "1: b"]


def test_an_overwrite_that_was_not_followed_by_a_snapshot(saver: Saver) -> None:
    """As a graph's `update_state` stored it before it took snapshots there, and as JSON leaves it."""
    graph = chat(saver, DeltaState)
    graph.invoke({"messages": [HumanMessage("a")]}, THREAD)
    for text, form in (
        ("b", Overwrite),
        ("c", lambda value: {"__overwrite__": value}),
        ("d", lambda value: {"type": "__overwrite__", "value": value}),
    ):
        head = saver.get_tuple(THREAD)
        assert head is not None
        write = form([HumanMessage(text, id=text)])
        saver.put_writes(head.config, [("messages", write)], str(uuid.uuid4()))
        version = saver.get_next_version(max(head.checkpoint["channel_versions"].values()), None)
        values = {c: v for c, v in head.checkpoint["channel_values"].items() if c != "messages"}
        checkpoint: Any = {
            **head.checkpoint,
            "id": str(uuid6_state.uuid6()),
            "channel_values": values,
            "channel_versions": {**head.checkpoint["channel_versions"], "messages": version},
        }
        saver.put(head.config, checkpoint, head.metadata, {"messages": version})
        assert [m.id for m in state_of(graph)] == [text]
        assert MessageHistory(saver).load("trip") == [user(text, id=text)]


def test_saving_the_same_delta_list_writes_nothing(saver: Saver) -> None:
    history, graph = MessageHistory(saver), chat(saver, DeltaState, delta_echo)
    graph.invoke({"messages": [HumanMessage("a", id="1")]}, THREAD)
    before = count(saver)
    history.save("trip", history.load("trip"))
    assert count(saver) == before
    history.save("trip", history.load("trip")[:1])
    assert history.load("trip") == [user("a", id="1")]
    assert [m.id for m in state_of(graph)] == ["1"]
    assert graph.get_state(THREAD).values["log"] == ["step 1"]
