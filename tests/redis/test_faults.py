"""Lost connections and calls: a delay at most, never a lost or doubled row."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest
from redis import exceptions

from charm_checkpoint.backend import Scan, ThreadQuery
from charm_checkpoint.engine import RetryPolicy
from charm_checkpoint.errors import (
    BackendCorrupt,
    BackendError,
    BackendFull,
    BackendReadOnly,
    BackendUnavailable,
)
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.testing.colours import place
from charm_checkpoint.testing.rows import blob, head, pending, put, read, statuses, store
from charm_checkpoint.testing.scenarios import chat, turn
from charm_memory_redis import RedisBackend, RedisMemory
from charm_memory_redis.errors import translate
from tests.redis.proxy import Fault, Proxy
from tests.redis.server import Server
from tests.redis.support import is_script

_PATIENT = RetryPolicy(budget=60.0, first_pause=0.01, max_pause=0.2)


@pytest.fixture
def behind(proxy: Proxy, prefix: str) -> Iterator[RedisBackend]:
    """A backend behind the proxy."""
    backend = RedisBackend(proxy.url, prefix=prefix, timeout=5.0)
    yield backend
    backend.close()


# -- one lost call -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("which", range(1, 5))
def test_a_turn_whose_write_is_lost(
    fault: Fault, which: int, behind: RedisBackend, proxy: Proxy
) -> None:
    """Lost on the way, or stored with the answer lost: repeated, and stored once."""
    saver = CheckpointSaver(behind, retry=_PATIENT)
    chat(saver).invoke(turn("first"), place())
    writes = 0

    def count(data: Any) -> Any:
        nonlocal writes
        writes += 1
        if writes == which:
            proxy.break_at(fault, is_script)
        return original(data)

    original = behind.write
    behind.write = count  # type: ignore[method-assign]
    assert chat(saver).invoke(turn("second"), place())["items"][-1] == "said second"
    assert proxy.fired == 1
    found = list(saver.list(place()))
    assert len(found) == 8
    assert [
        t.parent_config["configurable"]["checkpoint_id"] for t in found[:-1] if t.parent_config
    ] == [t.config["configurable"]["checkpoint_id"] for t in found[1:]]
    saver.close()


_VERBS: dict[str, tuple[Callable[[CheckpointSaver], Any], Any]] = {
    "read": (lambda s: s.get_tuple(place()) is not None, True),
    "scan": (lambda s: len(list(s.list(place()))), 4),
    "scan of all": (lambda s: len(list(s.list(None))), 4),
    "threads": (lambda s: len(s.engine.call(lambda b: b.threads(ThreadQuery()))), 1),
    "pull": (lambda s: len(s.engine.call(lambda b: b.pull("thread", ())).entries), 1),
    "delete": (lambda s: (s.delete_thread("thread"), s.get_tuple(place())), (None, None)),
    "prune": (lambda s: (s.prune(["thread"]), len(list(s.list(place())))), (None, 1)),
    "lineage": (
        lambda s: len(s.get_delta_channel_history(config=place(), channels=["items"])),
        1,
    ),
}


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("verb", _VERBS)
def test_every_other_verb_is_repeated(
    fault: Fault, verb: str, behind: RedisBackend, proxy: Proxy
) -> None:
    saver = CheckpointSaver(behind, retry=_PATIENT)
    chat(saver).invoke(turn("hi"), place())
    call, expected = _VERBS[verb]
    proxy.break_at(fault, is_script)
    assert call(saver) == expected
    assert proxy.fired == 1
    saver.close()


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_copy_is_not_repeated(fault: Fault, behind: RedisBackend, proxy: Proxy) -> None:
    saver = CheckpointSaver(behind, retry=_PATIENT)
    chat(saver).invoke(turn("hi"), place())
    proxy.break_at(fault, lambda command: is_script(command) and b"{copy}" in command)
    with pytest.raises(BackendUnavailable):
        saver.copy_thread("thread", "copy")
    assert len(list(saver.list(place("copy")))) == (4 if fault == "after" else 0)
    saver.close()


def test_dead_connections_are_noticed_before_they_are_used(
    behind: RedisBackend, proxy: Proxy
) -> None:
    """No call fails for it, though nothing here repeats calls."""
    behind.setup()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: read(behind, None), range(4)))
    proxy.cut()
    for _ in range(5):
        assert head(behind) is None


# -- many lost calls ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["connections", "scripts"])
def test_killed_at_random(harm: str, server: Server, prefix: str) -> None:
    """200 turns: each is there once, in order."""
    saver = CheckpointSaver(RedisBackend(server.url(), prefix=prefix), retry=_PATIENT)
    graph = chat(saver)
    seed = random.randrange(10**6)
    print("seed", seed)
    chance, done, killed = random.Random(seed), threading.Event(), 0

    def kill() -> None:
        nonlocal killed
        with server.client() as client:
            while not done.wait(chance.uniform(0, 0.05)):
                if harm == "scripts":
                    client.script_flush()
                    killed += 1
                else:
                    killed += int(client.execute_command("CLIENT KILL TYPE normal SKIPME yes"))

    with ThreadPoolExecutor(1) as pool:
        killer = pool.submit(kill)
        try:
            for n in range(200):
                graph.invoke(turn(str(n)), place())
        finally:
            done.set()
        killer.result()
    expected = [text for n in range(200) for text in (str(n), f"said {n}")]
    assert graph.get_state(place()).values["items"] == expected
    assert len(list(saver.list(place()))) == 800
    assert killed > 10
    saver.close()


# -- errors ------------------------------------------------------------------------------------------------------------


def test_a_server_that_says_nothing() -> None:
    """It accepts connections, as a hanging one does."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://:s3cret@127.0.0.1:{silent.getsockname()[1]}"
        with RedisMemory({"url": url, "timeout": 0.1, "retry_timeout": 0}) as memory:
            with pytest.raises(BackendUnavailable, match="cannot be reached") as refused:
                memory.load_messages("thread")
            assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("password", ["wr0ng", None])
def test_a_server_that_wants_another_password(older_server: Server, password: str | None) -> None:
    with older_server.client() as client:
        client.config_set("requirepass", "s3cret")
        try:
            user = f":{password}@" if password else ""
            backend = RedisBackend(older_server.url().replace("//", f"//{user}"))
            with pytest.raises(BackendError, match="refused") as refused:
                backend.setup()
            assert not isinstance(refused.value, BackendUnavailable), "it would be asked again"
            assert "wr0ng" not in str(refused.value)
            backend.close()
            backend = RedisBackend(older_server.url().replace("//", "//:s3cret@"))
            backend.setup()
            assert "s3cret" not in backend.name
            backend.close()
        finally:
            client.config_set("requirepass", "")


def test_keys_that_are_somebody_elses(server: Server, prefix: str) -> None:
    backend = RedisBackend(server.url(), prefix=prefix)
    store(backend, put("1"))
    with server.client() as client:
        for key in client.keys(f"{prefix}*"):
            client.delete(key)
            client.rpush(key, "mine")
    for call in (lambda: head(backend), lambda: backend.threads(ThreadQuery())):
        with pytest.raises(BackendCorrupt, match="not this store's"):
            call()
    with pytest.raises(BackendCorrupt, match="not this store's"):
        backend.write([put("2", "1")])
    backend.close()


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (
            exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
            BackendFull,
        ),
        (exceptions.ResponseError("OOM command not allowed"), BackendFull),
        (exceptions.ResponseError("MISCONF Redis is configured to save RDB"), BackendReadOnly),
        (exceptions.NoPermissionError("this user has no permissions"), BackendReadOnly),
        (exceptions.ResponseError("WRONGTYPE Operation against a key"), BackendCorrupt),
        (
            exceptions.ReadOnlyError("You can't write against a read only replica."),
            BackendUnavailable,
        ),
        (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), BackendUnavailable),
        (exceptions.ClusterDownError("The cluster is down"), BackendUnavailable),
        (
            exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."),
            BackendUnavailable,
        ),
        (exceptions.ResponseError("BUSY Redis is busy running a script."), BackendUnavailable),
        (exceptions.TimeoutError("Timeout reading from redis://u:s3cret@h"), BackendUnavailable),
        (
            exceptions.ConnectionError("Error 111 connecting to redis://u:s3cret@h"),
            BackendUnavailable,
        ),
        (exceptions.AuthenticationError("WRONGPASS invalid username-password pair"), BackendError),
        (exceptions.ResponseError("unknown command"), BackendError),
    ],
)
def test_errors_are_told_apart(error: exceptions.RedisError, ours: type[BackendError]) -> None:
    told = translate(error, "redis://h/0")
    assert type(told) is ours
    assert "s3cret" not in str(told)


# -- deltas on the wire ------------------------------------------------------------------------------------------------


def _grown(id: str, parent: str | None, size: int, tail: bytes = b"") -> Any:
    data = b"\xdd\x00\x00\x00\x01" + random.Random(1).randbytes(size) + tail
    return put(id, parent, blob("messages", f"{id}.v", data))


def test_only_what_is_new_is_sent(behind: RedisBackend, proxy: Proxy) -> None:
    behind.setup()
    store(behind, _grown("1", None, 500_000))
    proxy.reset()
    store(behind, _grown("2", "1", 500_000, b"new"))
    assert (proxy.trips, proxy.sent < 2500) == (1, True)
    assert read(behind, "2").blobs[0].data == _grown("2", "1", 500_000, b"new").blobs[0].data


def test_another_process_makes_changes_to_what_it_read(
    behind: RedisBackend, proxy: Proxy, server: Server, prefix: str
) -> None:
    first = RedisBackend(server.url(), prefix=prefix)
    store(first, _grown("1", None, 500_000))
    first.close()
    behind.setup()
    read(behind, None)
    proxy.reset()
    store(behind, _grown("2", "1", 500_000, b"new"))
    assert proxy.sent < 2500


@pytest.mark.parametrize("harm", ["deleted", "deleted and begun anew", "pruned"])
def test_a_base_that_is_not_there_any_more(
    harm: str, behind: RedisBackend, proxy: Proxy, server: Server, prefix: str
) -> None:
    """Everything is sent whole."""
    behind.setup()
    store(behind, _grown("1", None, 100_000))
    other = RedisBackend(server.url(), prefix=prefix)
    if harm == "pruned":
        store(other, put("2", "1", blob("messages", "2.v", b"short")))
        other.prune("thread", [("", "1")])
    else:
        other.delete("thread", at=1.0)
    if harm == "deleted and begun anew":
        store(other, put("5", None, blob("messages", "1.v", bytes(100_000))))
    other.close()
    parent = {"pruned": "2", "deleted": None, "deleted and begun anew": "5"}[harm]
    grown = _grown("6", parent, 100_000, b"new")
    assert statuses(behind.write([grown, pending("6")])) == ["stored", "stored"]
    assert read(behind, "6").blobs[0].data == grown.blobs[0].data


@pytest.mark.parametrize("size", [5_000_000, pytest.param(50_000_000, marks=pytest.mark.slow)])
def test_large_values(size: int, server: Server, prefix: str) -> None:
    backend = RedisBackend(server.url(), prefix=prefix)
    for big in (_grown("1", None, size), _grown("2", "1", size, b"new")):
        store(backend, big)
        assert read(backend, big.row.checkpoint_id).blobs[0].data == big.blobs[0].data
    backend.delete("thread", at=1.0)
    backend.close()


def test_an_unchanged_value_is_not_sent_again(behind: RedisBackend, proxy: Proxy) -> None:
    saver = CheckpointSaver(behind)
    graph = chat(saver)
    graph.invoke({"items": ["x" * 1_000_000]}, place())
    graph.update_state(place(), {"note": "n"}, as_node="say")
    proxy.reset()
    graph.update_state(place(), {"note": "m"}, as_node="say")
    assert proxy.sent < 4096
    saver.close()


# -- round trips -------------------------------------------------------------------------------------------------------


def test_every_verb_is_one_round_trip(behind: RedisBackend, proxy: Proxy) -> None:
    behind.setup()
    grown = [_grown("1", None, 100_000), _grown("2", "1", 100_000, b"new")]
    store(behind, *grown, put("3", "2"))
    copies = count()
    verbs: dict[str, Callable[[], Any]] = {
        "write": lambda: behind.write([put("4", "3"), pending("4")]),
        "read": lambda: behind.read("thread", "", None),
        "scan": lambda: behind.scan(Scan(thread_id="thread")),
        "pull": lambda: behind.pull("thread", ()),
        "lineage": lambda: behind.lineage("thread", "", None, ["messages"]),
        "threads": lambda: behind.threads(ThreadQuery(limit=5)),
        "a thread": lambda: behind.threads(ThreadQuery(thread_id="thread")),
        "copy": lambda: behind.copy("thread", f"copy {next(copies)}", at=1.0),
        "prune": lambda: behind.prune("thread", [("", "1")]),
        "delete": lambda: behind.delete("thread", at=1.0),
    }
    trips = {}
    for verb, call in verbs.items():
        call()  # the server knows its script from then on
        proxy.reset()
        call()
        trips[verb] = proxy.trips
    assert trips == dict.fromkeys(verbs, 1)


@pytest.mark.parametrize(
    ("durability", "chain", "most"), [("sync", 5, 8), ("async", 5, 8), ("exit", 2, 2)]
)
def test_the_round_trips_of_a_turn(
    durability: Any, chain: int, most: int, behind: RedisBackend, proxy: Proxy
) -> None:
    """A read, and LangGraph's chain of puts; what comes beside a put goes with it or follows it.

    One after another are those of the longest chain: a trip that nobody began before the answer to the one before.
    """
    saver = CheckpointSaver(behind)
    graph = chat(saver)
    graph.invoke(turn("warm"), place())
    calls: list[str] = []
    for verb in ("read", "write"):
        _note(behind, verb, calls)
    proxy.reset()
    graph.invoke(turn("hi"), place(), durability=durability)
    assert proxy.trips == len(calls) <= most
    assert calls.count("read") == 1
    assert calls.count("checkpoint") + 1 <= chain
    saver.close()


def _note(backend: RedisBackend, verb: str, calls: list[str]) -> None:
    """Note each call: of writes, whether a checkpoint is with it. LangGraph waits for those only."""
    original = getattr(backend, verb)

    def call(*args: Any) -> Any:
        puts = verb == "write" and any(hasattr(unit, "row") for unit in args[0])
        calls.append("checkpoint" if puts else verb)
        return original(*args)

    setattr(backend, verb, call)
