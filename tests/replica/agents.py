"""The agents that the devices of test_histories run on shared threads: each turn leaves its name in the messages."""

from __future__ import annotations

import itertools
import operator
from typing import Annotated, Any

from langchain_core.messages import AIMessage, AnyMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import _messages_delta_reducer
from langgraph.types import interrupt
from typing_extensions import TypedDict

from charm_checkpoint.saver import CheckpointSaver

NOTES = "note"
"""Namespace of the subgraph that has a checkpointer of its own."""


class _DeltaState(TypedDict):
    messages: Annotated[
        list[AnyMessage], DeltaChannel(_messages_delta_reducer, snapshot_frequency=4)
    ]


class _Notes(TypedDict):
    turn: str
    log: Annotated[list[str], operator.add]


class _NotingState(MessagesState):
    turn: str


def _answer(state: MessagesState) -> dict[str, Any]:
    return {"messages": [AIMessage(f"re {state['messages'][-1].content}")]}


def _ask(state: MessagesState) -> dict[str, Any]:
    # There is nothing when it was deleted elsewhere just before somebody answered.
    said = state["messages"][-1].content if state["messages"] else "nothing"
    return {"messages": [AIMessage(f"re {said}: {interrupt(said)}")]}


def _chain(schema: type, *nodes: tuple[str, Any]) -> Any:
    builder = StateGraph(schema)
    names = [START, *(name for name, _ in nodes), END]
    for name, node in nodes:
        builder.add_node(name, node)
    for one, other in itertools.pairwise(names):
        builder.add_edge(one, other)
    return builder


def agent(kind: str, saver: CheckpointSaver) -> Any:
    """A compiled graph.

    Args:
        kind: `"chat"`; `"ask"`, which waits for an answer; `"nest"`, whose subgraph does; `"note"`, whose subgraph
            keeps a log of its own; `"delta"`, whose messages are in a DeltaChannel.
        saver: Where its threads are.
    """
    if kind == "ask":
        graph = _chain(MessagesState, ("think", lambda _: {}), ("ask", _ask))
    elif kind == "nest":
        inner = _chain(MessagesState, ("weigh", lambda _: {}), ("ask", _ask)).compile()
        graph = _chain(MessagesState, ("inner", inner))
    elif kind == "note":
        notes = _chain(_Notes, ("log", lambda state: {"log": [state["turn"]]}))
        inner = notes.compile(checkpointer=True)
        graph = _chain(_NotingState, (NOTES, inner), ("answer", _answer))
    elif kind == "delta":
        # As a lambda it has no annotation, of which the graph would make another `messages`.
        graph = _chain(_DeltaState, ("think", lambda _: {}), ("answer", lambda s: _answer(s)))
    else:
        graph = _chain(MessagesState, ("think", lambda _: {}), ("answer", _answer))
    return graph.compile(checkpointer=saver)
