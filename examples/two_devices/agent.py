"""An agent that keeps a trip, on whatever device it is started: what is typed on one is known on the others.

    DATABASE_URL=postgresql://… python agent.py trip

It answers line by line, asks before it books, and works on without a network. Everything is in a file of this device's
workspace first (`replica=True`), and goes to the database as soon as it can be reached.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from charm_checkpoint import open_store


def agent(state: MessagesState) -> dict[str, Any]:
    """Stands in for a model."""
    text = state["messages"][-1].text
    if not text.startswith("Book"):
        return {"messages": [("ai", f"Noted: {text}")]}
    answer = interrupt(f"{text} For 31 euros? (yes/no)")
    return {"messages": [("ai", "It is booked." if answer == "yes" else "It is not booked.")]}


def main(thread: str) -> None:
    builder = StateGraph(MessagesState).add_node(agent).add_edge(START, "agent")
    config: Any = {"configurable": {"thread_id": thread}}
    with open_store(os.environ["DATABASE_URL"], replica=True) as store:
        graph = builder.compile(checkpointer=store.get_langgraph_checkpointer())
        print(stands(graph, config), flush=True)
        for line in sys.stdin:
            # The thread may have moved on elsewhere: an answer goes to the question that waits now.
            asked = graph.get_state(config).interrupts
            said: Any = {"messages": [("user", line.strip())]}
            graph.invoke(Command(resume=line.strip()) if asked else said, config)
            print(stands(graph, config), flush=True)


def stands(graph: Any, config: Any) -> str:
    """The question that waits, else what was said last."""
    state = graph.get_state(config)
    if state.interrupts:
        return str(state.interrupts[0].value)
    messages = state.values.get("messages")
    return str(messages[-1].text) if messages else "Where are we going?"


if __name__ == "__main__":
    main(*sys.argv[1:])
