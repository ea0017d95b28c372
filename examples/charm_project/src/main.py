"""A refund desk: the graph stops for an approval, and goes on when it comes, in whatever process that is."""

from __future__ import annotations

import re
from dataclasses import dataclass

from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import interrupt

PRICES = {"1207": 40, "1311": 250}


@dataclass
class Order:
    number: str
    euros: int


class Refund(MessagesState):
    order: Order | None


def look_up(state: Refund) -> dict[str, object]:
    found = re.search(r"\d+", str(state["messages"][-1].text))
    if found and found.group() in PRICES:
        return {"order": Order(found.group(), PRICES[found.group()])}
    return {"order": None, "messages": [("ai", "Which order? I know 1207 and 1311.")]}


def approve(state: Refund) -> dict[str, object]:
    order = state["order"]
    assert order is not None
    answer = interrupt(f"Refund {order.euros} euros for order {order.number}? (yes/no)")
    done = "is refunded" if str(answer).strip().lower() == "yes" else "is not refunded"
    return {"messages": [("ai", f"Order {order.number} {done}.")]}


def known(state: Refund) -> str:
    return "approve" if state["order"] else END


builder = StateGraph(Refund)
builder.add_node("look_up", look_up)
builder.add_node("approve", approve)
builder.add_edge(START, "look_up")
builder.add_conditional_edges("look_up", known, ["approve", END])

# No checkpointer here: the adapter adds the one that charm.yaml names.
graph = builder.compile()
