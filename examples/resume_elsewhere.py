"""An agent asks on one device and gets its answer on another.

    CHARM_DEVICE=laptop python resume_elsewhere.py sqlite:///shared.db ask
    CHARM_DEVICE=phone  python resume_elsewhere.py sqlite:///shared.db answer yes

Between the two nothing runs. The second process finds the question in the store: it gets the same URL and the same
thread, and nothing else.
"""

from __future__ import annotations

import sys
from typing import Any, TypedDict

from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt

from charm_checkpoint import open_store


class Payment(TypedDict):
    euros: int
    done: str


def approve(state: Payment) -> dict[str, Any]:
    answer = interrupt(f"Pay {state['euros']} euros?")
    return {"done": "paid" if answer == "yes" else "not paid"}


def main(url: str, action: str, answer: str = "") -> None:
    builder = StateGraph(Payment).add_node(approve).add_edge(START, "approve")
    config: Any = {"configurable": {"thread_id": "invoice-7"}}
    with open_store(url) as store:
        graph = builder.compile(checkpointer=store.get_langgraph_checkpointer())
        if action == "ask":
            graph.invoke({"euros": 31}, config)
            print("Asked:", graph.get_state(config).interrupts[0].value)
            return
        waiting = graph.get_state(config).interrupts
        if not waiting:
            raise SystemExit("Nobody asked anything.")
        print("Found:", waiting[0].value)
        print("Invoice 7 is", graph.invoke(Command(resume=answer), config)["done"] + ".")


if __name__ == "__main__":
    main(*sys.argv[1:])
