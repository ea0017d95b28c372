"""`prune` as one script: all of it or nothing, also where something is damaged or the server is full."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from charm_checkpoint.backend import Scan
from charm_checkpoint.errors import BackendCorrupt, BackendUnavailable
from charm_checkpoint.testing.rows import (
    THREAD,
    blob,
    blobs_of,
    chain,
    head,
    ids,
    pending,
    put,
    read,
    store,
)
from charm_memory_redis import RedisBackend
from charm_memory_redis.keys import Keys, part
from tests.redis.server import Server


@pytest.fixture(params=["newest", "oldest"])
def any_server(request: pytest.FixtureRequest) -> Server:
    name = "server" if request.param == "newest" else "older_server"
    found: Server = request.getfixturevalue(name)
    return found


@pytest.fixture
def backend(any_server: Server, prefix: str) -> Iterator[RedisBackend]:
    backend = RedisBackend(any_server.url(), prefix=prefix)
    yield backend
    backend.close()


def _grown(n: int) -> bytes:
    """A value that the next one is stored as a change to."""
    return random.Random(7).randbytes(20_000) + b"x" * 50 * n


def _chat(backend: RedisBackend, count: int) -> None:
    for n in range(count):
        store(
            backend,
            put(f"{n}", f"{n - 1}" if n else None, blob("a", str(n), _grown(n))),
            pending(f"{n}"),
        )


def test_an_error_leaves_everything_as_it_was(
    backend: RedisBackend, any_server: Server, prefix: str
) -> None:
    """Of a value that has to be made whole, what it is built on is missing."""
    _chat(backend, 4)
    chain(backend, "1", "2", namespace="sub")
    rows, index, _ = Keys(prefix).thread(THREAD)
    with any_server.client() as client:
        assert client.hdel(rows, b"b" + part("") + part("a") + part("0")) == 1  # type: ignore[arg-type]
        before = client.dump(rows), client.dump(index)
        with pytest.raises(BackendCorrupt, match=r"(?s)damaged.*thread"):
            backend.prune(THREAD, [("sub", "2"), ("", "2")])
        assert (client.dump(rows), client.dump(index)) == before
    assert (head(backend, namespace="sub"), ids(backend, Scan(values=False))) == (
        "2",
        list("322110"),
    )


def test_a_full_server_is_pruned(backend: RedisBackend, any_server: Server) -> None:
    """It gives room back, though a value has to be made whole and a head moved."""
    _chat(backend, 4)
    with any_server.client() as client:
        client.config_set("maxmemory", 1)
        try:
            assert backend.prune(THREAD, [("", "1"), ("", "3")]) == 2
        finally:
            client.config_set("maxmemory", 0)
    other = RedisBackend(backend.name, prefix=backend._keys.prefix)
    assert head(other) == "2"
    assert [blobs_of(read(other, id))["a"][2] for id in "02"] == [_grown(0), _grown(2)]
    other.close()


@pytest.mark.parametrize("waits", [0, 1])
def test_what_is_gone_is_pruned_again_on_a_full_server(
    waits: int, backend: RedisBackend, any_server: Server, prefix: str
) -> None:
    """Its answer was lost, say."""
    _chat(backend, 2)
    assert backend.prune(THREAD, [("", "0")]) == 1
    rows, index, _ = Keys(prefix).thread(THREAD)
    again = RedisBackend(any_server.url(), prefix=prefix, timeout=0.1, wait_replicas=waits)
    with any_server.client() as client:
        before = client.dump(rows), client.dump(index)
        client.config_set("maxmemory", 1)
        try:
            if waits:
                with pytest.raises(BackendUnavailable, match="replica"):
                    again.prune(THREAD, [("", "0")])
            else:
                assert again.prune(THREAD, [("", "0")]) == 0
        finally:
            client.config_set("maxmemory", 0)
        assert (client.dump(rows), client.dump(index)) == before
    again.close()


def test_a_thread_is_looked_through_once(backend: RedisBackend, any_server: Server) -> None:
    """However many namespaces are pruned at once."""
    names = [f"sub {n}" for n in range(20)]
    for name in names:
        chain(backend, "1", "2", namespace=name)
    with any_server.client() as client:
        client.config_resetstat()
        assert backend.prune(THREAD, [(name, "1") for name in names]) == 20
        told: Any = client.info("commandstats")
    assert told["cmdstat_zrangebylex"]["calls"] == 1
    assert ids(backend) == ["2"] * 20
