from __future__ import annotations

from langgraph.graph import START, MessagesState, StateGraph

import charm_adapter_checkpoint.patch  # noqa: F401 -- the stock adapter reads runtime.memory


def count(state: MessagesState) -> dict[str, object]:
    return {"messages": [("ai", f"{len(state['messages'])} messages so far")]}


graph = StateGraph(MessagesState).add_node(count).add_edge(START, "count")
