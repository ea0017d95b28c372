"""Threads that expire do so whole; what a deletion leaves behind outlives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from charm_checkpoint.backend import Backend, Scan, ThreadQuery
from charm_checkpoint.testing.rows import (
    THREAD,
    blob,
    chain,
    head,
    ids,
    move,
    pending,
    put,
    read,
    statuses,
    store,
)
from charm_memory_redis import RedisBackend, RedisMemory
from tests.redis.server import Server
from tests.redis.support import expire, keys_of, remaining

TTL = 1000.0

_WRITES: dict[str, Callable[[Backend], object]] = {
    "checkpoint": lambda b: store(b, put("4", "3", blob("a", "4"))),
    "writes": lambda b: store(b, pending("3")),
    "a repeated checkpoint": lambda b: store(b, put("3", "2")),
    "another namespace": lambda b: store(b, put("1", root="3", namespace="sub:1")),
    "a moved head": lambda b: store(b, move("2", "3")),
}
_READS: dict[str, Callable[[Backend], object]] = {
    "read": lambda b: read(b, None),
    "read of an old one": lambda b: read(b, "1"),
    "pull": lambda b: b.pull(THREAD, ()),
    "lineage": lambda b: b.lineage(THREAD, "", None, ["a"]),
}
_LOOKS: dict[str, Callable[[Backend], object]] = {
    "threads": lambda b: b.threads(ThreadQuery()),
    "a thread": lambda b: b.threads(ThreadQuery(thread_id=THREAD)),
    "scan": lambda b: b.scan(Scan(thread_id=THREAD)),
    "scan of all": lambda b: b.scan(Scan()),
}


@pytest.fixture
def backend(server: Server, prefix: str) -> Iterator[RedisBackend]:
    backend = RedisBackend(server.url(), prefix=prefix, ttl=TTL, refresh_on_read=True)
    chain(backend, "1", "2", "3")
    store(backend, pending("3"), put("1", None, blob("a"), root="3", namespace="sub:2"))
    yield backend
    backend.close()


def test_all_keys_of_a_thread_end_at_once(
    backend: RedisBackend, server: Server, prefix: str
) -> None:
    [left] = remaining(server, prefix, THREAD)
    assert TTL - 100 < left <= TTL


@pytest.mark.parametrize("what", [*_WRITES, *_READS])
def test_using_a_thread_keeps_it_whole(
    what: str, backend: RedisBackend, server: Server, prefix: str
) -> None:
    expire(server, prefix, THREAD, 60)
    {**_WRITES, **_READS}[what](backend)
    [left] = remaining(server, prefix, THREAD)
    assert TTL - 100 < left <= TTL


@pytest.mark.parametrize("what", [*_READS, *_LOOKS])
def test_looking_does_not_keep_it(
    what: str, backend: RedisBackend, server: Server, prefix: str
) -> None:
    """Unless it is asked for: and a listing never does."""
    looking = RedisBackend(server.url(), prefix=prefix, ttl=TTL, refresh_on_read=what in _LOOKS)
    expire(server, prefix, THREAD, 60)
    {**_READS, **_LOOKS}[what](looking)
    [left] = remaining(server, prefix, THREAD)
    assert 0 < left <= 60
    looking.close()


@pytest.mark.parametrize("ttl", [TTL, None])
@pytest.mark.parametrize("drop", ["1", "3", "not there"])
def test_pruning_does_not_keep_it(
    drop: str, ttl: float | None, backend: RedisBackend, server: Server, prefix: str
) -> None:
    """A job that looks after old threads would keep them for ever."""
    pruning = RedisBackend(server.url(), prefix=prefix, ttl=ttl)
    expire(server, prefix, THREAD, 60)
    assert pruning.prune(THREAD, [("", drop)]) == (drop != "not there")
    lasting = remaining(server, prefix, THREAD)
    assert all(0 < left <= 60 for left in lasting)
    pruning.close()


def test_without_a_ttl_it_stays(backend: RedisBackend, server: Server, prefix: str) -> None:
    """Also what was written with one, from the next write on."""
    plain = RedisBackend(server.url(), prefix=prefix)
    store(plain, put("4", "3"))
    assert remaining(server, prefix, THREAD) == {-1}
    plain.close()


def test_a_copy_has_a_time_of_its_own(backend: RedisBackend, server: Server, prefix: str) -> None:
    expire(server, prefix, THREAD, 60)
    backend.copy(THREAD, "copy", at=1.0)
    assert all(TTL - 100 < left <= TTL for left in remaining(server, prefix, "copy"))
    assert len(remaining(server, prefix, "copy")) == 1
    assert ids(backend, Scan(thread_id="copy", namespace="")) == ["3", "2", "1"]


@pytest.mark.parametrize("gone", ["expired", "one key evicted"])
def test_a_thread_that_ended_is_not_there(
    gone: str, backend: RedisBackend, server: Server, prefix: str
) -> None:
    chain(backend, "1", thread="other")
    for victim in keys_of(server, prefix, THREAD):
        if gone == "expired":
            expire(server, prefix, THREAD, 0)
            assert keys_of(server, prefix, THREAD) == []
            break
        with server.client() as client:
            kept = {key: client.dump(key) for key in keys_of(server, prefix, THREAD)}
            client.delete(victim)
        _is_gone(backend)
        with server.client() as client:
            for key, dumped in kept.items():
                client.restore(key, 0, dumped, replace=True)
            client.delete(victim)
    _is_gone(backend)
    # It is no deletion: the thread may begin anew, and go on where a device still has it.
    store(backend, put("9", "8", whole=True))
    assert head(backend) == "9"
    assert ids(backend, Scan(thread_id=THREAD)) == ["9"]


def _is_gone(backend: Backend) -> None:
    assert [row.thread_id for row in backend.threads(ThreadQuery())] == ["other"]
    assert [row.thread_id for row in backend.threads(ThreadQuery(thread_id=THREAD))] == []
    found = read(backend, None)
    assert (found.checkpoint, found.head, found.deleted_through) == (None, None, None)
    assert backend.pull(THREAD, ()).heads in ((), [])
    assert ids(backend, Scan(thread_id=THREAD)) == []
    assert {entry.thread_id for entry in backend.scan(Scan()).entries} == {"other"}
    assert statuses(backend.write([put("4", "3")])) == ["orphaned"]
    assert backend.delete(THREAD, at=5.0) is False


def test_a_tombstone_outlives_the_thread(server: Server, prefix: str) -> None:
    backend = RedisBackend(server.url(), prefix=prefix, ttl=TTL, tombstone_ttl=50 * TTL)
    chain(backend, "1", "2")
    backend.delete(THREAD, at=5.0)
    [left] = remaining(server, prefix, THREAD)
    assert 49 * TTL < left <= 50 * TTL
    store(backend, put("3"))
    assert len(remaining(server, prefix, THREAD)) == 2, "the tombstone's is its own"
    assert max(remaining(server, prefix, THREAD)) > 49 * TTL
    assert statuses(backend.write([put("9", "2")])) == ["deleted"]
    forever = RedisBackend(server.url(), prefix=prefix, tombstone_ttl=None)
    forever.delete(THREAD, at=6.0)
    assert remaining(server, prefix, THREAD) == {-1}
    backend.close()
    forever.close()


def test_a_ttl_in_the_config(server: Server, prefix: str) -> None:
    config = {"url": server.url(), "prefix": prefix, "ttl": "1000", "refresh_on_read": "true"}
    with RedisMemory(config) as memory:
        memory.save_messages("thread", [{"role": "user", "content": "hi"}])
        [left] = remaining(server, prefix, THREAD)
        assert TTL - 100 < left <= TTL
        expire(server, prefix, THREAD, 60)
        assert memory.load_messages("thread")
        [left] = remaining(server, prefix, THREAD)
        assert TTL - 100 < left <= TTL
