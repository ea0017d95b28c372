"""`python-history` in one process: what a function is given, what it may answer, what is saved."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.graph import START, MessagesState, StateGraph

from charm_adapter_checkpoint.graph import GraphAdapter
from charm_adapter_checkpoint.history import HistoryAdapter

from .conftest import AdapterMaker

USER = {"role": "user", "content": "hi"}
HELLO = {"role": "assistant", "content": "hello"}


def by_name(input: str, history: list[Any], messages: list[Any], thread_id: str, city: str) -> Any:
    return {"output": [input, history, messages, thread_id, city]}


async def asynchronous(input: str) -> str:
    return f"{input}!"


def everything(inputs: dict[str, Any]) -> Any:
    return inputs


def rest(input: str, **others: Any) -> Any:
    return others


class Agent:
    def run(self, question: str, history: list[Any], /, mood: str = "calm") -> str:
        return f"{question} {history} {mood}"


@pytest.mark.parametrize(
    ("agent", "output"),
    [
        (by_name, ["hi", [], [USER], "t", "Paris"]),
        (asynchronous, "hi!"),
        (everything, {"input": "hi", "city": "Paris"}),
        (rest, {"city": "Paris"}),
        (lambda text: text.upper(), "HI"),
        (lambda text, history: history, ""),
        (lambda: "called", "called"),
        (Agent, "hi [] calm"),
        (Agent(), "hi [] calm"),
    ],
    ids=["names", "async", "inputs", "kwargs", "lambda", "two", "none", "class", "object"],
)
def test_what_a_function_is_given(make: AdapterMaker, agent: Any, output: Any) -> None:
    adapter = make(HistoryAdapter, agent)
    result = adapter.invoke({"input": "hi", "city": "Paris", "thread_id": "t"})
    assert result == {"status": "success", "output": output, "thread_id": "t", "charm_state": ""}


@pytest.mark.parametrize(
    ("answer", "saved", "output"),
    [
        ("hello", [HELLO], "hello"),
        (HELLO, [HELLO], "hello"),
        (AIMessage("hello"), [HELLO], "hello"),
        ([AIMessage("let me see"), HELLO], [{**HELLO, "content": "let me see"}, HELLO], "hello"),
        ({"output": "hello", "cost": 1}, [HELLO], "hello"),
        ({"messages": [HELLO]}, [HELLO], "hello"),
        ({"messages": [HumanMessage("hi"), AIMessage("hello")]}, [HELLO], "hello"),
        ({"messages": [HELLO], "output": {"mood": 1}}, [HELLO], {"mood": 1}),
        ({"_charm_render_type": "chart"}, None, {"_charm_render_type": "chart"}),
        ({"status": "success", "output": "hello"}, [HELLO], "hello"),
        (12, [{**HELLO, "content": "12"}], 12),
        ([1, 2], [{**HELLO, "content": "[1, 2]"}], [1, 2]),
        (None, [], ""),
    ],
)
def test_what_a_function_may_answer(
    make: AdapterMaker, answer: Any, saved: list[Any] | None, output: Any
) -> None:
    adapter = make(HistoryAdapter, lambda input: answer)
    assert adapter.invoke({"input": "hi"})["output"] == output
    if saved is None:
        saved = [{**HELLO, "content": '{"_charm_render_type": "chart"}'}]
    assert adapter.store.load_messages("default_thread") == [USER, *saved]


def test_the_next_turn_sees_the_last(make: AdapterMaker) -> None:
    def agent(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        messages.append({"role": "assistant", "content": f"{len(messages)} messages"})
        return messages

    assert make(HistoryAdapter, agent).invoke({"input": "hi"})["output"] == "1 messages"
    adapter = make(HistoryAdapter, agent)
    assert adapter.invoke({"messages": [USER, "and a word more"]})["output"] == "4 messages"
    contents = [message["content"] for message in adapter.store.load_messages("default_thread")]
    assert contents == ["hi", "1 messages", "hi", "and a word more", "4 messages"]


def test_tool_calls_are_kept(make: AdapterMaker) -> None:
    call = {"name": "clock", "args": {}, "id": "1", "type": "tool_call"}
    told = [
        AIMessage("", tool_calls=[call]),
        ToolMessage("noon", tool_call_id="1"),
        AIMessage("It is noon."),
    ]
    adapter = make(HistoryAdapter, lambda input: told)
    assert adapter.invoke({"input": "time?"})["output"] == "It is noon."
    saved = adapter.store.load_messages("default_thread")
    assert [message["role"] for message in saved] == ["user", "assistant", "tool", "assistant"]
    assert saved[1]["tool_calls"][0]["id"] == "1"


def test_a_graph_and_a_function_share_a_thread(make: AdapterMaker) -> None:
    def chat(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(f"{len(state['messages'])} messages")]}

    graph = make(GraphAdapter, StateGraph(MessagesState).add_node(chat).add_edge(START, "chat"))
    function = make(HistoryAdapter, lambda input, history: f"{len(history)} before")
    assert graph.invoke({"input": "hi"})["output"] == "1 messages"
    assert function.invoke({"input": "hi"})["output"] == "2 before"
    assert graph.invoke({"input": "hi"})["output"] == "5 messages"


def fails(input: str) -> str:
    raise ConnectionError("no line")


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        (fails, "Agent Execution Failed: ConnectionError: no line"),
        (lambda input: {"status": "error", "message": "not today"}, "not today"),
        (
            lambda input, unheard_of: "",
            "Agent Execution Failed: the agent's parameter 'unheard_of' is neither",
        ),
        (3, "Agent Execution Failed: the entry point gives a int"),
    ],
    ids=["raises", "says so", "parameter", "no function"],
)
def test_a_turn_that_fails_leaves_the_history(make: AdapterMaker, agent: Any, message: str) -> None:
    adapter = make(HistoryAdapter, agent)
    result = adapter.invoke({"input": "hi"})
    assert result["status"] == "error"
    assert result["message"].startswith(message)
    assert adapter.store.load_messages("default_thread") == []
