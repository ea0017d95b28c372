"""DeltaChannels, whose value is in the writes of many steps: no step of a branch may miss one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.channels import DeltaChannel
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from charm_checkpoint import CheckpointSaver
from charm_checkpoint.errors import BackendUnavailable
from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.replica import ReplicaBackend

THREAD = {"configurable": {"thread_id": "thread"}}


class Gate(MemoryBackend):
    """The way from one device to the remote, open or shut."""

    def __init__(self, remote: MemoryBackend) -> None:
        super().__init__()
        self._threads, self._tombstones, self._lock = (
            remote._threads,
            remote._tombstones,
            remote._lock,
        )
        self.open = True

    def __getattribute__(self, name: str) -> Any:
        if name in ("write", "read", "pull", "scan", "lineage", "threads") and not self.open:
            raise BackendUnavailable("the gate is shut")
        return super().__getattribute__(name)


def _extend(value: list[str] | None, updates: list[list[str]]) -> list[str]:
    return [*(value or ()), *(item for update in updates for item in update)]


class State(TypedDict):
    items: Annotated[list[str], DeltaChannel(_extend, snapshot_frequency=1000)]


class Device:
    """A device with a graph of two steps; the first asks back when it is told to."""

    def __init__(self, name: str, folder: Path, remote: MemoryBackend) -> None:
        self.gate = Gate(remote)
        self.backend = ReplicaBackend(folder / f"{name}.db", self.gate)
        self.saver = CheckpointSaver(self.backend, device=name)
        builder = StateGraph(State)

        def ask(state: State) -> State:
            answer = interrupt("?") if state["items"][-1] == "ask" else "nothing asked"
            return {"items": [f"{name}: {answer} {len(state['items'])}"]}

        builder.add_node("one", ask)
        builder.add_node("two", lambda state: {"items": [f"{name} {len(state['items'])}"]})
        builder.add_edge(START, "one").add_edge("one", "two").add_edge("two", END)
        self.graph: Any = builder.compile(checkpointer=self.saver)

    def say(self, text: str) -> list[str]:
        return list(self.graph.invoke({"items": [text]}, THREAD)["items"])

    def answer(self, text: str) -> list[str]:
        return list(self.graph.invoke(Command(resume=text), THREAD)["items"])

    def items(self) -> list[str]:
        return list(self.graph.get_state(THREAD).values["items"])


@pytest.fixture
def remote() -> MemoryBackend:
    return MemoryBackend()


@pytest.fixture
def devices(tmp_path: Path, remote: MemoryBackend) -> Iterator[tuple[Device, Device]]:
    pair = (Device("laptop", tmp_path, remote), Device("phone", tmp_path, remote))
    yield pair
    for device in pair:
        device.gate.open = True
        device.saver.close()


def test_both_answer_one_question(devices: tuple[Device, Device], remote: MemoryBackend) -> None:
    """Both wrote to the same checkpoint; each branch is rebuilt from its own writes."""
    laptop, phone = devices
    laptop.say("hello")
    laptop.say("ask")
    assert laptop.backend.flush(10)
    assert phone.items() == laptop.items()
    laptop.gate.open = phone.gate.open = False
    won = laptop.answer("yes")
    phone.answer("no")
    lost = phone.say("really")
    for device in devices:
        device.gate.open = True
        assert device.backend.flush(10)
    assert laptop.items() == phone.items() == won
    assert not laptop.backend.conflicts()
    [conflict] = phone.backend.conflicts()

    branch = {"configurable": {**THREAD["configurable"], "checkpoint_id": conflict.tip_id}}
    for device in devices:
        assert device.graph.get_state(branch).values["items"] == lost
    phone.backend.promote(conflict, device="phone")
    assert laptop.items() == phone.items() == lost
    assert not phone.backend.conflicts()
    assert laptop.say("more")[:-3] == lost
    assert laptop.backend.flush(10)
    assert phone.items() == laptop.items()
    assert not phone.backend.sync_status().waiting.entries


def test_an_answer_that_came_second_and_went_no_further(
    devices: tuple[Device, Device], remote: MemoryBackend
) -> None:
    """Its writes were kept back for a step that never came: nobody sees anything of them."""
    laptop, phone = devices
    laptop.say("ask")
    assert laptop.backend.flush(10)
    place = phone.graph.get_state(THREAD).config
    phone.gate.open = False
    phone.saver.put_writes(place, [("items", ["half a step"])], "task")
    laptop.answer("yes")
    won = laptop.say("go on")
    assert laptop.backend.flush(10)
    phone.gate.open = True
    assert phone.backend.flush(10)
    assert phone.items() == won
    assert phone.say("too") == [*won, "too", "phone: nothing asked 7", "phone 8"]
    assert phone.backend.flush(10)
    assert laptop.items() == phone.items()


def test_a_pulled_thread_goes_on_offline(devices: tuple[Device, Device]) -> None:
    """What the channel is rebuilt from came with the head."""
    laptop, phone = devices
    for text in ("1", "2", "3"):
        told = laptop.say(text)
    assert laptop.backend.flush(10)
    assert phone.items() == told
    phone.gate.open = False
    assert phone.say("offline")[: len(told)] == told
