"""A graph that remembers: run it again with the same thread, and it knows what was said before.

    python graph_agent.py trip "We leave on Friday."
    python graph_agent.py trip "When do we leave?"

The thread is in ./workspace/.charm/memory/threads.db; `CHARM_MEMORY_PROVIDER=sqlite:///elsewhere.db`, or another
database's URL, keeps it there instead.
"""

from __future__ import annotations

import sys
from typing import Any

from langgraph.graph import START, MessagesState, StateGraph

from charm_checkpoint import open_store


def answer(state: MessagesState) -> dict[str, Any]:
    """Stands in for a model."""
    said = [message.text for message in state["messages"] if message.type == "human"]
    if len(said) == 1:
        return {"messages": [("ai", "Noted.")]}
    return {"messages": [("ai", f"You began with: {said[0]} (This is line {len(said)}.)")]}


def main(thread: str, text: str) -> None:
    builder = StateGraph(MessagesState).add_node(answer).add_edge(START, "answer")
    with open_store() as store:
        graph = builder.compile(checkpointer=store.get_langgraph_checkpointer())
        state = graph.invoke(
            {"messages": [("user", text)]}, {"configurable": {"thread_id": thread}}
        )
    print(state["messages"][-1].text)


if __name__ == "__main__":
    main(*sys.argv[1:])
