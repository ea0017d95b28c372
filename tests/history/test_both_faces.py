"""One thread, two faces: message dicts for agents without a graph, and the state of a graph, in both directions."""

from __future__ import annotations

import operator
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage, ToolMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import START, MessagesState, StateGraph
from typing_extensions import TypedDict

from charm_checkpoint.errors import (
    DeserializationError,
    SerializationError,
)
from charm_checkpoint.history import MessageHistory
from tests.history.faces import (
    THREAD,
    TOOL_TURN,
    DeltaState,
    Saver,
    assistant,
    chat,
    count,
    echo,
    state_of,
    user,
)


def test_saved_dicts_come_back_equal(saver: Saver) -> None:
    history = MessageHistory(saver)
    assert history.load("trip") == []
    history.save("trip", TOOL_TURN)
    assert history.load("trip") == TOOL_TURN
    history.append("trip", [user("bye")])
    assert history.load("trip") == [*TOOL_TURN, user("bye")]
    assert history.load("another") == []
    history.save("trip", [user("bye"), user("bye")])
    assert history.load("trip") == [user("bye"), user("bye")]


def test_each_save_is_a_checkpoint_and_the_same_list_is_none(saver: Saver) -> None:
    history = MessageHistory(saver)
    history.save("trip", [])
    assert count(saver) == 1
    history.save("trip", TOOL_TURN)
    history.save("trip", TOOL_TURN)
    history.save("trip", history.load("trip"))
    history.append("trip", [])
    assert count(saver) == 2
    history.save("trip", [])
    history.save("trip", [])
    assert count(saver) == 3
    newest, middle, first = saver.list(THREAD)
    assert newest.parent_config == middle.config
    assert middle.parent_config == first.config
    assert [c.metadata["step"] for c in (first, middle, newest)] == [0, 1, 2]


def test_a_saved_message_keeps_its_id(saver: Saver) -> None:
    history, graph = MessageHistory(saver), chat(saver)
    history.save("trip", [user("a"), user("b"), user("a")])
    a, b, c = (m.id for m in state_of(graph))
    assert None not in (a, b, c)
    assert len({a, b, c}) == 3
    history.save("trip", [{"content": "b", "role": "user"}, user("a"), user("new")])
    assert [m.id for m in state_of(graph)][:2] == [b, a]
    assert state_of(graph)[2].id not in (a, b, c)


def test_messages_are_taken_beside_dicts(saver: Saver) -> None:
    history = MessageHistory(saver)
    message = HumanMessage("hi")
    history.append("trip", [message])
    history.append("trip", [AIMessage("ho", id="2"), user("hm")])
    assert history.load("trip") == [user("hi"), assistant("ho", id="2"), user("hm")]
    history.save("trip", [AIMessage("ho", id="2")])
    assert history.load("trip") == [assistant("ho", id="2")]
    assert message.id is None


def test_what_is_no_message_is_refused_whole(saver: Saver) -> None:
    history = MessageHistory(saver)
    for write in (history.save, history.append):
        with pytest.raises(SerializationError, match=r"message 1 is a builtins\.str"):
            write("trip", [user("hi"), "ho"])  # type: ignore[list-item]
    assert saver.get_tuple(THREAD) is None


@pytest.mark.parametrize("text", ["a\x00b", "a \ud800 lone surrogate"])
def test_odd_text_is_stored(saver: Saver, text: str) -> None:
    history = MessageHistory(saver)
    odd = [user(text, note=text), {"note": text}]
    history.save("trip", odd)
    shown = history.load("trip")
    # LangGraph's serializer writes a question mark for what UTF-8 has no bytes for.
    readable = text.encode("utf-8", "replace").decode()
    assert shown in (odd, [user(readable, note=readable), {"note": readable}])


# -- from dicts to a graph ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", [MessagesState, DeltaState])
def test_a_graph_goes_on_from_saved_dicts(saver: Saver, schema: Any) -> None:
    history, graph = MessageHistory(saver), chat(saver, schema)
    history.save("trip", TOOL_TURN)
    _, question, call, result, answer, record, _ = state_of(graph)
    assert question.content == TOOL_TURN[1]["content"]
    assert call.tool_calls == [
        {"name": "add", "args": {"a": 1, "b": 2}, "id": "c1", "type": "tool_call"}
    ]
    assert isinstance(result, ToolMessage)
    assert (result.tool_call_id, result.name) == ("c1", "add")
    assert answer.id == "answer"
    assert record.text == '{"event": "rated", "stars": 5}'

    before = state_of(graph)
    graph.invoke({"messages": [HumanMessage("and now?", id="q")]}, THREAD)
    assert state_of(graph)[:-2] == before
    shown = history.load("trip")
    reply = state_of(graph)[-1]
    assert reply.text == "8: and now?"
    assert shown == [
        *TOOL_TURN,
        user("and now?", id="q"),
        assistant("8: and now?", id=reply.id),
    ]
    history.append("trip", [user("thanks")])
    graph.invoke({"messages": [HumanMessage("more")]}, THREAD)
    assert [d["content"] for d in history.load("trip")[8:]] == [
        "8: and now?",
        "thanks",
        "more",
        "11: more",
    ][:4]


def test_a_graph_can_remove_and_change_what_was_saved(saver: Saver) -> None:
    def tidy(state: MessagesState) -> dict[str, Any]:
        first, second, *_ = state["messages"]
        changed = second.model_copy(update={"content": "redacted"})
        return {"messages": [RemoveMessage(first.id or ""), changed]}

    history = MessageHistory(saver)
    history.save("trip", [user("a"), {"role": "user", "text": "secret"}, user("c", at=5)])
    chat(saver, node=tidy).invoke({"messages": []}, THREAD)
    assert history.load("trip") == [user("redacted"), user("c", at=5)]


# -- from a graph to dicts ---------------------------------------------------------------------------------------------


def tool_user(state: dict[str, Any]) -> dict[str, Any]:
    call = {"name": "add", "args": {"a": 1, "ü": ["x"]}, "id": "c1"}
    return {
        "messages": [
            AIMessage(
                [{"type": "text", "text": "adding"}],
                id="a1",
                tool_calls=[call],
                usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
                response_metadata={"model_name": "m"},
                additional_kwargs={"trace": {"x": 1}},
            ),
            ToolMessage("2", tool_call_id="c1", id="t1", artifact={"raw": [2]}, status="error"),
            AIMessage("2", id="a2"),
        ]
    }


@pytest.mark.parametrize("schema", [MessagesState, DeltaState])
def test_load_shows_what_a_graph_wrote(saver: Saver, schema: Any) -> None:
    history, graph = MessageHistory(saver), chat(saver, schema, tool_user)
    graph.invoke({"messages": [HumanMessage("1 + 2?", id="h1")]}, THREAD)
    arguments = '{"a": 1, "ü": ["x"]}'
    shown = [
        user("1 + 2?", id="h1"),
        assistant(
            [{"type": "text", "text": "adding"}],  # type: ignore[arg-type]
            id="a1",
            tool_calls=[
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "add", "arguments": arguments},
                }
            ],
            usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
            response_metadata={"model_name": "m"},
            additional_kwargs={"trace": {"x": 1}},
        ),
        {
            "role": "tool",
            "content": "2",
            "tool_call_id": "c1",
            "id": "t1",
            "artifact": {"raw": [2]},
            "status": "error",
        },
        assistant("2", id="a2"),
    ]
    assert history.load("trip") == shown
    before = state_of(graph)
    history.save("trip", [*history.load("trip"), user("thanks")])
    assert state_of(graph)[:-1] == before
    assert history.load("trip") == [*shown, user("thanks")]
    history.save("trip", shown[1:3])
    assert state_of(graph) == before[1:3]


def test_a_save_leaves_the_rest_of_the_state_alone(saver: Saver) -> None:
    class State(MessagesState):
        city: str
        notes: Annotated[list[str], operator.add]

    def plan(state: State) -> dict[str, Any]:
        return {**echo(state), "city": "Rome", "notes": ["planned"]}  # type: ignore[arg-type]

    builder = StateGraph(State)
    builder.add_sequence([plan, ("move", lambda state: {"city": "Oslo"})])
    builder.add_edge(START, "plan")
    history, graph = MessageHistory(saver), builder.compile(checkpointer=saver)
    graph.invoke({"messages": [HumanMessage("go")]}, THREAD)
    before = saver.get_tuple(THREAD)
    assert before is not None
    history.append("trip", [user("thanks")])
    after = saver.get_tuple(THREAD)
    assert after is not None
    assert after.parent_config == before.config
    assert after.metadata["source"] == "update"
    assert after.metadata["step"] == before.metadata["step"] + 1
    old, new = before.checkpoint, after.checkpoint
    assert new["v"] == old["v"] == 4
    assert new["id"] > old["id"]
    assert new["versions_seen"] == old["versions_seen"]
    changed = {c for c, v in new["channel_versions"].items() if old["channel_versions"].get(c) != v}
    assert changed == {"messages"}
    assert new["channel_versions"]["messages"] > max(old["channel_versions"].values())
    assert {c: v for c, v in new["channel_values"].items() if c != "messages"} == {
        c: v for c, v in old["channel_values"].items() if c != "messages"
    }
    snapshot = graph.get_state(THREAD)
    assert (snapshot.values["city"], snapshot.values["notes"]) == ("Oslo", ["planned"])
    assert snapshot.next == ()
    assert [m.text for m in snapshot.values["messages"]] == ["go", "1: go", "thanks"]


def test_a_thread_of_a_graph_without_messages_holds_some_too(saver: Saver) -> None:
    class State(TypedDict):
        total: Annotated[int, operator.add]

    history, graph = MessageHistory(saver), chat(saver, State, lambda state: {"total": 1})
    graph.invoke({"total": 1}, THREAD)
    assert history.load("trip") == []
    history.append("trip", [user("hi")])
    graph.invoke({"total": 1}, THREAD)
    assert graph.get_state(THREAD).values == {"total": 4}
    history.append("trip", [user("ho")])
    assert history.load("trip") == [user("hi"), user("ho")]


def test_a_graph_of_dicts_stays_one(saver: Saver) -> None:
    class State(TypedDict):
        messages: Annotated[list[dict[str, Any]], operator.add]

    history = MessageHistory(saver)
    graph = chat(saver, State, lambda state: {"messages": [assistant("ho", id=7)]})
    graph.invoke({"messages": [user("hi")]}, THREAD)
    history.append("trip", [user("hm", at=5)])
    history.save("trip", [*history.load("trip")[1:], {"event": "end"}])
    expected = [assistant("ho", id=7), user("hm", at=5), {"event": "end"}]
    assert state_of(graph) == history.load("trip") == expected


def test_another_channel(saver: Saver) -> None:
    class State(TypedDict):
        chat: Annotated[list[AnyMessage], operator.add]
        messages: str

    graph = chat(
        saver, State, lambda state: {"chat": [AIMessage("ho", id="2")], "messages": "none"}
    )
    graph.invoke({"chat": [HumanMessage("hi", id="1")]}, THREAD)
    history = MessageHistory(saver, channel="chat")
    assert history.load("trip") == [user("hi", id="1"), assistant("ho", id="2")]
    history.append("trip", [user("hm")])
    assert [m.text for m in graph.get_state(THREAD).values["chat"]] == ["hi", "ho", "hm"]
    wrong = MessageHistory(saver)
    for use in (wrong.load, lambda t: wrong.append(t, [user("x")]), lambda t: wrong.save(t, [])):
        with pytest.raises(DeserializationError, match=r"'trip', channel 'messages'.* holds a str"):
            use("trip")


@pytest.mark.parametrize("delta", [False, True])
def test_a_list_of_other_things_is_named(saver: Saver, delta: bool) -> None:
    reducer = DeltaChannel(lambda old, new: [*old, *(x for w in new for x in w)])
    hint = Annotated[list[int], reducer if delta else operator.add]
    graph = chat(saver, TypedDict("State", {"messages": hint}), lambda state: {"messages": [7]})
    graph.invoke({"messages": [6]}, THREAD)
    with pytest.raises(DeserializationError, match=r"'trip', channel 'messages'.*\bint\b"):
        MessageHistory(saver).load("trip")
