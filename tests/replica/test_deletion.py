"""Deleting threads that several devices have: what is deleted stays deleted, what was begun anew after it stays."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from charm_checkpoint.errors import BackendUnavailable, ThreadDeletedError
from charm_checkpoint.testing.rows import chain, head, store
from charm_checkpoint.testing.rows import put as row
from tests.core.support import WAIT, place, put
from tests.replica.conftest import MakeDevice
from tests.replica.support import Device


def is_gone(*devices: Device, thread: str = "t") -> bool:
    """Whether no device sees anything of a thread."""
    return not any(
        device.said(thread)
        or list(device.history(thread))
        or device.thread(thread)
        or [info for info in device.threads() if info.thread_id == thread]
        for device in devices
    )


@pytest.fixture
def both(laptop: Device, phone: Device) -> None:
    """Both devices have the thread."""
    laptop.turn("both")
    laptop.sync()
    assert phone.said() == ["both"]


@pytest.mark.usefixtures("both")
def test_deleted_here_is_deleted_there(laptop: Device, phone: Device) -> None:
    laptop.delete("t")
    assert is_gone(laptop)
    laptop.sync()
    assert is_gone(laptop, phone)
    assert phone.turn("anew") == ["anew", "re anew"]
    phone.sync()
    assert laptop.said() == ["anew"]


@pytest.mark.usefixtures("both")
def test_deleted_offline(laptop: Device, phone: Device) -> None:
    laptop.away()
    laptop.delete("t")
    assert is_gone(laptop)
    assert phone.said() == ["both"]
    laptop.back()
    assert is_gone(laptop, phone)


@pytest.mark.usefixtures("both")
def test_gone_from_the_moment_it_is_deleted(device: MakeDevice) -> None:
    """Also while the remote has it still."""
    laptop = device("laptop", wake_timeout=0.1)
    looked = threading.Event()

    def hold_up(verb: str, _: object) -> None:
        if verb == "delete":
            assert looked.wait(WAIT)

    laptop.line.before = hold_up
    laptop.delete("t")
    assert is_gone(laptop)
    looked.set()
    laptop.sync()
    assert is_gone(laptop)


@pytest.mark.usefixtures("both")
def test_deleted_here_while_another_goes_on(laptop: Device, phone: Device) -> None:
    laptop.away()
    laptop.delete("t")
    phone.turn("phone")
    phone.sync()
    laptop.back()
    assert is_gone(laptop, phone)


@pytest.mark.usefixtures("both")
def test_deleted_there_with_turns_unsent_here(
    laptop: Device, phone: Device, caplog: pytest.LogCaptureFixture
) -> None:
    """The deletion counts, and the device says what became of its turns."""
    laptop.away()
    for n in range(3):
        laptop.turn(f"{n}")
    phone.delete("t")
    phone.sync()
    with caplog.at_level(logging.WARNING, "charm_checkpoint.replica"):
        caplog.clear()
        laptop.back()
    assert [r.getMessage() for r in caplog.records if "was deleted on another" in r.getMessage()]
    assert is_gone(laptop, phone)
    assert laptop.conflicts() == []
    assert laptop.sync_status().waiting.entries == 0
    laptop.turn("anew")
    laptop.sync()
    assert laptop.said() == phone.said() == ["anew"]


@pytest.mark.usefixtures("both")
def test_deleted_there_and_begun_anew_with_turns_unsent_here(laptop: Device, phone: Device) -> None:
    laptop.away()
    laptop.turn("late")
    phone.delete("t")
    phone.turn("anew")
    phone.sync()
    laptop.back()
    assert laptop.said() == phone.said() == ["anew"]
    assert laptop.turn("both again")[::2] == ["anew", "both again"]
    laptop.sync()
    assert phone.said() == ["anew", "both again"]
    assert laptop.conflicts() == phone.conflicts() == []


@pytest.mark.usefixtures("both")
def test_within_max_staleness_a_deletion_is_heard_of_with_the_first_answer(
    phone: Device, device: MakeDevice
) -> None:
    laptop = device("laptop", max_staleness=1e6)
    assert laptop.said() == ["both"]
    phone.delete("t")
    phone.sync()
    laptop.turn("late")
    laptop.sync()
    assert is_gone(laptop, phone)


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.usefixtures("both")
def test_deleted_offline_and_begun_anew_elsewhere(
    laptop: Device, phone: Device, twice: bool
) -> None:
    """The new thread is not the one that was meant."""
    laptop.away()
    laptop.delete("t")
    if twice:
        laptop.delete("t")
    phone.delete("t")
    phone.turn("anew")
    phone.sync()
    laptop.back()
    assert laptop.said() == phone.said() == ["anew"]


@pytest.mark.usefixtures("both")
def test_deleted_and_begun_anew_offline(laptop: Device, phone: Device) -> None:
    laptop.away()
    laptop.turn("unsent")
    laptop.delete("t")
    laptop.turn("anew")
    laptop.turn("anew 2")
    assert laptop.said() == ["anew", "anew 2"]
    phone.turn("phone")
    phone.sync()
    laptop.back()
    assert laptop.said() == phone.said() == ["anew", "anew 2"]
    assert laptop.conflicts() == []


@pytest.mark.usefixtures("both")
def test_deleted_begun_anew_and_deleted_offline(laptop: Device, phone: Device) -> None:
    laptop.away()
    laptop.delete("t")
    laptop.turn("anew")
    laptop.delete("t")
    laptop.back()
    assert is_gone(laptop, phone)


def test_a_thread_that_was_never_here(laptop: Device, phone: Device) -> None:
    laptop.turn("one")
    laptop.sync()
    phone.delete("t")
    assert is_gone(phone)
    phone.sync()
    assert is_gone(laptop, phone)


def test_a_thread_that_was_never_here_offline(laptop: Device, phone: Device) -> None:
    laptop.turn("one")
    laptop.sync()
    phone.away()
    phone.delete("t")
    phone.back()
    assert is_gone(laptop, phone)


def test_a_thread_that_is_nowhere(laptop: Device, phone: Device) -> None:
    backend = laptop.saver.engine.backend
    laptop.said()
    assert backend.delete("t", at=1.0) is False
    laptop.sync()
    laptop.turn("one")
    laptop.sync()
    assert backend.delete("t", at=2.0) is True
    laptop.sync()
    assert backend.delete("t", at=3.0) is False
    phone.turn("anew")
    phone.sync()
    laptop.sync()
    assert laptop.said() == phone.said() == ["anew"]


def test_a_thread_that_never_reached_the_remote(laptop: Device, phone: Device) -> None:
    """It is the name that is deleted: also what another device began under it meanwhile."""
    laptop.away()
    laptop.turn("one")
    laptop.delete("t")
    laptop.turn("elsewhere", "another")
    phone.turn("another")
    phone.sync()
    laptop.back()
    assert is_gone(laptop, phone)
    assert phone.said("another") == ["elsewhere"]


@pytest.mark.usefixtures("both")
def test_deleted_a_second_time(laptop: Device, phone: Device) -> None:
    """Each deletion is heard of, whatever was deleted before."""
    for n in range(3):
        one, other = (laptop, phone)[:: (-1) ** n]
        one.delete("t")
        one.sync()
        assert is_gone(laptop, phone)
        other.turn("anew")
        other.sync()
        assert laptop.said() == phone.said() == ["anew"]


@pytest.mark.usefixtures("both")
def test_a_run_that_goes_on_in_a_deleted_thread(laptop: Device, phone: Device) -> None:
    """It began before: its late steps bring nothing back."""
    config = laptop.saver.get_tuple(place("t")).config
    phone.delete("t")
    phone.sync()
    config = put(laptop.saver, config, turns=["late"])
    laptop.sync()
    with pytest.raises(ThreadDeletedError):
        put(laptop.saver, config, turns=["later"])
    assert is_gone(laptop, phone)


@pytest.mark.usefixtures("both")
def test_the_answer_to_a_deletion_is_lost(laptop: Device, phone: Device) -> None:
    """And by the time it comes again, somebody has begun anew."""

    def lose(verb: str, answer: Any) -> Any:
        if verb == "delete":
            laptop.line.after = None
            laptop.away()
            raise BackendUnavailable("the answer was lost")
        return answer

    laptop.line.after = lose
    laptop.delete("t")
    assert not laptop.flush(0.1)
    assert phone.turn("anew") == ["anew", "re anew"]
    phone.sync()
    laptop.back()
    assert laptop.said() == phone.said() == ["anew"]


@pytest.mark.usefixtures("both")
def test_a_deleted_threads_conflicts(laptop: Device, phone: Device) -> None:
    """Go with it."""
    laptop.away()
    laptop.turn("laptop")
    phone.turn("phone")
    phone.sync()
    laptop.back()
    assert laptop.conflicts()
    laptop.delete("t")
    assert laptop.conflicts() == []
    laptop.sync()
    assert is_gone(laptop, phone)


def test_deleted_ids_of_a_clock_that_is_ahead(laptop: Device, phone: Device) -> None:
    """What a refused step was called is no reason to miss a deletion."""
    backends = [device.saver.engine.backend for device in (laptop, phone)]
    for backend in backends:
        backend.setup()
    slow, fast = backends

    def sync() -> list[str | None]:
        for device in (laptop, phone):
            device.sync()
        return [head(backend) for backend in backends]

    chain(slow, "1")
    assert sync() == ["1", "1"]
    phone.away()
    store(fast, row("9", "1"))
    slow.delete("thread", at=1.0)
    laptop.sync()
    phone.back()
    assert sync() == [None, None]
    for again in ("2", "3"):
        store(slow, row(again))
        assert sync() == [again, again]
        slow.delete("thread", at=float(again))
        assert sync() == [None, None]
