"""Types of somebody's state, for test_bad_input and test_types. Run as a module it stores some and ends."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from typing_extensions import TypedDict


@dataclass
class Point:
    """A dataclass."""

    x: int
    note: Any = None


@dataclass(slots=True)
class Slotted:
    """A dataclass without a `__dict__`."""

    note: Any = None


class Person(BaseModel):
    """A pydantic model."""

    name: str
    note: Any = None


class Mood(Enum):
    """An enum."""

    GOOD = "good"


class Shapes(TypedDict):
    """A state whose channels hold these."""

    point: Point
    person: Person
    mood: Mood


VALUES: dict[str, Any] = {"point": Point(3), "person": Person(name="Ada"), "mood": Mood.GOOD}


def shapes_graph(saver: Any) -> Any:
    """A graph with such a state, that does nothing to it."""
    from langgraph.graph import END, START, StateGraph

    builder = StateGraph(Shapes)
    builder.add_node("nothing", lambda state: {})
    builder.add_edge(START, "nothing")
    builder.add_edge("nothing", END)
    return builder.compile(checkpointer=saver)


if __name__ == "__main__":
    # By the name that others know it by, not as `__main__`.
    from tests.core.shapes import VALUES as ALL
    from tests.core.support import opened, place, put

    with opened(Path(sys.argv[1])) as saver:
        for name, value in ALL.items():
            put(saver, place(name), **{name: value})
        put(saver, place("all"), **ALL)
