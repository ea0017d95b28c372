"""A strict saver reads back what a graph's state declares, and nothing else."""

from __future__ import annotations

import operator
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional

import pytest
from langchain_core.messages import AIMessage, BaseMessage
from langgraph.func import entrypoint
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from pydantic import BaseModel
from typing_extensions import NotRequired, TypedDict

from charm_checkpoint import CheckpointSaver
from charm_checkpoint.errors import TypeNotAllowedError
from charm_checkpoint.graph_types import collect
from charm_checkpoint.memory import MemoryBackend


class Mood(Enum):
    GOOD = "good"


class Leg(NamedTuple):
    start: str
    end: str


@dataclass
class Trip:
    legs: list[Leg]
    mood: Mood = Mood.GOOD


class Offer(BaseModel):
    trip: Optional[Trip] = None  # noqa: UP045 - the older spelling is what much code has
    price: int = 0


class SpecialOffer(Offer):
    code: str = ""


class Node(BaseModel):
    children: list[Node] = []


class Inner(TypedDict):
    nodes: NotRequired[dict[str, Node]]


OfferId = NewType("OfferId", Offer)
HERE = __name__


def names(*annotations: Any) -> set[str]:
    return {name for module, name in collect(annotations) if module == HERE}


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (Trip, {"Trip", "Leg", "Mood"}),
        (Offer, {"Offer", "SpecialOffer", "Trip", "Leg", "Mood"}),
        (Annotated[Sequence[Leg], operator.add], {"Leg"}),
        (Mapping[str, tuple[Mood, ...]], {"Mood"}),
        (Leg | None, {"Leg"}),
        (Inner, {"Node"}),
        (OfferId, {"Offer", "SpecialOffer", "Trip", "Leg", "Mood"}),
        (Literal["Trip"], set()),
        (Any, set()),
        (None, set()),
        (dict, set()),
    ],
)
def test_data_classes_are_found_however_deep(annotation: Any, expected: set[str]) -> None:
    assert names(annotation) == expected


class State(TypedDict):
    messages: Annotated[Sequence[BaseMessage], add_messages]
    trips: Annotated[Sequence[Trip], operator.add]
    offer: Offer | None
    anything: Any


def graph(saver: CheckpointSaver, anything: Any = None) -> Any:
    def plan(state: State) -> dict[str, Any]:
        trip = Trip([Leg("here", "there")])
        offer = SpecialOffer(trip=trip, price=3, code="x")
        return {
            "messages": [AIMessage("done", id="1")],
            "trips": [trip],
            "offer": offer,
            "anything": anything,
        }

    return StateGraph(State).add_node(plan).add_edge(START, "plan").compile(checkpointer=saver)


CONFIG: Any = {"configurable": {"thread_id": "t"}}


def test_a_graphs_own_types_come_back() -> None:
    saver = CheckpointSaver(MemoryBackend())
    ran = graph(saver).invoke({"trips": []}, CONFIG)
    assert graph(saver).get_state(CONFIG).values == ran
    assert isinstance(ran["offer"], SpecialOffer)


def test_a_type_the_state_does_not_declare_is_named() -> None:
    saver = CheckpointSaver(MemoryBackend())
    graph(saver, Mood.GOOD).invoke({"trips": []}, CONFIG)  # Declared elsewhere in the state.
    assert graph(saver).get_state(CONFIG).values["anything"] is Mood.GOOD
    graph(saver, Node()).invoke({"trips": []}, CONFIG)
    with pytest.raises(TypeNotAllowedError, match=rf"anything.*{HERE}:Node.*allow="):
        graph(saver).get_state(CONFIG)


def test_allow_adds_types() -> None:
    backend = MemoryBackend()
    graph(CheckpointSaver(backend), Node()).invoke({"trips": []}, CONFIG)
    for allow in ([f"{HERE}:Node"], [Node], [(HERE, "Node")], [f"{HERE}.Node"]):
        found = graph(CheckpointSaver(backend, allow=allow)).get_state(CONFIG)
        assert found.values["anything"] == Node()


def test_a_functional_agent_compiles_and_its_types_come_back() -> None:
    saver = CheckpointSaver(MemoryBackend())

    def plan(trip: Any, *, previous: Any = None) -> Any:
        return previous or trip

    # LangGraph reads the annotations as they are, and in this file they are text.
    plan.__annotations__ = {"trip": Trip, "previous": Trip | None, "return": Trip}
    agent = entrypoint(checkpointer=saver)(plan)
    first = Trip([Leg("a", "b")])
    assert agent.invoke(first, CONFIG) == first
    assert agent.invoke(Trip([]), CONFIG) == first


def test_nothing_of_a_type_that_is_not_allowed_is_imported(tmp_path: Path) -> None:
    (tmp_path / "trap.py").write_text(
        "import dataclasses\n@dataclasses.dataclass\nclass Trap:\n    x: int = 0\nprint('trap sprung')\n"
    )
    program = """
        import sys
        from charm_checkpoint.serializer import StrictSerializer
        from charm_checkpoint.errors import TypeNotAllowedError
        if sys.argv[1] == "write":
            from trap import Trap
            open("data", "wb").write(StrictSerializer().dumps_typed([Trap()])[1])
        else:
            try:
                StrictSerializer().loads_typed(("msgpack", open("data", "rb").read()))
            except TypeNotAllowedError as error:
                print(error)
    """
    said = [
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), step],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for step in ("write", "read")
    ]
    assert "trap sprung" in said[0]
    assert "trap sprung" not in said[1]
    assert "trap:Trap" in said[1]
