"""The remote is away: every turn succeeds with what is here, says so once, and all is there when it is back."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from charm_checkpoint.errors import BackendUnavailable
from charm_memory_postgres import PostgresBackend
from tests.core.support import WAIT, place
from tests.postgres.proxy import Proxy
from tests.postgres.server import Server
from tests.replica.conftest import MakeDevice
from tests.replica.support import Device, until

LOGGER = "charm_checkpoint.replica"


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, str]]]:
    """What was logged since this was last asked, by level and in words."""
    caplog.set_level(logging.INFO, LOGGER)

    def take() -> list[tuple[str, str]]:
        told = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == LOGGER]
        caplog.clear()
        return told

    return take


# -- a real server -----------------------------------------------------------------------------------------------------


def test_a_server_that_is_stopped_for_a_whole_run(
    server: Server, database: str, device: MakeDevice, logged: Any
) -> None:
    laptop = device("laptop", remote=PostgresBackend(database))
    laptop.turn("before")
    laptop.sync()
    server.stop()
    try:
        before = time.time()
        for n in range(5):
            laptop.turn(f"{n}")
            laptop.turn("hi", f"new {n}")
        told = logged()
        [(level, text)] = told
        assert level == "WARNING"
        assert "going on with what is on this device" in text
        status = laptop.sync_status()
        assert status.offline_since is not None
        assert before <= status.offline_since <= time.time()
        assert status.last_error is not None
        assert status.threads.keys() == {"t", *(f"new {n}" for n in range(5))}
        assert status.waiting.entries == sum(w.entries for w in status.threads.values()) > 30
        assert not laptop.flush(0.1)
    finally:
        server.start()
    laptop.sync()
    assert [level for level, _ in logged()] == ["INFO"], "it says that it is back"
    status = laptop.sync_status()
    assert (status.offline_since, status.waiting.entries, status.threads) == (None, 0, {})
    assert status.last_success is not None
    phone = device("phone", remote=PostgresBackend(database))
    assert phone.said() == laptop.said() == ["before", *map(str, range(5))]
    assert {info.thread_id for info in phone.threads()} == {"t", *(f"new {n}" for n in range(5))}


class Silent(Proxy):
    """A proxy that can fall silent: it accepts and takes everything, and what the server says comes later."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.speaking = threading.Event()

    def __exit__(self, *failed: object) -> None:
        self.speaking.set()
        super().__exit__(*failed)

    def _downwards(
        self, client: socket.socket, server: socket.socket, mute: threading.Event
    ) -> None:
        while data := server.recv(1 << 20):
            assert self.speaking.wait(WAIT)
            client.sendall(data)


@pytest.fixture
def silent(server: Server, database: str) -> Iterator[Silent]:
    with Silent(server.port) as proxy:
        yield proxy


def behind(proxy: Silent) -> PostgresBackend:
    """A backend whose driver has all the patience there is: what is kept is the replica's own time."""
    url = (
        f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres?sslmode=disable&gssencmode=disable"
    )
    return PostgresBackend(url, timeout=10 * WAIT)


@pytest.mark.parametrize("when", ["from the first use on", "later"])
def test_a_server_that_says_nothing(
    when: str, silent: Silent, device: MakeDevice, logged: Any
) -> None:
    laptop = device("laptop", remote=behind(silent), wake_timeout=0.2)
    if when == "later":
        silent.speaking.set()
        laptop.turn("0")
        laptop.sync()
        silent.speaking.clear()
    for n in range(1, 4):
        laptop.turn(f"{n}")
    assert "wake_timeout" in (laptop.sync_status().last_error or "")
    [(level, text)] = logged()
    assert (level, "did not answer within 0.2 s" in text) == ("WARNING", True)
    silent.speaking.set()
    laptop.sync()
    assert laptop.sync_status().offline_since is None
    phone = device("phone", remote=behind(silent))
    assert phone.said() == ["0", "1", "2", "3"][when != "later" :]


# -- a line that is cut ------------------------------------------------------------------------------------------------


def test_away_from_the_first_use_on(device: MakeDevice, phone: Device, logged: Any) -> None:
    laptop = device("laptop")
    laptop.away()
    for text in ("one", "two"):
        laptop.turn(text)
    assert len(logged()) == 1
    assert laptop.line.backend.path.exists() is False
    laptop.back()
    assert phone.said() == ["one", "two"]


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_away_in_the_middle_of_a_run(laptop: Device, phone: Device, durability: str) -> None:
    laptop.turn("one")
    laptop.sync()
    laptop.line.before = lambda verb, _: laptop.away() if verb == "pull" else None
    laptop.turn("two", durability=durability)
    laptop.line.before = None
    assert laptop.said() == ["one", "two"]
    laptop.back()
    assert phone.said() == ["one", "two"]


def test_somebody_went_on_meanwhile(laptop: Device, phone: Device) -> None:
    laptop.turn("one")
    laptop.sync()
    phone.turn("two")
    phone.sync()
    laptop.away()
    assert laptop.said() == ["one"], "what was here"
    laptop.back()
    until(lambda: laptop.sync_status().offline_since is None)
    assert laptop.said() == ["one", "two"]


def test_that_it_is_back_is_found_out_with_nothing_to_send(laptop: Device, logged: Any) -> None:
    laptop.turn("one")
    laptop.sync()
    laptop.away()
    laptop.said()
    assert laptop.sync_status().waiting.entries == 0
    laptop.line.cut = False
    until(lambda: laptop.sync_status().offline_since is None)
    assert [level for level, _ in logged()] == ["WARNING", "INFO"]


def test_an_answer_that_comes_late(device: MakeDevice, phone: Device, logged: Any) -> None:
    laptop = device("laptop", wake_timeout=0.1)
    laptop.turn("one")
    laptop.sync()
    phone.turn("two")
    phone.sync()
    laptop.line.open.clear()
    assert laptop.said() == ["one"]
    laptop.line.open.set()
    until(lambda: laptop.sync_status().offline_since is None)
    assert laptop.said() == ["one", "two"]


def test_another_process_sees_that_it_is_away(laptop: Device, device: MakeDevice) -> None:
    laptop.away()
    laptop.turn("one")
    other = device("laptop")
    other.away()
    assert other.sync_status().offline_since == laptop.sync_status().offline_since is not None
    other.back()
    assert laptop.sync_status().offline_since is None
    assert laptop.sync_status().waiting.entries == 0


def test_what_an_ended_process_said_is_not_said_for_ever(device: MakeDevice) -> None:
    first = device("laptop")
    first.turn("one")
    first.sync()
    first.away()
    first.said()
    first.close()
    again = device("laptop")
    assert again.sync_status().offline_since is not None, "nobody knows better yet"
    again.said()
    assert again.sync_status().offline_since is None
    assert device("laptop").sync_status().offline_since is None


def test_a_deletion_that_waits_does_not_say_that_it_is_back(
    laptop: Device, device: MakeDevice
) -> None:
    laptop.away()
    laptop.turn("one")
    before = laptop.sync_status()
    laptop.delete("t")
    assert not laptop.flush(0)
    other = device("laptop")
    other.away()
    other.turn("two", "u")
    assert not other.flush(0)
    status = laptop.sync_status()
    assert status.waiting.entries
    assert status.offline_since == before.offline_since is not None
    assert status.last_success is None


# -- what cannot be done -----------------------------------------------------------------------------------------------


def test_what_is_not_here(laptop: Device, phone: Device) -> None:
    """History and other threads that never came here; what is here is served."""
    laptop.turn("one")
    laptop.turn("elsewhere", "another")
    laptop.sync()
    old = [state.config for state in laptop.graph.get_state_history(place("t"))][-1]
    assert phone.said() == ["one"]
    phone.away()
    with pytest.raises(BackendUnavailable, match="cut"):
        phone.graph.get_state(old)
    with pytest.raises(BackendUnavailable, match="cut"):
        phone.graph.invoke(None, old)
    with pytest.raises(BackendUnavailable, match="cut"):
        phone.graph.update_state(old, {"turns": ["fork"]}, as_node="think")
    assert len(list(phone.history("t"))) == 1
    assert [info.thread_id for info in phone.threads()] == ["t"]
    assert phone.said("another") == []
    assert phone.said() == ["one"]


@pytest.mark.parametrize("unsent", [False, True])
def test_what_is_done_at_the_remote(laptop: Device, unsent: bool, monkeypatch: Any) -> None:
    laptop.turn("one")
    laptop.sync()
    laptop.away()
    if unsent:
        laptop.turn("two")
    backend = laptop.saver.engine.backend
    backend.options = backend.options._replace(send_timeout=0.05)
    with pytest.raises(BackendUnavailable):
        laptop.saver.copy_thread("t", "copy")
    with pytest.raises(BackendUnavailable):
        laptop.saver.prune(["t"])
    with pytest.raises(BackendUnavailable):
        laptop.refresh("t")
    assert laptop.thread("copy") is None
    assert len(list(laptop.history("t"))) == (8 if unsent else 4)
    laptop.back()
    backend.options = backend.options._replace(send_timeout=WAIT)
    laptop.saver.copy_thread("t", "copy")
    assert laptop.said("copy") == laptop.said("t")


def test_on_offline_raise(device: MakeDevice) -> None:
    laptop = device("laptop", on_offline="raise")
    laptop.turn("one")
    laptop.sync()
    laptop.away()
    for call in (
        lambda: laptop.turn("two"),
        lambda: laptop.turn("two", "another"),
        lambda: laptop.said(),
        lambda: list(laptop.history("t")),
        lambda: list(laptop.threads()),
        lambda: laptop.thread("t"),
        lambda: laptop.delete("t"),
        lambda: laptop.load_messages("m"),
    ):
        with pytest.raises(BackendUnavailable, match="cut"):
            call()
    assert laptop.sync_status().waiting.entries == 0, "nothing of it was done"
    laptop.line.trips()
    with pytest.raises(BackendUnavailable):
        laptop.said()
    assert laptop.line.trips()["pull"] == 1, "it is not asked again and again"
    laptop.line.cut = False
    assert laptop.turn("two") == ["one", "re one", "two", "re two"]


def test_on_offline_raise_when_it_goes_within_a_run(device: MakeDevice, phone: Device) -> None:
    """A run that was looked after ends."""
    laptop = device("laptop", on_offline="raise")
    laptop.line.after = lambda verb, answer: (laptop.away() if verb == "pull" else None, answer)[1]
    laptop.turn("one")
    laptop.line.after = None
    laptop.back()
    assert phone.said() == ["one"]


def test_wake_timeout_without_patience(device: MakeDevice, phone: Device) -> None:
    """A remote that is asked and does not answer: each is told within its time, whatever hangs."""
    laptop = device("laptop", wake_timeout=0.1, on_offline="raise")
    laptop.line.open.clear()
    # What this device did before it asked has used up some of the time.
    for _ in range(3):
        with pytest.raises(BackendUnavailable, match=r"did not answer within 0\.(1|0\d+) s"):
            laptop.said()
    with pytest.raises(BackendUnavailable, match=r"did not answer within 0\.0(5|[0-4]\d*) s"):
        laptop.refresh("t", 0.05)
    laptop.line.open.set()
    laptop.refresh("t", WAIT)
    laptop.turn("one")


def test_asking_for_a_thread_asks_for_real(laptop: Device, phone: Device) -> None:
    """Whatever was known a moment ago."""
    phone.turn("one")
    phone.sync()
    laptop.away()
    laptop.said()
    tried = threading.Event()
    laptop.line.before = lambda verb, _: verb != "threads" or tried.wait(WAIT)
    laptop.line.cut = False
    laptop.refresh("t")
    tried.set()
    assert laptop.said() == ["one"]


def test_brought_here_before_going_away(laptop: Device, phone: Device) -> None:
    laptop.turn("one")
    laptop.sync()
    phone.refresh("t")
    phone.away()
    assert phone.turn("two") == ["one", "re one", "two", "re two"]
    phone.back()
    assert laptop.said() == ["one", "two"]


def test_a_file_of_this_device_that_stays_empty(tmp_path: Path, laptop: Device) -> None:
    """A thread that nobody began: no turn, nothing to send."""
    laptop.away()
    assert laptop.said("nobody's") == []
    assert laptop.sync_status().waiting == (0, 0, None, None)
    assert (tmp_path / "laptop.db").exists()
