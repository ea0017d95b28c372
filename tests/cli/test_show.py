from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.channels import DeltaChannel
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import _messages_delta_reducer
from langgraph.types import Command, Send, interrupt

from charm_checkpoint.cli import reports
from charm_checkpoint.cli.show import gather, said
from charm_checkpoint.sqlite import LocalMemory

Run = Callable[..., Any]
CONFIG: Any = {"configurable": {"thread_id": "t"}}


def test_json(call: Run, url: str, conforms: Callable[[Any, Any], bool]) -> None:
    report = call("show", "trip", "--store", url, "--json").json
    assert conforms(report, reports.Shown)
    assert report["status"] == "interrupted"
    assert report["head"]["step"] == 1
    assert report["head"]["device"] == "laptop"
    assert report["next"] == ["approve"]  # the node beside it has run
    (asked,) = report["interrupts"]
    assert asked["node"] == "approve"
    assert asked["value"] == {"question": "Book it?", "euros": 31}


def test_type_that_is_not_allowed_hides_nothing_else(call: Run, url: str) -> None:
    report = call("show", "trip", "--store", url, "--json").json
    channels = {channel["name"]: channel for channel in report["channels"]}
    assert "Seat" in channels["seat"]["error"]
    assert channels["seat"]["preview"] is None
    assert channels["note"]["preview"] == "'by the window'"
    assert [m["content"] for m in report["messages"]] == ["A seat, please.", "Found one."]
    done = call("show", "trip", "--store", url)
    assert (done.code, done.err) == (0, "")  # LangGraph's own warning is not repeated
    assert "not shown: " in done.out


def test_piped_text(run: Run, url: str, plain: Callable[[str], bool]) -> None:
    out = run("show", "trip", "--store", url).out
    assert plain(out)
    for line in (
        "Status   interrupted: it waits for an answer",
        "Next     approve",
        "Waits in approve for an answer to:",
        '    "question": "Book it?",',
        "assistant  Found one.",
    ):
        assert line in out


def test_failed_thread(call: Run, url: str) -> None:
    report = call("show", "broken", "--store", url, "--json").json
    assert report["status"] == "failed"
    (failure,) = report["failures"]
    assert failure["node"] == "break_down"
    assert "the ticket machine is out of order" in failure["error"]
    assert "Failed in break_down:" in call("show", "broken", "--store", url).out


def test_last_messages(call: Run, url: str) -> None:
    report = call("show", "talk", "--store", url, "--json", "--messages", "2").json
    assert [m["content"] for m in report["messages"]] == ["line 6", "line 7"]
    assert report["message_count"] == 8
    assert "Last 5 of 8 messages" in call("show", "talk", "--store", url).out
    assert call("show", "talk", "--store", url, "--json", "--messages", "0").json["messages"] == []


def test_stored_text_cannot_command_the_terminal(
    call: Run, url: str, odd: str, plain: Callable[[str], bool]
) -> None:
    done = call("show", odd, "--store", url)
    assert done.code == 0
    assert plain(done.out)
    assert r"colour \x1b[31m\u202e" in done.out
    (message,) = call("show", odd, "--store", url, "--json").json["messages"]
    assert message["content"] == "colour \x1b[31m\u202e"


def test_terminal_of_80_columns(terminal: Run, url: str) -> None:
    done = terminal("show", "trip", "--store", url, NO_COLOR="1")
    assert done.code == 0
    assert max(len(line) for line in done.out.splitlines()) <= 80


# -- next, as LangGraph itself tells it --------------------------------------------------------------------------------


class State(TypedDict, total=False):
    done: Annotated[list[str], operator.add]


def node(name: str) -> Callable[[State], State]:
    return lambda state: {"done": [name]}


def ask(state: State) -> State:
    return {"done": [interrupt("?")]}


def graph(*edges: tuple[Any, str], defer: Sequence[str] = ()) -> StateGraph[Any]:
    """Nodes called `ask…` wait for an answer."""
    built = StateGraph(State)
    ends = {
        end
        for start, end in edges
        for end in (start if isinstance(start, list) else [start], [end])[1]
    }
    starts = {s for start, _ in edges for s in (start if isinstance(start, list) else [start])}
    for name in sorted((ends | starts) - {START, END}):
        built.add_node(name, ask if name.startswith("ask") else node(name), defer=name in defer)
    for start, end in edges:
        built.add_edge(start, end)
    return built


def fan_out() -> StateGraph[Any]:
    built = graph((START, "a"), ("b", END), ("ask", END))
    built.add_conditional_edges("a", lambda _: [Send("b", {}), Send("ask", {}), Send("ask", {})])
    return built


GRAPHS = {
    "one after the other": graph((START, "a"), ("a", "ask")),
    "beside a finished one": graph((START, "a"), ("a", "b"), ("a", "ask")),
    "two at once": graph((START, "ask1"), (START, "ask2")),
    "waits for both": graph((START, "a"), (START, "ask"), (["a", "ask"], "c")),
    "both are there": graph((START, "a"), (START, "b"), (["a", "b"], "ask")),
    "deferred": graph(
        *((START, "a"), (START, "b"), ("a", "c"), ("b", "ask"), ("ask", "c")), defer=["c"]
    ),
    "deferred join": graph(
        *((START, "a"), (START, "b"), (["a", "b"], "c"), ("b", "ask")), defer=["c"]
    ),
    "sends": fan_out(),
    "finished": graph((START, "a")),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("before", [[], ["ask", "ask1", "a"]], ids=["interrupt", "breakpoint"])
def test_next_is_what_langgraph_says(name: str, before: list[str], tmp_path: Path) -> None:
    with LocalMemory({"path": str(tmp_path / "t.db")}) as store:
        built = GRAPHS[name]
        stops = [n for n in before if n in built.nodes]
        compiled = built.compile(store.get_langgraph_checkpointer(), interrupt_before=stops)
        compiled.invoke({"done": []}, CONFIG)
        for _ in range(4):
            report = gather(store, "t", 5)
            state = compiled.get_state(CONFIG)
            assert report["next"] == sorted(state.next)
            assert [i["value"] for i in report["interrupts"]] == [i.value for i in state.interrupts]
            if not state.next:
                break
            answers = {i.id: "yes" for i in state.interrupts[:1]}
            compiled.invoke(Command(resume=answers) if answers else None, CONFIG)


def test_a_subgraph_that_asks(tmp_path: Path) -> None:
    inner = graph((START, "ask")).compile()
    with LocalMemory({"path": str(tmp_path / "t.db")}) as store:
        outer = StateGraph(State).add_node("inner", inner).add_edge(START, "inner")
        outer.compile(store.get_langgraph_checkpointer()).invoke({"done": []}, CONFIG)
        report = gather(store, "t", 5)
    assert report["next"] == ["inner"]
    assert [(i["node"], i["value"]) for i in report["interrupts"]] == [("inner", "?")]
    assert [n.partition(":")[0] for n in report["namespaces"]] == ["", "inner"]


def test_a_function_that_asks(tmp_path: Path) -> None:
    @task
    def price(of: str) -> int:
        return len(of)

    with LocalMemory({"path": str(tmp_path / "t.db")}) as store:

        @entrypoint(store.get_langgraph_checkpointer())
        def buy(what: str) -> str:
            return f"{price(what).result()} {interrupt('?')}"

        buy.invoke("ticket", CONFIG)
        assert gather(store, "t", 5)["next"] == sorted(buy.get_state(CONFIG).next)


class Chat(TypedDict):
    messages: Annotated[list[Any], DeltaChannel(_messages_delta_reducer)]


def test_messages_kept_as_changes(tmp_path: Path) -> None:
    with LocalMemory({"path": str(tmp_path / "t.db")}) as store:
        chat = StateGraph(Chat).add_node("a", lambda _: {"messages": [("ai", "hello")]})
        built = chat.add_edge(START, "a").compile(store.get_langgraph_checkpointer())
        built.invoke({"messages": [("user", "hi")]}, CONFIG)
        report = gather(store, "t", 5)
    assert [m["content"] for m in report["messages"]] == ["hi", "hello"]
    assert [(c["name"], c["error"]) for c in report["channels"]] == [("messages", None)]


class Post(TypedDict):
    messages: str


def test_messages_that_are_none(tmp_path: Path) -> None:
    with LocalMemory({"path": str(tmp_path / "t.db")}) as store:
        post = StateGraph(Post).add_node("a", lambda _: {"messages": "a letter"})
        built = post.add_edge(START, "a").compile(store.get_langgraph_checkpointer())
        built.invoke({"messages": ""}, CONFIG)
        report = gather(store, "t", 5)
    assert report["messages"] == []
    assert "no message history" in (report["messages_error"] or "")


def test_tools_and_blocks_are_told() -> None:
    assert said({"content": [{"type": "text", "text": "see"}, {"type": "image"}]}) == "see [image]"
    call = {"function": {"name": "search", "arguments": '{"to":"Lisbon"}'}}
    assert said({"content": "", "tool_calls": [call]}) == '→ search({"to":"Lisbon"})'
    assert said({"role": "x", "note": 1}) == "{'note': 1, 'role': 'x'}"
