"""What threads take on the server, and what is done there: memory that is freed, no search through all keys."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from charm_checkpoint import CheckpointSaver
from charm_checkpoint.backend import Scan, ThreadQuery
from charm_checkpoint.testing.colours import place
from charm_checkpoint.testing.rows import (
    THREAD,
    blob,
    blobs_of,
    chain,
    ids,
    pending,
    put,
    read,
    store,
    write,
)
from charm_checkpoint.testing.scenarios import chat, turn
from charm_memory_redis import RedisBackend
from tests.redis.server import Server
from tests.redis.support import allocated, keys_of

TEXT = random.Random(5)


@pytest.fixture
def backend(server: Server, prefix: str) -> Iterator[RedisBackend]:
    backend = RedisBackend(server.url(), prefix=prefix)
    yield backend
    backend.close()


def test_prune_gives_memory_back(backend: RedisBackend, server: Server, prefix: str) -> None:
    """What only the dropped checkpoints needed is gone, and what others are built on is not."""
    for n in range(20):
        parent = f"{n - 1:02}" if n else None
        big = blob("a", str(n), TEXT.randbytes(100_000))
        store(backend, put(f"{n:02}", parent, big), pending(f"{n:02}", write(data=bytes(1000))))
    before = allocated(server, prefix)
    assert before > 2_000_000
    assert backend.prune(THREAD, [("", f"{n:02}") for n in range(19)]) == 19
    assert allocated(server, prefix) < before / 15
    assert ids(backend) == ["19"]
    backend.delete(THREAD, at=1.0)
    assert allocated(server, prefix) < 2_000


def test_prune_of_what_others_are_built_on(
    backend: RedisBackend, server: Server, prefix: str
) -> None:
    """A value that is kept as a change to another one outlives it."""
    value = TEXT.randbytes(50_000)
    values = [value + b"x" * 100 * n for n in range(30)]
    for n, data in enumerate(values):
        store(backend, put(f"{n:02}", f"{n - 1:02}" if n else None, blob("a", str(n), data)))
    assert allocated(server, prefix) < 10 * len(value), "as changes"
    kept = [5, 13, 29]
    dropped = [("", f"{n:02}") for n in range(30) if n not in kept]
    other = RedisBackend(server.url(), prefix=prefix)
    assert other.prune(THREAD, dropped) == 27
    for n in kept:
        assert blobs_of(read(other, f"{n:02}"))["a"][2] == values[n]
    assert other.prune(THREAD, [("", "05"), ("", "13")]) == 2
    assert blobs_of(read(other, None))["a"][2] == values[29]
    assert allocated(server, prefix) < 3 * len(value)
    other.close()


def test_a_long_chat_with_its_history(backend: RedisBackend, server: Server, prefix: str) -> None:
    """100 turns of a thread whose every value would be 5 MB stored whole each time."""
    saver = CheckpointSaver(backend)
    graph = chat(saver)
    for _ in range(100):
        graph.invoke(turn(TEXT.randbytes(250).hex()), place())
    newest = graph.get_state(place()).values["items"]
    text = sum(map(len, newest))
    assert text > 100_000
    assert allocated(server, prefix) < 10 * text
    fresh = CheckpointSaver(RedisBackend(server.url(), prefix=prefix))
    states = list(chat(fresh).get_state_history(place()))
    assert len(states) == 400
    assert states[0].values["items"] == newest
    assert all(
        state.values["items"] == newest[: len(state.values["items"])] for state in states[:-1]
    )
    fresh.close()


def test_all_keys_of_a_thread_are_few(backend: RedisBackend, server: Server, prefix: str) -> None:
    chain(backend, *(f"{n:03}" for n in range(200)))
    assert len(keys_of(server, prefix, THREAD)) == 2


def test_nothing_searches_all_keys(backend: RedisBackend, server: Server) -> None:
    """By what the server counts, whoever calls: a listing's cost is its page's."""
    for n in range(30):
        store(backend, put("1", thread=f"thread {n}"))
    with server.client() as client:
        for call, most in (
            (lambda: backend.threads(ThreadQuery(limit=3)), 3),
            (lambda: backend.threads(ThreadQuery(thread_id="thread 7")), 1),
            (lambda: backend.scan(Scan(thread_id="thread 7")), 1),
            (lambda: backend.scan(Scan(limit=5)), 30),
            (lambda: backend.read("thread 7", "", None), 1),
            (lambda: backend.delete("thread 7", at=1.0), 1),
        ):
            client.config_resetstat()
            call()
            told: Any = client.info("commandstats")
            used = {name.removeprefix("cmdstat_"): stats["calls"] for name, stats in told.items()}
            assert not used.keys() & {"keys", "scan", "hgetall", "hscan", "smembers"}
            assert used.get("hget", 0) <= 12 * most


def test_what_is_held_counts_only_while_it_is_the_same(server: Server, prefix: str) -> None:
    """A thread was deleted elsewhere and begun anew, and a value has the version of another that is held here."""
    here, there = (RedisBackend(server.url(), prefix=prefix) for _ in range(2))
    data = random.Random(7).randbytes(4000)
    store(here, put("1", None, blob("c", "1", data)))
    assert there.delete("thread", at=1.0)
    store(there, put("2", None, blob("c", "1", data[::-1])))
    for _ in range(2):
        assert [b.data for b in here.read("thread", "", None).blobs] == [data[::-1]]
    store(there, put("3", "2", blob("c", "2", data[::-1] + b"more")))
    assert [b.data for b in here.read("thread", "", None).blobs] == [data[::-1] + b"more"]
    here.close()
    there.close()
