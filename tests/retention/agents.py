"""An agent with everything that pruning could spoil, and what can be read of its threads."""

from __future__ import annotations

import operator
import random
from collections.abc import Mapping
from typing import Annotated, Any

from langgraph.channels import DeltaChannel
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt
from typing_extensions import TypedDict

from charm_checkpoint.saver import CheckpointSaver
from tests.core.support import place


def extend(value: list[str] | None, updates: list[list[str]]) -> list[str]:
    return [*(value or ()), *(item for update in updates for item in update)]


def append(old: list[str], new: list[str]) -> list[str]:
    # What a subgraph gives back begins with what it was given.
    return new if new[: len(old)] == old else [*old, *new]


class Inner(TypedDict):
    said: Annotated[list[str], append]


class State(Inner):
    quick: Annotated[list[str], DeltaChannel(extend, snapshot_frequency=3)]
    slow: Annotated[list[str], DeltaChannel(extend, snapshot_frequency=7)]


class Notes(TypedDict):
    said: list[str]
    notes: Annotated[list[str], operator.add]


def agent(saver: CheckpointSaver) -> Any:
    """DeltaChannels with snapshots of their own pace, a subgraph for each call, one that lives on, and questions."""

    def think(state: State) -> Any:
        told = f"{state['said'][-1]} {len(state['said'])}"
        return {"quick": [told], "slow": [told] if len(state["said"]) % 2 else []}

    def ask(state: State) -> Any:
        asked = state["said"][-2].startswith("ask")
        return {"said": [interrupt("?") if asked else "nothing asked"], "quick": ["asked"]}

    def weigh(state: Inner) -> Any:
        return {"said": [f"weighed {len(state['said'])}"]}

    calls = StateGraph(Inner).add_node(weigh).add_edge(START, "weigh").compile()
    log = StateGraph(Notes).add_node("log", lambda state: {"notes": [state["said"][-1]]})
    lives_on = log.add_edge(START, "log").compile(checkpointer=True)
    builder = StateGraph(State).add_node(think).add_node("weigher", calls)
    builder.add_node("noter", lives_on).add_node(ask)
    builder.add_edge(START, "think").add_edge("think", "weigher").add_edge("weigher", "noter")
    return builder.add_edge("noter", "ask").add_edge("ask", END).compile(checkpointer=saver)


def live(graph: Any, thread_id: str, rng: random.Random, turns: int) -> None:
    """Go through a random history: turns, answers, forks from anywhere, updates from outside."""
    thread = place(thread_id)
    for turn in range(turns):
        state = graph.get_state(thread)
        if state.interrupts:
            graph.invoke(Command(resume=f"answer {turn}"), thread)
            continue
        kind = rng.choices(["say", "ask", "fork", "update"], [6, 1, 2, 1])[0]
        if kind == "fork" and turn > 2:
            ended = [s for s in graph.get_state_history(thread) if not s.next]
            graph.invoke({"said": [f"forked {turn}"]}, rng.choice(ended).config)
        elif kind == "update" and turn > 2:
            graph.update_state(thread, {"quick": [f"update {turn}"]}, as_node="ask")
        else:
            graph.invoke({"said": [f"{kind} {turn}"]}, thread)
    if graph.get_state(thread).interrupts:
        graph.invoke(Command(resume="the end"), thread)


View = Mapping[tuple[str, str], Any]


def view(graph: Any, thread_id: str) -> View:
    """All that can be read of a thread, by namespace and checkpoint id."""
    found: dict[tuple[str, str], Any] = {}
    for each in graph.checkpointer.list({"configurable": {"thread_id": thread_id}}):
        configurable = each.config["configurable"]
        key = (configurable["checkpoint_ns"], configurable["checkpoint_id"])
        values = each.checkpoint["channel_values"]
        found[key] = (repr(sorted(values.items())), repr(each.pending_writes))
    for state in graph.get_state_history(place(thread_id)):
        key = ("", state.config["configurable"]["checkpoint_id"])
        found[key] = (state.values, state.next, [i.value for i in state.interrupts])
    return found


def heads(graph: Any, thread_id: str, found: View) -> dict[str, str]:
    """Where each namespace goes on."""
    names = {namespace for namespace, _ in found}
    newest = {n: graph.checkpointer.get_tuple(place(thread_id, namespace=n)) for n in names}
    return {n: each.config["configurable"]["checkpoint_id"] for n, each in newest.items() if each}
