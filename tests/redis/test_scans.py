"""Scans of a long thread of which few checkpoints are wanted: the server is held for a short while for each page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from charm_checkpoint import CheckpointSaver
from charm_checkpoint.backend import Scan
from charm_checkpoint.keeping import headers
from charm_checkpoint.testing.rows import THREAD, ids, put, store
from charm_memory_redis import RedisBackend
from tests.redis.server import Server

_MANY = 12_000


@pytest.fixture(scope="module")
def long_thread(server: Server) -> Iterator[RedisBackend]:
    """12,000 checkpoints of a chat, and few of something else: before all, amid them and after all."""
    backend = RedisBackend(server.url(), prefix="long-thread")
    for start in range(0, _MANY, 1000):
        backend.write([put(f"m{n:05}", whole=True) for n in range(start, start + 1000)])
    for id in ("a", "m06000", "z"):
        store(backend, put(id, namespace="sub", run="r1"))
    store(backend, put("b", thread="short", namespace="sub", run="r1"))
    yield backend
    backend.close()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Scan(THREAD, "sub"), ["z", "m06000", "a"]),
        (Scan(THREAD, run_ids=("r1",)), ["z", "m06000", "a"]),
        (Scan(THREAD, "sub", before="z"), ["m06000", "a"]),
        (Scan(None, "sub"), ["z", "m06000", "b", "a"]),
        (Scan(run_ids=("r1",)), ["z", "m06000", "b", "a"]),
    ],
)
@pytest.mark.parametrize("limit", [1, 2, 100])
def test_few_of_many(
    limit: int, query: Scan, expected: list[str], long_thread: RedisBackend, server: Server
) -> None:
    query = query._replace(limit=limit)
    found: list[str] = []
    pages = 0
    with server.client() as client:
        while True:
            client.config_resetstat()
            page = long_thread.scan(query)
            told: Any = client.info("commandstats")
            used = {name: stats["calls"] for name, stats in told.items()}
            assert used.get("cmdstat_zrevrangebylex", 0) <= 25
            assert used.get("cmdstat_hget", 0) <= 5_500
            assert len(page.entries) <= limit
            found += [
                e.snapshot.checkpoint.checkpoint_id for e in page.entries if e.snapshot.checkpoint
            ]
            pages += 1
            if page.next is None:
                break
            assert query.after is None or page.next < query.after
            query = query._replace(after=page.next)
    assert found == expected
    assert pages > 2, "some were short"


def test_who_lists_goes_on_behind_an_empty_page(long_thread: RedisBackend) -> None:
    first = long_thread.scan(Scan(THREAD, "sub", before="z", limit=10))
    assert (list(first.entries), first.next is not None) == ([], True)
    assert ids(long_thread, Scan(THREAD, "sub", limit=1)) == ["z", "m06000", "a"]
    found = [e.snapshot.checkpoint for e in headers(long_thread, Scan(run_ids=("r1",)))]
    assert [row.checkpoint_id for row in found if row] == ["z", "m06000", "b", "a"]
    saver = CheckpointSaver(long_thread)
    place: Any = {"configurable": {"thread_id": THREAD, "checkpoint_ns": "sub"}}
    before: Any = {"configurable": {"thread_id": THREAD, "checkpoint_id": "z"}}
    for limit in (1, None):
        listed = [t.config["configurable"] for t in saver.list(place, before=before, limit=limit)]
        assert [each["checkpoint_id"] for each in listed] == ["m06000", "a"][:limit]
