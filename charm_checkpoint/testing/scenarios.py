"""Graphs and what is done with them. Nodes are plain functions, which run in both colours on every Python."""

from __future__ import annotations

import operator
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, NamedTuple

from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send, StateSnapshot, StateUpdate, interrupt
from typing_extensions import TypedDict

from charm_checkpoint.testing.colours import Driver, Saver


class Items(TypedDict):
    """The state of most graphs here."""

    items: Annotated[list[str], operator.add]
    note: str


class Scenario(NamedTuple):
    """A graph, and what is done with it."""

    name: str
    build: Callable[[Saver], Any]
    play: Callable[[Driver], Awaitable[Any]]
    """Tells what it saw on the way."""
    context: bool = False
    """Whether its nodes look up the run they are in."""


def chat(saver: Saver, **options: Any) -> Any:
    """`say`, then `count`: one turn."""

    def say(state: Items) -> Any:
        return {"items": [f"said {state['items'][-1]}"]}

    def count(state: Items) -> Any:
        return {"note": str(len(state["items"]))}

    builder = StateGraph(Items)
    builder.add_node("say", say)
    builder.add_node("count", count)
    builder.add_edge(START, "say")
    builder.add_edge("say", "count")
    return builder.compile(checkpointer=saver, **options)


def meddling(saver: Saver, meddle: Callable[[], None]) -> Any:
    """A turn in the midst of which something happens to its thread."""

    def work(state: Items) -> Any:
        meddle()
        return {"items": ["worked"]}

    def finish(state: Items) -> Any:
        return {"note": "finished"}

    builder = StateGraph(Items)
    builder.add_node("work", work)
    builder.add_node("finish", finish)
    builder.add_edge(START, "work")
    builder.add_edge("work", "finish")
    return builder.compile(checkpointer=saver)


def turn(text: str) -> Any:
    """A turn's input."""
    return {"items": [text]}


def _asking(saver: Saver | bool | None) -> Any:
    """Asks twice in one node, then answers."""

    def ask(state: Items) -> Any:
        return {"items": [interrupt("first?"), interrupt("second?")]}

    def answer(state: Items) -> Any:
        return {"items": ["answered"], "note": "done"}

    builder = StateGraph(Items)
    builder.add_node("ask", ask)
    builder.add_node("answer", answer)
    builder.add_edge(START, "ask")
    builder.add_edge("ask", "answer")
    return builder.compile(checkpointer=saver)


def _with_subgraph(own: bool) -> Callable[[Saver], Any]:
    """A root with a subgraph that asks; with a checkpointer of its own it remembers from call to call."""

    def build(saver: Saver) -> Any:
        def after(state: Items) -> Any:
            return {"items": ["after"]}

        builder = StateGraph(Items)
        builder.add_node("sub", _asking(own or None))
        builder.add_node("after", after)
        builder.add_edge(START, "sub")
        builder.add_edge("sub", "after")
        return builder.compile(checkpointer=saver)

    return build


def _nested(saver: Saver) -> Any:
    middle = StateGraph(Items)
    middle.add_node("inner", _asking(None))
    middle.add_edge(START, "inner")
    builder = StateGraph(Items)
    builder.add_node("middle", middle.compile())
    builder.add_edge(START, "middle")
    return builder.compile(checkpointer=saver)


def _remembering(saver: Saver) -> Any:
    """Calls a subgraph that counts its calls in a state that only it has."""

    class Own(TypedDict):
        items: list[str]
        calls: Annotated[list[str], operator.add]

    def remember(state: Own) -> Any:
        return {"calls": ["call"]}

    sub = StateGraph(Own)
    sub.add_node("remember", remember)
    sub.add_edge(START, "remember")
    graph = sub.compile(checkpointer=True)

    def call(state: Items) -> Any:
        called = graph.invoke(Own(items=state["items"], calls=[]))
        return {"items": [str(len(called["calls"]))]}

    builder = StateGraph(Items)
    builder.add_node("call", call)
    builder.add_edge(START, "call")
    return builder.compile(checkpointer=saver)


def _fan_out(saver: Saver) -> Any:
    """Twelve tasks at once, of which two ask."""

    def spread(state: Items) -> Any:
        return [Send("work", {"n": n}) for n in range(12)]

    def work(job: dict[str, int]) -> Any:
        answer = interrupt(f"{job['n']}?") if job["n"] in (3, 11) else "no"
        return {"items": [f"{job['n']} {answer}"]}

    builder: Any = StateGraph(Items)
    builder.add_node("work", work)
    builder.add_conditional_edges(START, spread, ["work"])
    return builder.compile(checkpointer=saver)


def _failing(saver: Saver) -> Any:
    """The second node fails the first time; the one before it must not run again."""
    runs = {"good": 0, "bad": 0}

    def good(state: Items) -> Any:
        runs["good"] += 1
        return {"items": [f"good {runs['good']}"]}

    def bad(state: Items) -> Any:
        runs["bad"] += 1
        if runs["bad"] == 1:
            raise ValueError("not yet")
        return {"items": ["bad"]}

    builder = StateGraph(Items)
    builder.add_node("good", good)
    builder.add_node("bad", bad)
    builder.add_edge(START, "good")
    builder.add_edge("good", "bad")
    return builder.compile(checkpointer=saver)


def _functional(saver: Saver) -> Any:
    @task
    def double(n: int) -> int:
        return n * 2

    @entrypoint(checkpointer=saver)
    def flow(n: int, *, previous: Any = None) -> Any:
        doubled = [double(n + i).result() for i in range(3)]
        answer = interrupt(f"{doubled}?")
        return entrypoint.final(value=[answer, previous], save=sum(doubled))

    return flow


def _jumping(saver: Saver) -> Any:
    def hop(state: Items) -> Any:
        last = len(state["items"]) >= 4
        return Command(goto=END if last else "hop", update={"items": ["hop"]})

    builder = StateGraph(Items)
    builder.add_node("hop", hop)
    builder.add_edge(START, "hop")
    return builder.compile(checkpointer=saver)


async def _turns(driver: Driver) -> Any:
    return [await driver.invoke(turn(text)) for text in ("a", "b", "c")]


async def _answers(driver: Driver) -> Any:
    asked = await driver.invoke(turn("go"))
    told = [[i.value for i in asked["__interrupt__"]]]
    for answer in ("one", "two"):
        told.append([i.value for i in (await driver.state(subgraphs=True)).interrupts])
        await driver.invoke(Command(resume=answer))
    return told


async def _answers_twice(driver: Driver) -> Any:
    return [await _answers(driver), await _answers(driver)]


async def _gives_up_asking(driver: Driver) -> Any:
    await driver.invoke(turn("go"))
    await driver.invoke(Command(resume="one"))
    await driver.invoke(turn("something else"))
    return [i.value for i in (await driver.state()).interrupts]


async def _edits_while_asked(driver: Driver) -> Any:
    """`update_state` on the root and on the subgraph that waits."""
    await driver.invoke(turn("go"))
    [waiting] = (await driver.state(subgraphs=True)).tasks
    assert isinstance(waiting.state, StateSnapshot)
    await driver.update({"items": ["edited"]}, waiting.state.config)
    for answer in ("one", "two"):
        await driver.invoke(Command(resume=answer))


async def _answers_by_id(driver: Driver) -> Any:
    await driver.invoke(turn("go"))
    waiting = (await driver.state()).interrupts
    await driver.invoke(Command(resume={waiting[0].id: "first"}))
    await driver.invoke(Command(resume={waiting[1].id: "second"}))
    return [i.value for i in waiting]


async def _stops_before(driver: Driver) -> Any:
    for text in ("a", "b"):
        await driver.invoke(turn(text))
        await driver.update({"items": [f"edited {text}"]})
        await driver.invoke(None)


async def _travels(driver: Driver) -> Any:
    """Replays, forks by `update_state`, and goes on from the fork."""
    await driver.invoke(turn("a"))
    past = (await driver.state()).config
    await driver.invoke(turn("b"))
    told = [await driver.invoke(None, (await driver.history())[1].config)]
    forked = await driver.update({"items": ["forked"]}, past, as_node="say")
    told.append(await driver.invoke(None, forked))
    told.append(await driver.invoke(turn("c"), past))
    told.append(await driver.invoke(turn("d")))
    return told


async def _replays_from_the_start(driver: Driver) -> Any:
    await driver.invoke(turn("a"))
    await driver.invoke(turn("b"))
    first = (await driver.history())[-1]
    await driver.invoke(None, first.config)
    await driver.update({"items": ["forked"]}, first.config, as_node="say")
    return await driver.invoke(turn("c"))


async def _edits(driver: Driver) -> Any:
    """Begins with `update_state`, alone and in bulk."""
    await driver.update({"items": ["edited"]}, as_node="say")
    await driver.invoke(turn("a"))
    updates = [
        [StateUpdate({"items": ["x"]}, "say"), StateUpdate({"note": "y"}, "count")],
        [StateUpdate({"items": ["z"]}, "say")],
    ]
    await driver.bulk_update(updates)
    await driver.update(None, as_node=END)
    return await driver.invoke(turn("b"))


async def _fails_and_goes_on(driver: Driver) -> Any:
    try:
        await driver.invoke(turn("a"))
    except ValueError as error:
        told = [str(error), (await driver.state()).next]
    return [*told, await driver.invoke(None), await driver.invoke(turn("b"))]


async def _flows(driver: Driver) -> Any:
    told = []
    for n in (1, 10):
        told.append([i.value for i in (await driver.invoke(n))["__interrupt__"]])
        told.append(await driver.invoke(Command(resume=f"yes {n}")))
    return told


SCENARIOS = [
    Scenario("chat", chat, _turns),
    Scenario("interrupts", _asking, _answers_twice, context=True),
    Scenario("interrupt-given-up", _asking, _gives_up_asking, context=True),
    Scenario("interrupt-before", lambda s: chat(s, interrupt_before=["count"]), _stops_before),
    Scenario("subgraph", _with_subgraph(own=False), _answers_twice, context=True),
    Scenario("subgraph-with-own", _with_subgraph(own=True), _answers_twice, context=True),
    Scenario("subgraph-edited", _with_subgraph(own=False), _edits_while_asked, context=True),
    Scenario("subgraph-remembers", _remembering, _turns, context=True),
    Scenario("nested-subgraphs", _nested, _answers_twice, context=True),
    Scenario("send", _fan_out, _answers_by_id, context=True),
    Scenario("failure", _failing, _fails_and_goes_on),
    Scenario("functional", _functional, _flows, context=True),
    Scenario("goto", _jumping, _turns),
    Scenario("time-travel", chat, _travels),
    Scenario("replay-from-start", chat, _replays_from_the_start),
    Scenario("update-state", chat, _edits),
]
