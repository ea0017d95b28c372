from __future__ import annotations

from langgraph.graph import START, MessagesState, StateGraph


def count(state: MessagesState) -> dict[str, object]:
    return {"messages": [("ai", f"{len(state['messages'])} messages so far")]}


graph = StateGraph(MessagesState).add_node(count).add_edge(START, "count")
