"""What a wake costs: round trips that a run waits for, and what comes with them."""

from __future__ import annotations

import operator
import threading
from typing import Annotated, Any

import pytest
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt
from typing_extensions import TypedDict

from charm_checkpoint.backend import Pulled
from charm_checkpoint.saver import CheckpointSaver
from tests.core.support import WAIT, place
from tests.replica.conftest import MakeDevice
from tests.replica.support import Device


def test_the_first_turn_of_a_thread_asks_once(laptop: Device) -> None:
    laptop.turn("hi")
    assert laptop.line.trips() == {"pull": 1}


def test_a_turn_after_an_own_one_asks_once_and_pulls_nothing(laptop: Device) -> None:
    answers: list[Pulled] = []

    def note(verb: str, answer: Any) -> Any:
        if verb == "pull":
            answers.append(answer)
        return answer

    laptop.turn("one")
    laptop.line.after = note
    for text in ("two", "three"):
        laptop.sync()
        laptop.line.trips()
        laptop.turn(text)
        assert laptop.line.trips() == {"pull": 1}
    assert [list(answer.entries) for answer in answers] == [[], []]


def test_a_turn_after_somebody_elses_asks_once(laptop: Device, phone: Device) -> None:
    for n in range(3):
        for device in (laptop, phone):
            device.turn(f"{n}")
            assert device.line.trips() == {"pull": 1}
            device.sync()
    assert laptop.said() == ["0", "0", "1", "1", "2", "2"]


def test_a_turn_while_the_last_one_is_being_sent_asks_once(laptop: Device) -> None:
    sending = threading.Event()

    def hold_up(verb: str, _: object) -> None:
        if verb == "write":
            assert sending.wait(WAIT)

    laptop.turn("one")
    laptop.sync()
    laptop.line.trips()
    laptop.line.before = hold_up
    for text in ("two", "three"):
        laptop.turn(text)
        assert laptop.line.trips() == {"pull": 1}
    sending.set()


def test_no_question_within_max_staleness(device: MakeDevice, phone: Device) -> None:
    laptop = device("laptop", max_staleness=1e6)
    laptop.turn("one")
    assert laptop.line.trips() == {"pull": 1}
    laptop.sync()
    phone.turn("two")
    phone.sync()
    laptop.turn("three")
    assert laptop.said() == ["one", "three"], "this is what was asked for"
    assert laptop.line.trips() == {}
    laptop.turn("elsewhere", "another thread")
    assert laptop.line.trips() == {"pull": 1}


def test_a_turn_offline_asks_nobody(laptop: Device) -> None:
    laptop.turn("one")
    laptop.sync()
    laptop.away()
    laptop.turn("two")
    laptop.line.trips()
    laptop.turn("three")
    # The shipper looks whether it is back; nobody waits for that.
    assert laptop.line.trips().keys() <= {"threads"}


def _asking(saver: CheckpointSaver | bool | None, own: bool = False) -> Any:
    """A graph whose subgraph asks."""

    class State(TypedDict):
        turns: Annotated[list[str], operator.add]

    sub = StateGraph(State)
    sub.add_node("ask", lambda state: {"turns": [interrupt("well?")]})
    sub.add_edge(START, "ask")
    builder = StateGraph(State)
    builder.add_node("sub", sub.compile(checkpointer=own or None))
    builder.add_node("after", lambda state: {"turns": ["after"]})
    builder.add_edge(START, "sub")
    builder.add_edge("sub", "after")
    return builder.compile(checkpointer=saver)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_subgraphs_of_a_run_ask_nobody(laptop: Device, own: bool, durability: Any) -> None:
    graph = _asking(laptop.saver, own)
    for _ in range(2):
        graph.invoke({"turns": ["go"]}, place("t"), durability=durability)
        assert laptop.line.trips() == {"pull": 1}
        laptop.sync()
        graph.invoke(Command(resume="yes"), place("t"), durability=durability)
        assert laptop.line.trips() == {"pull": 1}
        laptop.sync()


@pytest.mark.parametrize("own", [False, True])
def test_a_subgraph_that_waits_comes_with_its_root(
    laptop: Device, phone: Device, own: bool
) -> None:
    _asking(laptop.saver, own).invoke({"turns": ["go"]}, place("t"))
    laptop.sync()
    answered = _asking(phone.saver, own).invoke(Command(resume="yes"), place("t"))
    assert "yes" in answered["turns"]
    assert phone.line.trips() == {"pull": 1}


def test_a_delta_channel_takes_one_more(laptop: Device, phone: Device) -> None:
    graphs = {device: _delta(device.saver) for device in (laptop, phone)}
    for n in range(3):
        for device, graph in graphs.items():
            graph.invoke({"turns": [f"{n}"]}, place("t"))
            expected = {"pull": 1} if n == 0 and device is laptop else {"pull": 1, "lineage": 1}
            assert device.line.trips() == expected
            device.sync()
        graph.invoke({"turns": ["again"]}, place("t"))
        assert phone.line.trips() == {"pull": 1}
        phone.sync()
    assert graphs[laptop].get_state(place("t")).values["turns"] == [
        "0",
        "0",
        "again",
        "1",
        "1",
        "again",
        "2",
        "2",
        "again",
    ]


def _delta(saver: CheckpointSaver) -> Any:
    class State(TypedDict):
        turns: Annotated[
            list[str],
            DeltaChannel(
                lambda old, new: old + [t for n in new for t in n], snapshot_frequency=1000
            ),
        ]

    builder = StateGraph(State)
    builder.add_node("think", lambda state: {})
    builder.add_edge(START, "think")
    return builder.compile(checkpointer=saver)


def test_only_the_head_comes(laptop: Device, phone: Device) -> None:
    for n in range(5):
        laptop.turn(f"{n}")
    laptop.sync()
    assert len(list(laptop.history("t"))) == 20
    phone.turn("5")
    phone.away()
    assert phone.said() == ["0", "1", "2", "3", "4", "5"]
    here = list(phone.history("t"))
    assert len(here) == 5, "the head, and this turn's own"


def test_what_is_here_does_not_come_again(laptop: Device, phone: Device) -> None:
    """A value that both heads have is asked for once."""
    pulled: list[Pulled] = []

    def note(verb: str, answer: Any) -> Any:
        if verb == "pull":
            pulled.append(answer)
        return answer

    def graph(device: Device) -> Any:
        class State(TypedDict):
            turns: Annotated[list[str], operator.add]
            book: str

        builder = StateGraph(State)
        builder.add_node("think", lambda state: {})
        builder.add_edge(START, "think")
        return builder.compile(checkpointer=device.saver)

    graph(laptop).invoke({"turns": ["one"], "book": "x" * 100_000}, place("t"))
    laptop.sync()
    phone.line.after = note
    graph(phone).invoke({"turns": ["two"]}, place("t"))
    phone.sync()
    graph(laptop).invoke({"turns": ["three"]}, place("t"))
    laptop.sync()
    graph(phone).invoke({"turns": ["four"]}, place("t"))
    channels = [
        {blob.channel for entry in answer.entries for blob in entry.snapshot.blobs}
        for answer in pulled
    ]
    assert "book" in channels[0]
    assert "turns" in channels[1]
    assert "book" not in channels[1]
    assert graph(phone).get_state(place("t")).values["book"] == "x" * 100_000


def test_values_are_sent_once(laptop: Device) -> None:
    sent: list[tuple[str, str]] = []

    def note(verb: str, args: tuple[Any, ...]) -> None:
        if verb == "write":
            sent.extend(
                (b.channel, b.version) for unit in args[0] for b in getattr(unit, "blobs", ())
            )

    laptop.line.before = note
    for n in range(4):
        laptop.turn(f"{n}")
        laptop.sync()
    assert len(sent) == len(set(sent)) > 8
