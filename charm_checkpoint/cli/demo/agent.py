"""The demo's agent: a graph that finds a train, and asks before it books."""

from __future__ import annotations

import operator
import os
from typing import Annotated, Any

from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt

__all__ = ["Trip", "build"]


class Trip(MessagesState):
    """What the agent knows of a trip."""

    offer: str
    ran: Annotated[list[str], operator.add]
    """Which node ran in which process: what the demo proves its claims with."""


def search(state: Trip) -> dict[str, Any]:
    """Find a train."""
    offer = "the 09:40 to Lisbon for 31 euros"
    return {"offer": offer, "messages": [("ai", f"I found {offer}.")], "ran": _here("search")}


def approve(state: Trip) -> dict[str, Any]:
    """Stop until a person has answered, in whatever process that is."""
    answer = interrupt(f"Book {state['offer']}? (yes/no)")
    return {"messages": [("user", answer)], "ran": _here("approve")}


def book(state: Trip) -> dict[str, Any]:
    """Book it, if that was the answer."""
    agreed = state["messages"][-1].text == "yes"
    reply = f"Booked: {state['offer']}." if agreed else "Nothing was booked."
    return {"messages": [("ai", reply)], "ran": _here("book")}


def _here(node: str) -> list[str]:
    return [f"{node} in process {os.getpid()}"]


def build() -> StateGraph[Any]:
    """Return the graph, to be compiled with a checkpointer."""
    return StateGraph(Trip).add_sequence([search, approve, book]).add_edge(START, "search")
