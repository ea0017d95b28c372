"""The list of threads while its index is behind, ahead, or changed by others at that moment."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from charm_checkpoint.backend import Scan, ThreadCursor, ThreadQuery, ThreadRow, Unit
from charm_checkpoint.testing.rows import AT, chain, pending, put, statuses, store, write
from charm_memory_redis import RedisBackend, listing
from charm_memory_redis.connections import Call
from charm_memory_redis.scripts import script
from tests.redis.proxy import Proxy
from tests.redis.server import Cluster, Server


@pytest.fixture
def backend(cluster: Cluster, prefix: str) -> Iterator[RedisBackend]:
    backend = RedisBackend(cluster.url(), prefix=prefix)
    yield backend
    backend.close()


@contextmanager
def _index(cluster: Cluster, prefix: str) -> Iterator[tuple[redis.Redis, str]]:
    """The node that has the index, and the index's key."""
    key = f"{prefix}:threads"
    with cluster.nodes[cluster.owner(key_slot(key.encode()))].client() as client:
        yield client, key


def _walk(backend: RedisBackend, limit: int) -> list[str]:
    """All threads by pages."""
    found: list[str] = []
    after = None
    while page := backend.threads(ThreadQuery(limit, after)):
        assert len(page) <= limit
        cursors = [(row.updated_at, row.thread_id) for row in page]
        assert cursors == sorted(cursors, reverse=True)
        assert after is None or cursors[0] < after
        found += [row.thread_id for row in page]
        after = cursors[-1]
    return found


@contextmanager
def _between(backend: RedisBackend, name: str, act: Callable[[tuple[Call, ...]], None]) -> Any:
    """Calls `act` after each run of a script, before anything that follows from it."""
    original = backend._connections.run

    def run(*calls: Call, **options: Any) -> list[Any]:
        answers = original(*calls, **options)
        if calls and calls[0].script == script(name):
            act(calls)
        return answers

    backend._connections.run = run  # type: ignore[method-assign]
    yield
    del backend._connections.run  # type: ignore[method-assign]


# -- an index that is off ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
@pytest.mark.parametrize("when", ["long ago", "at this moment"])
def test_no_page_skips_or_repeats_a_thread(
    when: str, limit: int, backend: RedisBackend, cluster: Cluster, prefix: str
) -> None:
    """Whatever the index says of some of them."""
    seed = random.randrange(10**6)
    print("seed", seed)
    chance, begin = random.Random(seed), AT if when == "long ago" else time.time()
    names = [f"{n:02}" for n in range(12)]
    for n, name in enumerate(names):
        store(backend, put("1", thread=name, at=begin + n))
    with _index(cluster, prefix) as (client, key):
        for name in chance.sample(names, 5):
            client.zadd(key, {name: begin + chance.randrange(12) + 0.5})
    found = _walk(backend, limit)
    assert sorted(found) == names
    if when == "long ago":
        assert _walk(backend, limit) == names[::-1], "it was set right"
    backend.close()


def test_what_is_being_written_is_not_forgotten(
    backend: RedisBackend, cluster: Cluster, prefix: str
) -> None:
    """A thread may be in the index a moment before it is there. What is there no more goes out when it is old."""
    chain(backend, "1", thread="other")
    with _index(cluster, prefix) as (client, key):
        client.zadd(key, {"coming": time.time(), "gone": AT})
        assert _walk(backend, 10) == ["other"]
        assert client.zscore(key, "coming") is not None
        assert client.zscore(key, "gone") is None


def test_what_was_deleted_or_refused_is_forgotten_at_once(
    backend: RedisBackend, cluster: Cluster, prefix: str
) -> None:
    at = time.time()
    store(backend, put("1", thread="deleted", at=at), put("1", thread="stays", at=at))
    assert backend.delete("deleted", at=at)
    assert statuses(backend.write([put("2", "1", thread="refused", at=at)])) == ["orphaned"]
    refused = put("2", "0", thread="stays", at=at + 5, fenced=True)
    assert statuses(backend.write([refused])) == ["conflict"]
    with _index(cluster, prefix) as (client, key):
        assert client.zrange(key, 0, -1, withscores=True) == [(b"stays", at)]


def test_a_repeated_note_of_a_slow_device_lowers_nothing(
    backend: RedisBackend, cluster: Cluster, prefix: str
) -> None:
    """Its step goes beside the head that another device moved meanwhile."""
    store(backend, put("1", thread="a", at=AT), put("2", "1", thread="a", at=AT + 9))
    beside = put("3", "1", thread="a", at=AT + 5, on_conflict="beside")
    assert statuses(backend.write([beside])) == ["branched"]
    with _index(cluster, prefix) as (client, key):
        assert client.zscore(key, "a") == AT + 9


@pytest.mark.parametrize("off", ["behind", "ahead"])
def test_setting_right_does_not_undo_what_others_wrote_meanwhile(
    off: str, backend: RedisBackend, cluster: Cluster, prefix: str
) -> None:
    other = RedisBackend(cluster.url(), prefix=prefix)
    store(backend, put("1", thread="a", at=AT + 5))
    moved: list[object] = []

    def move_on(_: object) -> None:
        if not moved:
            moved.append(store(other, put("2", "1", thread="a", at=AT + 9)))

    with _index(cluster, prefix) as (client, key):
        client.zadd(key, {"a": AT + (2 if off == "behind" else 8)})
        with _between(backend, "thread", move_on):
            assert _walk(backend, 10) == ["a"]
        assert moved
        assert client.zscore(key, "a") == AT + 9
    other.close()


# -- a single server ---------------------------------------------------------------------------------------------------


def test_a_page_is_one_trip(proxy: Proxy, prefix: str) -> None:
    backend = RedisBackend(proxy.url, prefix=prefix)
    names = [f"{n:03}" for n in range(150)]
    backend.write([put("1", thread=name, at=AT + n) for n, name in enumerate(names)])
    after = None
    for n in range(3):
        backend.threads(ThreadQuery(50, after))
        proxy.reset()
        page = backend.threads(ThreadQuery(50, after))
        assert [row.thread_id for row in page] == names[::-1][50 * n : 50 * (n + 1)]
        assert proxy.trips == 1
        after = (page[-1].updated_at, page[-1].thread_id)
    backend.close()


def test_a_long_page_is_looked_through_once(
    server: Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done for a thread does not grow with how many there are before it."""
    backend = RedisBackend(server.url(), prefix=prefix)
    count = 10 * listing.THREADS_AT_ONCE
    backend.write([put("1", thread=str(n), at=AT + n) for n in range(count)])
    looks, original = [0], listing._cursor

    def counted(row: ThreadRow) -> ThreadCursor:
        looks[0] += 1
        return original(row)

    monkeypatch.setattr(listing, "_cursor", counted)
    page = backend.threads(ThreadQuery(count))
    assert [row.thread_id for row in page] == [str(n) for n in reversed(range(count))]
    assert looks[0] <= 2 * count
    backend.close()


@pytest.mark.parametrize(
    "query",
    [
        ThreadQuery(10, status="interrupted"),
        ThreadQuery(10, status="failed"),
        ThreadQuery(10, labels={"user": "u7"}),
        ThreadQuery(10, labels={"vip": True, "n": 7}),
        ThreadQuery(10, status="interrupted", labels={"user": "u7"}),
    ],
)
def test_little_is_read_of_what_is_not_wanted(
    query: ThreadQuery, server: Server, prefix: str
) -> None:
    """Of many threads one fits: what tells a thread's heads is asked of this one only."""
    backend = RedisBackend(server.url(), prefix=prefix)
    units: list[Unit] = []
    for n in range(250):
        fits = n == 7
        labels = {"user": "u7" if fits else f"v{n}", "vip": fits, "n": n}
        metadata = json.dumps(labels).encode()
        asks = write(idx=-3, channel="__interrupt__" if query.status != "failed" else "__error__")
        units.append(put("1", thread=str(n), metadata=metadata))
        units.append(pending("1", asks if fits else write(), thread=str(n)))
    store(backend, *units)
    with server.client() as client:
        client.config_resetstat()
        assert [row.thread_id for row in backend.threads(query)] == ["7"]
        told: Any = client.info("commandstats")
    assert told["cmdstat_zrangebylex"]["calls"] == 2
    backend.close()


# -- scans over all threads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["server", "cluster"])
def test_a_thread_that_moves_on_during_a_scan_of_all_is_not_missed(
    where: str, request: pytest.FixtureRequest, prefix: str
) -> None:
    """One that was not asked yet goes to the top of the list, where the scan began."""
    server: Server | Cluster = request.getfixturevalue(where)
    backend, other = (RedisBackend(server.url(), prefix=prefix) for _ in range(2))
    names = [f"{n:03}" for n in range(450)]
    backend.write([put("1", thread=name, at=AT + n) for n, name in enumerate(names)])
    keys = {backend._keys.thread(name)[0]: name for name in names}
    waiting = dict(keys)
    moved: list[str] = []

    def move_on(calls: tuple[Call, ...]) -> None:
        for call in calls:
            waiting.pop(call.keys[0], None)
        if waiting and len(moved) < 2:
            moved.append(next(iter(waiting.values())))
            store(other, put("2", "1", thread=moved[-1], at=AT + 1000))

    with _between(backend, "scan", move_on):
        page = backend.scan(Scan(checkpoint_id="1", limit=1000))
    assert moved
    assert sorted(entry.thread_id for entry in page.entries) == names
    backend.close()
    other.close()
