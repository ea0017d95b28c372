"""`langgraph-checkpoint` in one process: what an input does to a thread, and which graphs it takes."""

from __future__ import annotations

import asyncio
import operator
import sys
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import interrupt

from charm_adapter_checkpoint.graph import GraphAdapter

from .conftest import AdapterMaker


class Steps(TypedDict):
    log: Annotated[list[str], operator.add]


def step(name: str) -> Any:
    def run(state: Steps) -> Steps:
        return {"log": [name]}

    return run


def ask(name: str, question: Any) -> Any:
    def run(state: Steps) -> Steps:
        return {"log": [f"{name}={interrupt(question)!r}"]}

    return run


def chat(state: MessagesState) -> dict[str, Any]:
    return {"messages": [AIMessage(f"{len(state['messages'])} messages")]}


def one_node(function: Any, state: type[Any] = MessagesState) -> StateGraph[Any]:
    return StateGraph(state).add_node("node", function).add_edge(START, "node")


def asking(**questions: Any) -> StateGraph[Any]:
    """Asks each question in a node of its own, all at once."""
    graph = StateGraph(Steps)
    for name, question in questions.items():
        graph.add_node(name, ask(name, question)).add_edge(START, name)
    return graph


# -- one turn ------------------------------------------------------------------------------------------------------


def test_turns_of_a_thread_follow_each_other(make: AdapterMaker) -> None:
    adapter = make(GraphAdapter, one_node(chat))
    given = {"input": "hi", "thread_id": "t"}

    assert adapter.invoke(given) == {
        "status": "success",
        "output": "1 messages",
        "thread_id": "t",
        "charm_state": "",
    }
    assert given == {"input": "hi", "thread_id": "t"}
    assert (
        adapter.invoke({"messages": ("user", "again"), "thread_id": "t"})["output"] == "3 messages"
    )
    assert adapter.invoke({"input": "hi", "thread_id": "other"})["output"] == "1 messages"


@pytest.mark.parametrize(
    ("ids", "thread_id"),
    [
        ({"thread_id": "mine", "__charm_thread_id__": "platform"}, "mine"),
        ({"thread_id": None, "__charm_thread_id__": "platform"}, "platform"),
        ({"thread_id": 7}, "7"),
        ({"thread_id": 0}, "0"),
        ({}, "default_thread"),
    ],
)
def test_thread_of_a_run(make: AdapterMaker, ids: dict[str, Any], thread_id: str) -> None:
    adapter = make(GraphAdapter, one_node(chat))
    assert adapter.invoke({"input": "hi", **ids})["thread_id"] == thread_id
    assert adapter.store.load_messages(thread_id)[0]["content"] == "hi"


@pytest.mark.parametrize("thread_id", ["", "a\0b", 1.5, True, ["t"]])
def test_bad_thread_ids_run_nothing(make: AdapterMaker, thread_id: Any) -> None:
    ran = []
    adapter = make(GraphAdapter, one_node(lambda state: ran.append(state)))
    result = adapter.invoke({"input": "hi", "thread_id": thread_id})
    assert (result["status"], result["error_type"], ran) == ("error", "InvalidIdError", [])


def test_a_state_without_messages_gets_the_input_as_it_is(make: AdapterMaker) -> None:
    class Question(TypedDict, total=False):
        input: str
        resume: str
        output: str

    def answer(state: Question) -> Question:
        return {"output": f"{state['input']} {state['resume']}"}

    # `resume` is this state's own key: a job seeker's, say.
    adapter = make(GraphAdapter, one_node(answer, Question))
    assert adapter.invoke({"input": "read", "resume": "my life"})["output"] == "read my life"


# -- interrupts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "log"),
    [
        ({"input": "yes"}, "a='yes'"),
        ({"input": {"approved": True}}, "a={'approved': True}"),
        ({"messages": [{"role": "user", "content": "yes"}]}, "a='yes'"),
        ({"resume": None}, "a=None"),
        ({"resume": {"approved": True}}, "a={'approved': True}"),
        ({"__charm_resume__": [1]}, "a=[1]"),
    ],
)
def test_the_next_input_answers(make: AdapterMaker, answer: dict[str, Any], log: str) -> None:
    question = {"question": "Go on?", "choices": ["yes", "no"]}
    adapter = make(GraphAdapter, asking(a=question))

    waiting = adapter.invoke({"log": ["begun"]})
    assert waiting["status"] == "suspended"
    assert waiting["output"] == question
    assert "Go on?" in waiting["message"]
    assert waiting["next_step"] == ["a"]
    assert [each["value"] for each in waiting["interrupts"]] == [question]

    # Another process would have nothing but the store.
    resumed = make(GraphAdapter, asking(a=question)).invoke(answer)
    assert resumed["status"] == "success"
    assert resumed["output"] == str({"log": ["begun", log]})


def test_no_input_shows_the_question_again_and_runs_nothing(make: AdapterMaker) -> None:
    asked = []

    def node(state: Steps) -> Steps:
        asked.append(state)
        return {"log": [interrupt("Go on?")]}

    adapter = make(GraphAdapter, one_node(node, Steps))
    waiting = adapter.invoke({"log": []})
    assert adapter.invoke({"__charm_state__": "x", "input": None, "messages": None}) == waiting
    assert len(asked) == 1


def test_several_questions_are_answered_in_turn_or_by_id(make: AdapterMaker) -> None:
    adapter = make(GraphAdapter, asking(a="first?", b="second?", c="third?"))
    waiting = adapter.invoke({"log": []})
    assert waiting["output"] == waiting["interrupts"]
    assert [each["value"] for each in waiting["output"]] == ["first?", "second?", "third?"]

    waiting = adapter.invoke({"input": "one"})
    assert [each["value"] for each in waiting["output"]] == ["second?", "third?"]

    second, third = (each["id"] for each in waiting["output"])
    done = adapter.invoke({"resume": {third: 3, second: 2}})
    assert done["output"] == str({"log": ["a='one'", "b=2", "c=3"]})


def test_a_late_answer_reaches_no_other_question(make: AdapterMaker) -> None:
    def node(state: Steps) -> Steps:
        return {"log": [interrupt("Delete one file?"), interrupt("Delete all files?")]}

    adapter = make(GraphAdapter, one_node(node, Steps))
    first = adapter.invoke({"log": []})["interrupts"][0]["id"]
    assert adapter.invoke({"resume": {first: "yes"}})["output"] == "Delete all files?"
    # The same answer again, now to a question that is no longer asked.
    assert adapter.invoke({"resume": {first: "yes"}})["error_type"] == "InputError"
    assert adapter.invoke({})["output"] == "Delete all files?"


def test_other_keys_of_an_answer_reach_the_state(make: AdapterMaker) -> None:
    adapter = make(GraphAdapter, asking(a="Go on?"))
    adapter.invoke({"log": []})
    done = adapter.invoke({"resume": "yes", "log": ["note"], "unknown": 1})
    assert done["output"] == str({"log": ["note", "a='yes'"]})


def test_keys_that_do_not_answer_are_not_lost_in_silence(make: AdapterMaker) -> None:
    adapter = make(GraphAdapter, asking(a="Go on?"))
    adapter.invoke({"log": []})
    result = adapter.invoke({"log": ["x"]})
    assert result["error_type"] == "InputError"
    assert "Go on?" in result["message"]
    assert adapter.invoke({"restart": True, "log": ["anew"]})["output"] == "Go on?"
    assert adapter.invoke({"input": "yes"})["output"] == str({"log": ["anew", "a='yes'"]})


def test_an_answer_to_no_question_is_an_error(make: AdapterMaker) -> None:
    adapter = make(GraphAdapter, one_node(chat))
    adapter.invoke({"input": "hi"})
    result = adapter.invoke({"resume": "yes"})
    assert result["error_type"] == "InputError"
    assert "nothing to resume" in result["message"]


def test_a_question_inside_a_subgraph(make: AdapterMaker) -> None:
    outer = StateGraph(Steps).add_node("inner", asking(a="Go on?").compile())
    adapter = make(GraphAdapter, outer.add_edge(START, "inner"))
    assert adapter.invoke({"log": []})["output"] == "Go on?"
    assert adapter.invoke({"input": "yes"})["output"] == str({"log": ["a='yes'"]})


def test_a_payload_that_json_does_not_have(make: AdapterMaker) -> None:
    @dataclass
    class Form:
        fields: set[str]

    # Not kept, since the store has its own way with text that is no text.
    unkept = one_node(lambda state: {"messages": [AIMessage("\ud800")]})
    adapter = make(GraphAdapter, unkept.compile(checkpointer=False))
    assert adapter.invoke({"input": "hi"})["output"] == "?"

    adapter = make(GraphAdapter, asking(a=Form({"name"})), allow=[Form])
    assert adapter.invoke({"log": [], "thread_id": "form"})["output"] == {"fields": ["name"]}


# -- stopped between two nodes -------------------------------------------------------------------------------------


def test_a_static_breakpoint_is_passed_by_resume_only(make: AdapterMaker) -> None:
    graph = StateGraph(Steps).add_sequence([("a", step("a")), ("b", step("b"))])
    adapter = make(GraphAdapter, graph.add_edge(START, "a").compile(interrupt_before=["b"]))

    stopped = adapter.invoke({"log": ["begun"]})
    assert (stopped["status"], stopped["next_step"]) == ("suspended", ["b"])
    assert stopped["interrupts"] == []
    assert adapter.invoke({})["next_step"] == ["b"]
    assert adapter.invoke({"resume": False})["error_type"] == "InputError"
    assert adapter.invoke({"resume": True})["output"] == str({"log": ["begun", "a", "b"]})


def test_a_failed_step_is_repeated_by_resume_and_left_by_new_input(make: AdapterMaker) -> None:
    broken = [True, True]

    def fragile(state: Steps) -> Steps:
        if broken and broken.pop():
            raise ConnectionError("no line")
        return {"log": ["mended"]}

    graph = StateGraph(Steps).add_sequence([("a", step("a")), ("fragile", fragile)])
    adapter = make(GraphAdapter, graph.add_edge(START, "a"))

    failed = adapter.invoke({"log": ["1"]})
    assert failed["message"] == "Agent Execution Failed: ConnectionError: no line"
    assert adapter.invoke({"log": ["2"]})["status"] == "error"
    done = adapter.invoke({"resume": True})
    assert done["output"] == str({"log": ["1", "a", "2", "a", "mended"]})


def test_a_node_that_fails_after_its_answer_keeps_the_answer(make: AdapterMaker) -> None:
    broken = [True]

    def node(state: Steps) -> Steps:
        answer = interrupt("Go on?")
        if broken and broken.pop():
            raise ConnectionError("no line")
        return {"log": [answer]}

    adapter = make(GraphAdapter, one_node(node, Steps))
    adapter.invoke({"log": []})
    assert adapter.invoke({"input": "yes"})["status"] == "error"
    assert adapter.invoke({"resume": True})["output"] == str({"log": ["yes"]})


# -- which graphs --------------------------------------------------------------------------------------------------


class Holder:
    graph = one_node(chat)


async def made_later() -> StateGraph[Any]:
    return one_node(chat)


@pytest.mark.parametrize(
    "agent",
    [
        one_node(chat),
        one_node(chat).compile(),
        one_node(chat).compile().with_config(tags=["x"]),
        lambda: one_node(chat),
        lambda checkpointer: one_node(chat).compile(checkpointer=checkpointer),
        lambda settings: one_node(chat),
        made_later,
        Holder,
        Holder(),
    ],
    ids=[
        "builder",
        "compiled",
        "bound",
        "factory",
        "with saver",
        "with input",
        "async",
        "class",
        "object",
    ],
)
def test_entry_points_that_hold_a_graph(make: AdapterMaker, agent: Any) -> None:
    assert make(GraphAdapter, agent).invoke({"input": "hi"})["output"] == "1 messages"
    # Nothing of the first run is left in this adapter but the store.
    assert make(GraphAdapter, agent).invoke({"input": "hi"})["output"] == "3 messages"


def test_the_agents_own_graph_object_stays_as_it_is(make: AdapterMaker) -> None:
    graph = one_node(chat).compile()
    make(GraphAdapter, graph).invoke({"input": "hi"})
    assert graph.checkpointer is None


def test_a_functional_agent(make: AdapterMaker) -> None:
    @entrypoint()
    def agent(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"output": interrupt(f"{inputs['messages'][0].content}?")}

    adapter = make(GraphAdapter, agent)
    assert adapter.invoke({"input": "Paris"})["output"] == "Paris?"
    assert adapter.invoke({"input": "Rome"})["output"] == "Rome"


def test_a_graph_with_its_own_saver_keeps_it(make: AdapterMaker) -> None:
    saver = InMemorySaver()
    adapter = make(GraphAdapter, one_node(chat).compile(checkpointer=saver))
    adapter.invoke({"input": "hi"})
    assert saver.get_tuple({"configurable": {"thread_id": "default_thread"}})
    assert adapter.store.load_messages("default_thread") == []


def test_a_graph_that_keeps_nothing(make: AdapterMaker) -> None:
    adapter = make(GraphAdapter, one_node(chat).compile(checkpointer=False))
    assert adapter.invoke({"input": "hi"})["output"] == "1 messages"
    assert adapter.invoke({"input": "hi"})["output"] == "1 messages"


def test_no_graph_at_all(make: AdapterMaker) -> None:
    result = make(GraphAdapter, "graph").invoke({"input": "hi"})
    assert "expected a StateGraph" in result["message"]


def test_types_of_the_graphs_own_state_are_read_back(make: AdapterMaker) -> None:
    def node(state: _Order) -> dict[str, Any]:
        assert isinstance(state.item, _Item)
        return {"item": _Item(state.item.count + 1)}

    # Compiled before any store is open.
    adapter = make(GraphAdapter, one_node(node, _Order).compile())
    adapter.invoke({"item": _Item(1)})
    assert adapter.invoke({})["output"] == str({"item": _Item(3)})


@dataclass
class _Item:
    count: int


@dataclass
class _Order:
    item: _Item


# -- graphs that only run asynchronously ---------------------------------------------------------------------------


async def achat(state: MessagesState) -> dict[str, Any]:
    await asyncio.sleep(0)
    return chat(state)


@tool
async def look_up(word: str) -> str:
    """Look a word up."""
    return f"{word}: found"


async def achoose(state: MessagesState) -> str:
    return END


def calls_tool(state: MessagesState) -> dict[str, Any]:
    call = {"name": "look_up", "args": {"word": "cat"}, "id": "1"}
    return {"messages": [AIMessage("", tool_calls=[call])]}


@pytest.mark.parametrize(
    ("agent", "output"),
    [
        (one_node(achat), "1 messages"),
        (one_node(one_node(achat).compile()), "1 messages"),
        (one_node(chat).add_conditional_edges("node", achoose), "1 messages"),
        (
            one_node(calls_tool).add_node("tools", ToolNode([look_up])).add_edge("node", "tools"),
            "cat: found",
        ),
    ],
    ids=["node", "subgraph", "branch", "tool"],
)
def test_async_parts(make: AdapterMaker, agent: Any, output: str) -> None:
    assert make(GraphAdapter, agent).invoke({"input": "hi"})["output"] == output


async def test_async_parts_inside_a_running_loop(make: AdapterMaker) -> None:
    assert make(GraphAdapter, one_node(achat)).invoke({"input": "hi"})["output"] == "1 messages"


@pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="interrupt() in async nodes needs Python 3.11: LangGraph's limit",
)
def test_an_async_node_that_asks(make: AdapterMaker) -> None:
    async def node(state: Steps) -> Steps:
        return {"log": [interrupt("Go on?")]}

    adapter = make(GraphAdapter, one_node(node, Steps))
    assert adapter.invoke({"log": []})["output"] == "Go on?"
    assert adapter.invoke({"input": "yes"})["output"] == str({"log": ["yes"]})


# -- failures ------------------------------------------------------------------------------------------------------


def test_a_conflict_is_told_in_words(make: AdapterMaker) -> None:
    phone = make(GraphAdapter, one_node(chat), device="phone")

    def overtaken(state: MessagesState) -> dict[str, Any]:
        # The laptop's own checkpoint may still be on its way, and win over the phone's first try.
        while phone.invoke({"input": "meanwhile"})["status"] == "error":
            pass
        return chat(state)

    laptop = make(GraphAdapter, one_node(overtaken), device="laptop")
    result = laptop.invoke({"input": "hi"})
    assert result["error_type"] == "ThreadConflictError"
    assert "'default_thread' was moved on by device 'phone'" in result["message"]


def test_tool_calls_are_told_to_the_runtime(make: AdapterMaker, capfd: Any) -> None:
    make(GraphAdapter, one_node(lambda state: {"log": [shout.invoke("hi")]}, Steps)).invoke(
        {"log": []}
    )
    assert '{"type": "tool_usage", "tool": "shout", "count": 1}' in capfd.readouterr().out


@tool
def shout(text: str) -> str:
    """Say it louder."""
    return text.upper()
