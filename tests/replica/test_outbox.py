"""What waits to be sent: bounded, in order, never held up by what the remote does not take, never lost."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import pytest

from charm_checkpoint.errors import BackendError, OutboxFull
from tests.core.support import WAIT, id_of, latest, place, put
from tests.replica.conftest import MakeDevice
from tests.replica.support import Device, until

KIB = 1024


def say(device: Device, size: int, thread: str = "big") -> None:
    """Store one checkpoint of a size."""
    put(device.saver, place(thread), text="x" * size)


# -- its bound ---------------------------------------------------------------------------------------------------------


def test_a_full_outbox_while_the_remote_is_away(device: MakeDevice, phone: Device) -> None:
    laptop = device("laptop", max_outbox=64 * KIB, outbox_timeout=10 * WAIT)
    laptop.away()
    for n in range(3):
        say(laptop, 20 * KIB, f"{n}")
    say(laptop, 20 * KIB, "the last")
    waiting = laptop.sync_status().waiting
    assert waiting.bytes > 64 * KIB
    with pytest.raises(OutboxFull, match=r"max_outbox") as caught:
        say(laptop, 1, "refused")
    assert str(64 * KIB) in str(caught.value)
    with pytest.raises(OutboxFull):
        laptop.turn("refused", "refused")
    assert laptop.sync_status().waiting == waiting, "nothing of it was stored"
    assert laptop.thread("refused") is None
    assert latest(laptop.saver, "0") == {"text": "x" * 20 * KIB}
    laptop.back()
    say(laptop, 1, "refused")
    laptop.sync()
    assert {info.thread_id for info in phone.threads()} == {"0", "1", "2", "the last", "refused"}


def test_the_bound_holds_for_the_next_process(device: MakeDevice) -> None:
    for n in range(4):
        laptop = device("laptop", max_outbox=64 * KIB)
        laptop.away()
        laptop.said()
        if n < 3:
            say(laptop, 30 * KIB, f"{n}")
        laptop.close()
    again = device("laptop", max_outbox=64 * KIB)
    again.away()
    again.said()
    with pytest.raises(OutboxFull):
        say(again, 30 * KIB)


def test_a_single_step_may_be_larger(device: MakeDevice, phone: Device) -> None:
    laptop = device("laptop", max_outbox=KIB)
    for n in range(3):
        say(laptop, 100 * KIB, f"{n}")
    laptop.sync()
    assert latest(phone.saver, "2") == {"text": "x" * 100 * KIB}


def test_with_a_slow_remote_writers_wait(device: MakeDevice, phone: Device) -> None:
    laptop = device("laptop", max_outbox=64 * KIB, outbox_timeout=WAIT)
    slow = threading.Semaphore(0)
    laptop.line.before = lambda verb, _: verb != "write" or slow.acquire(timeout=WAIT)
    for n in range(4):
        say(laptop, 20 * KIB, f"{n}")
    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(say, laptop, 20 * KIB, f"late {n}") for n in range(4)]
        until(lambda: laptop.sync_status().waiting.bytes > 64 * KIB)
        assert not any(writer.done() for writer in writers)
        for _ in range(100):
            slow.release()
        for writer in writers:
            writer.result(WAIT)
    laptop.sync()
    assert len(list(phone.threads())) == 8


def test_a_remote_that_stays_slow(device: MakeDevice) -> None:
    laptop = device("laptop", max_outbox=64 * KIB, outbox_timeout=0.1)
    hung = threading.Event()
    laptop.line.before = lambda verb, _: verb != "write" or hung.wait(WAIT)
    for n in range(4):
        say(laptop, 20 * KIB, f"{n}")
    with pytest.raises(OutboxFull):
        say(laptop, 20 * KIB, "refused")
    hung.set()
    laptop.sync()
    say(laptop, 20 * KIB, "refused")


def test_writers_wait_for_another_process_that_sends(device: MakeDevice) -> None:
    """This one has nothing to do but wait: it hears of the other's work from the file."""
    sender = device("laptop")
    hung = threading.Event()
    sender.line.before = lambda verb, _: verb != "write" or hung.wait(WAIT)
    for n in range(4):
        say(sender, 20 * KIB, f"{n}")
    until(lambda: "write" in sender.line.made)
    laptop = device("laptop", max_outbox=64 * KIB, outbox_timeout=WAIT)
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(say, laptop, 20 * KIB, "late")
        with pytest.raises(FutureTimeoutError):
            writer.result(0.1)
        hung.set()
        writer.result(WAIT)
    assert "write" not in laptop.line.made or laptop.flush(WAIT)


# -- what the remote does not take -------------------------------------------------------------------------------------


class Refusing:
    """Makes a device's remote refuse a thread."""

    def __init__(self, device: Device, thread: str) -> None:
        self.thread = thread
        self.tried = 0
        device.line.before = self

    def __call__(self, verb: str, args: tuple[Any, ...]) -> None:
        if verb == "write" and any(unit.thread_id == self.thread for unit in args[0]):
            self.tried += 1
            raise BackendError("a value that this database cannot hold")


def test_a_refused_thread_holds_up_nobody(
    laptop: Device, phone: Device, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "charm_checkpoint.replica"):
        refusing = Refusing(laptop, "bad")
        laptop.away()
        for n in range(3):
            laptop.turn("well", f"before {n}")
            laptop.turn(f"{n}", "bad")
            laptop.turn("well", f"after {n}")
        laptop.line.cut = False
        for n in range(3):
            assert laptop.wait_synced(f"before {n}", WAIT)
            assert laptop.wait_synced(f"after {n}", WAIT)
        laptop.turn("well", "later")
        until(lambda: phone.thread("later"))  # nobody hurries it
        assert not laptop.wait_synced("bad", 0.1)
        assert not laptop.flush(0.1)
    assert [r.args[0] for r in caplog.records if r.args] == ["bad"], "told once"
    status = laptop.sync_status()
    assert status.offline_since is None
    assert status.threads.keys() == {"bad"}
    assert "cannot hold" in str(status.threads["bad"].error)
    assert "cannot hold" in str(status.last_error)
    assert "'bad'" in str(status.last_error)
    assert phone.said("after 2") == ["well"]
    assert phone.said("bad") == []
    assert laptop.said("bad") == ["0", "1", "2"]

    refusing.thread = "none"
    assert laptop.wait_synced("bad", WAIT)
    assert laptop.sync_status().threads == {}
    assert phone.said("bad") == ["0", "1", "2"]


def test_a_refused_thread_is_sent_by_the_next_process(device: MakeDevice, phone: Device) -> None:
    laptop = device("laptop", flush_timeout=0.1)
    Refusing(laptop, "bad")
    laptop.turn("one", "bad")
    until(lambda: laptop.sync_status().threads["bad"].error)
    laptop.close()
    again = device("laptop")
    again.sync()
    assert phone.said("bad") == ["one"]


def test_a_refused_thread_moved_on_elsewhere(device: MakeDevice, phone: Device) -> None:
    laptop = device("laptop", wake_timeout=0.2)
    laptop.turn("both", "bad")
    laptop.sync()
    phone.said("bad")
    refusing = Refusing(laptop, "bad")
    laptop.turn("laptop", "bad")
    phone.turn("phone", "bad")
    phone.sync()
    assert laptop.said("bad") == ["both", "laptop"], "goes on with what is here"
    refusing.thread = "none"
    assert laptop.wait_synced("bad", WAIT)
    assert laptop.said("bad") == ["both", "phone"]
    assert len(laptop.conflicts("bad")) == 1


# -- what is gone there ------------------------------------------------------------------------------------------------


def test_what_it_grew_from_was_pruned(laptop: Device, phone: Device, device: MakeDevice) -> None:
    """It is sent whole."""
    laptop.turn("both")
    laptop.sync()
    phone.said()
    laptop.away()
    laptop.turn("laptop")
    laptop.turn("laptop 2")
    phone.turn("phone")
    phone.sync()
    phone.saver.prune(["t"])
    assert len(list(phone.history("t"))) == 1
    laptop.back()
    tablet = device("tablet")
    tip = place("t", laptop.conflict().tip_id)
    everything = ["both", "re both", "laptop", "re laptop", "laptop 2", "re laptop 2"]
    assert tablet.graph.get_state(tip).values["turns"] == everything
    laptop.promote(laptop.conflict())
    assert tablet.turn("tablet") == [*everything, "tablet", "re tablet"]


def test_what_it_grew_from_was_pruned_and_nobody_went_on(laptop: Device, phone: Device) -> None:
    """All of the thread's steps but the first were removed with their runs."""
    laptop.turn("one")
    first = list(laptop.history("t"))[-1]
    laptop.turn("two")
    laptop.sync()
    laptop.away()
    laptop.turn("three")
    drop = [id_of(found.config) for found in phone.history("t")]
    drop.remove(id_of(first.config))
    phone.saver.engine.backend.prune("t", [("", checkpoint_id) for checkpoint_id in drop])
    laptop.back()
    found = laptop.conflict()
    assert phone.graph.get_state(place("t", found.tip_id)).values["turns"][::2] == [
        "one",
        "two",
        "three",
    ]


# -- requests ----------------------------------------------------------------------------------------------------------


def test_what_waits_goes_in_few_requests(laptop: Device, phone: Device) -> None:
    laptop.away()
    for n in range(60):
        laptop.turn("hi", f"{n % 7}")
    entries = laptop.sync_status().waiting.entries
    assert entries > 250
    laptop.line.made.clear()
    laptop.back()
    assert laptop.line.made.count("write") <= 2
    assert [len(phone.said(f"{n}")) for n in range(7)] == [9, 9, 9, 9, 8, 8, 8]


def test_what_is_large_goes_in_several(laptop: Device, phone: Device) -> None:
    laptop.away()
    for n in range(6):
        say(laptop, 600 * KIB, f"{n}")
    sizes: list[int] = []
    laptop.line.before = lambda verb, args: (
        verb == "write" and sizes.append(sum(len(b.data) for unit in args[0] for b in unit.blobs))
    )
    laptop.back()
    assert len(sizes) >= 6
    assert max(sizes) < 1024 * KIB
    assert len(list(phone.threads())) == 6


def test_steps_arrive_in_order(laptop: Device) -> None:
    seen: list[str] = []
    laptop.line.before = lambda verb, args: (
        verb == "write"
        and seen.extend(unit.row.checkpoint_id for unit in args[0] if hasattr(unit, "row"))
    )
    for n in range(5):
        laptop.turn(f"{n}")
    laptop.sync()
    assert seen == sorted(seen)
    assert seen == [id_of(found.config) for found in laptop.history("t")][::-1]
