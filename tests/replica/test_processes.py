"""Processes of one device on one file; processes that are killed, that end, that fork."""

from __future__ import annotations

import logging
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.core.support import WAIT, id_of, latest, place
from tests.replica.child import asking
from tests.replica.conftest import MakeDevice
from tests.replica.support import Child, Device, until

Start = Callable[[str], Child]


def history(device: Device, thread: str = "t") -> list[str]:
    ids = [id_of(found.config) for found in device.history(thread)]
    assert len(ids) == len(set(ids))
    return ids


# -- together on one file ----------------------------------------------------------------------------------------------


def test_processes_that_go_on_with_one_thread(child: Start, laptop: Device, phone: Device) -> None:
    """What one did, the other sees at once, also before it was sent."""
    other = child("laptop")
    other.ask("away")
    laptop.away()
    for n in range(3):
        other.ask("turn", "t", f"other {n}")
        laptop.turn(f"laptop {n}")
    said = [f"{who} {n}" for n in range(3) for who in ("other", "laptop")]
    assert other.ask("said", "t") == laptop.said() == said
    laptop.back()
    assert phone.said() == said
    assert len(history(phone)) == 24
    assert laptop.conflicts() == []
    other.end()


def test_one_process_sends_for_all(child: Start, laptop: Device, phone: Device) -> None:
    """The other's flush waits for it."""
    sender = child("laptop")
    sender.ask("hold")
    sender.ask("turn", "t", "one")
    until(lambda: sender.ask("writes"))
    laptop.turn("two")
    assert not laptop.flush(0.2)
    assert not laptop.wait_synced("t", 0.1)
    assert "write" not in laptop.line.made
    sender.ask("release")
    assert laptop.wait_synced("t", WAIT)
    assert phone.said() == ["one", "two"]
    laptop.sync()
    sender.end()


def test_who_sends_is_killed(child: Start, laptop: Device, phone: Device) -> None:
    sender = child("laptop")
    sender.ask("hold")
    sender.ask("turn", "t", "one")
    until(lambda: sender.ask("writes"))
    laptop.turn("two")
    laptop.turn("hi", "another")
    assert not laptop.flush(0.1)
    sender.kill()
    laptop.sync()
    assert phone.said() == ["one", "two"]
    assert phone.said("another") == ["hi"]


def test_many_processes_at_once(child: Start, laptop: Device, phone: Device) -> None:
    children = [child("laptop") for _ in range(3)]
    for n in range(5):
        for number, each in enumerate(children):
            each.tell("turn", f"thread {number}", f"{n}")
        laptop.turn(f"{n}", "thread 3")
        for each in children:
            each.hear()
    for each in children:
        each.end()
    laptop.sync()
    for number in range(4):
        assert phone.said(f"thread {number}") == [f"{n}" for n in range(5)]
        assert len(history(phone, f"thread {number}")) == 20
    assert laptop.conflicts() == []


# -- killed ------------------------------------------------------------------------------------------------------------


def test_killed_before_anything_was_sent(child: Start, device: MakeDevice, phone: Device) -> None:
    first = child("laptop")
    first.ask("away")
    first.ask("turn", "t", "one")
    first.ask("turn", "t", "two")
    first.kill()
    assert phone.said() == []
    again = device("laptop")
    assert again.sync_status().waiting.entries > 0
    again.said("another")  # the first use of anything starts it
    until(lambda: phone.said() == ["one", "two"])


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_while_it_was_sent(
    child: Start, device: MakeDevice, phone: Device, when: str
) -> None:
    """Whether the remote has it already or not: it is there once."""
    first = child("laptop")
    first.ask("turn", "t", "one")
    first.ask("sync")
    first.ask("away")
    first.ask("turn", "t", "two")
    first.ask("die", when)
    first.tell("back")
    first.died()
    again = device("laptop")
    assert again.said() == ["one", "two"]
    again.sync()
    assert phone.said() == ["one", "two"]
    again.turn("three")
    again.sync()
    assert phone.said() == ["one", "two", "three"]
    assert history(phone) == history(again)
    assert again.conflicts() == []


def test_killed_after_the_remote_took_it_and_somebody_went_on(
    child: Start, device: MakeDevice, phone: Device
) -> None:
    """No conflict: what the other grew from was this device's."""
    first = child("laptop")
    first.ask("away")
    first.ask("turn", "t", "one")
    first.ask("die", "after")
    first.tell("back")
    first.died()
    assert phone.turn("two")[::2] == ["one", "two"]
    phone.sync()
    again = device("laptop")
    assert again.said() == ["one", "two"]
    again.sync()
    assert again.conflicts() == []
    assert again.turn("three")[::2] == ["one", "two", "three"]


# -- an interrupt, answered elsewhere ----------------------------------------------------------------------------------


def answered(phone: Device) -> None:
    """The subgraph asks twice: both are answered, and the graph goes on to its end."""
    graph = asking(phone)
    state = graph.get_state(place("t"), subgraphs=True)
    assert [each.value for each in state.interrupts] == ["first?"]
    from langgraph.types import Command

    told = graph.invoke(Command(resume="one"), place("t"))
    assert [each.value for each in told["__interrupt__"]] == ["second?"]
    told = graph.invoke(Command(resume="two"), place("t"))
    assert told["items"] == ["go", "go", "one", "two", "answered", "after"]


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_asked_there_and_answered_here(child: Start, phone: Device, durability: str) -> None:
    """The asking device has said that all of it is at the remote, and dies."""
    first = child("laptop")
    assert first.ask("interrupt", "t", durability) == ["first?"]
    first.ask("sync")
    first.kill()
    answered(phone)


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_as_soon_as_it_is_seen_it_can_be_answered(
    child: Start, phone: Device, durability: str
) -> None:
    """The asking device is killed when another one sees the question."""
    first = child("laptop")
    first.tell("interrupt", "t", durability)
    graph = asking(phone)
    until(lambda: graph.get_state(place("t")).interrupts)
    first.kill()
    answered(phone)


def test_asked_and_killed_before_it_was_sent(
    child: Start, device: MakeDevice, phone: Device
) -> None:
    """Nobody else knows of it until the device is back; then it can be answered anywhere."""
    first = child("laptop")
    first.ask("away")
    assert first.ask("interrupt", "t", "async") == ["first?"]
    first.kill()
    assert asking(phone).get_state(place("t")).interrupts == ()
    again = device("laptop")
    again.said("another")
    again.sync()
    answered(phone)
    phone.sync()
    assert asking(again).get_state(place("t")).values["items"][-1] == "after"


# -- the end of a process ----------------------------------------------------------------------------------------------


def test_the_end_of_the_interpreter_sends(child: Start, phone: Device) -> None:
    """Nobody closed the store."""
    first = child("laptop")
    for n in range(3):
        first.ask("turn", "t", f"{n}")
    assert first.end() == ""
    assert phone.said() == ["0", "1", "2"]


@pytest.mark.parametrize("used", [False, True])
def test_a_last_save_in_an_exit_handler(child: Start, phone: Device, used: bool) -> None:
    first = child("laptop")
    if used:
        first.ask("turn", "t", "one")
    first.ask("last_words")
    assert first.end() == ""
    assert latest(phone.saver, "last") == {"text": "words"}
    assert phone.said() == ["one"] * used


def test_what_cannot_be_sent_at_the_end_is_told_and_sent_later(
    child: Start, phone: Device, device: MakeDevice
) -> None:
    first = child("laptop")
    first.ask("away")
    first.ask("turn", "t", "one")
    told = first.end()
    assert "sent at the next start" in told
    assert "Traceback" not in told
    assert phone.said() == []
    again = device("laptop")
    assert again.said() == ["one"]
    again.sync()
    assert phone.said() == ["one"]


def test_closing_sends(device: MakeDevice, phone: Device, tmp_path: Path) -> None:
    laptop = device("laptop")
    laptop.turn("one")
    laptop.close()
    assert phone.said() == ["one"]
    assert not list(tmp_path.glob("laptop.db-wal")), "the file is in order"


def test_closing_waits_no_longer_than_it_may(
    device: MakeDevice, phone: Device, caplog: pytest.LogCaptureFixture
) -> None:
    laptop = device("laptop", flush_timeout=0.1)
    hung = threading.Event()
    laptop.line.before = lambda verb, _: verb != "write" or hung.wait(WAIT)
    laptop.turn("one")
    with caplog.at_level(logging.WARNING, "charm_checkpoint.replica"):
        laptop.close()
    assert "on this device only" in caplog.text
    again = device("laptop")
    assert again.said() == ["one"]
    hung.set()  # who was closed lets others send when its last request is over
    again.sync()
    assert phone.said() == ["one"]
    assert len(history(phone)) == 4


# -- forks -------------------------------------------------------------------------------------------------------------

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def forked(do: Callable[[], None]) -> None:
    """Do something in a forked process, to its good end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        code = 1
        try:
            signal.alarm(int(WAIT))
            do()
            code = 0
        except BaseException:  # noqa: BLE001 - shown, and the process ends
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@forks
def test_a_fork_goes_on(laptop: Device, phone: Device) -> None:
    laptop.turn("parent")

    def child() -> None:
        laptop.turn("child")
        laptop.sync()
        assert phone.said() == ["parent", "child"]

    forked(child)
    laptop.turn("parent again")
    laptop.sync()
    assert phone.said() == ["parent", "child", "parent again"]
    assert laptop.conflicts() == []


@forks
def test_a_fork_that_ends_without_a_word(laptop: Device, phone: Device) -> None:
    """What it did is in the file, and sent by its parent."""
    laptop.turn("parent")
    forked(lambda: (laptop.away(), laptop.turn("child"))[0])
    laptop.sync()
    assert phone.said() == ["parent", "child"]


@forks
def test_a_fork_while_something_is_sent(laptop: Device, phone: Device) -> None:
    """The parent is at it, and holds the turn to send; the child waits for it, or does without."""
    for n in range(20):
        laptop.turn("hi", f"parent {n}")
        forked(lambda n=n: (laptop.turn("hi", f"child {n}"), None)[1])  # type: ignore[misc]
    laptop.sync()
    assert {info.thread_id for info in phone.threads()} == {
        f"{who} {n}" for who in ("parent", "child") for n in range(20)
    }


@forks
def test_a_fork_of_a_device_that_is_away(laptop: Device, phone: Device) -> None:
    laptop.away()
    laptop.turn("parent")

    def child() -> None:
        laptop.turn("child")
        laptop.back()

    forked(child)
    laptop.back()
    assert phone.said() == laptop.said() == ["parent", "child"]


@forks
def test_a_fork_while_the_remote_does_not_answer(device: MakeDevice, phone: Device) -> None:
    """What hangs in the parent, its turn to send included, is not for the child to wait for."""
    laptop = device("laptop", wake_timeout=0.05)
    laptop.line.open.clear()
    laptop.turn("parent")

    def child() -> None:
        laptop.line.open.set()
        laptop.turn("child")
        laptop.refresh("another", WAIT)
        laptop.turn("child", "another")

    forked(child)
    laptop.line.open.set()
    laptop.sync()
    assert phone.said() == ["parent", "child"]
    assert phone.said("another") == ["child"]
