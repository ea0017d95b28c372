"""One device of the demo: a process of its own that gets a store's URL and a thread's id, and nothing else.

It tells what it did in one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from charm_checkpoint import BaseMemoryStore, open_store

__all__ = ["NOTE", "REQUEST", "main"]

REQUEST = "A train from Porto to Lisbon on Friday morning, please."
NOTE = "Reminder: leave for the station at 09:00."


def main() -> None:
    """Run as `python -m charm_checkpoint.cli.demo.device ROLE DEVICE URL THREAD`."""
    role, device, url, thread = sys.argv[1:]
    play = {"begin": _begin, "go-on": _go_on, "plain": _plain}[role]
    with open_store(url, device=device) as store:
        play(store, thread)


def _tell(**facts: Any) -> None:
    print(json.dumps({"pid": os.getpid(), **facts}), flush=True)


def _begin(store: BaseMemoryStore, thread: str) -> None:
    graph, config = _graph(store, thread)
    graph.invoke({"messages": [("user", REQUEST)]}, config)
    _tell(found=_standing(graph, config))
    sys.stdin.readline()  # the answer, which never comes


def _go_on(store: BaseMemoryStore, thread: str) -> None:
    from langgraph.types import Command

    graph, config = _graph(store, thread)
    found = _standing(graph, config)
    result = graph.invoke(Command(resume="yes"), config)
    _tell(found=found, ran=result["ran"], messages=[m.text for m in result["messages"]])


def _plain(store: BaseMemoryStore, thread: str) -> None:
    history = store.load_messages(thread)
    store.append_messages(thread, [{"role": "assistant", "content": NOTE}])
    _tell(history=history, graph_code="langgraph.pregel" in sys.modules)


def _graph(store: BaseMemoryStore, thread: str) -> tuple[Any, Any]:
    from charm_checkpoint.cli.demo.agent import build

    graph = build().compile(checkpointer=store.get_langgraph_checkpointer())
    return graph, {"configurable": {"thread_id": thread}}


def _standing(graph: Any, config: Any) -> dict[str, Any]:
    """Where a thread stands, as LangGraph tells."""
    state = graph.get_state(config)
    return {
        "checkpoint_id": state.config["configurable"]["checkpoint_id"],
        "step": state.metadata["step"],
        "next": list(state.next),
        "questions": [interrupt.value for interrupt in state.interrupts],
        "messages": [message.text for message in state.values["messages"]],
    }


if __name__ == "__main__":
    main()
