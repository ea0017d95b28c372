"""Long answers, which PostgREST would cut if they were sets, and big calls."""

from __future__ import annotations

import random
from typing import Any

import pytest

from charm_checkpoint.backend import PutCheckpoint, Scan, ThreadQuery
from charm_checkpoint.errors import BackendUnavailable
from charm_checkpoint.testing.rows import (
    blob,
    head,
    ids,
    pending,
    put,
    read,
    statuses,
    store,
    write,
)
from charm_memory_supabase import SupabaseBackend
from tests.supabase.conftest import Project
from tests.supabase.support import (
    open_service,
)

# -- long answers, and long calls --------------------------------------------------------------------------------------


@pytest.fixture
def long_thread(backend: SupabaseBackend) -> SupabaseBackend:
    """5,000 steps of one thread."""
    write = [
        put(f"{n:05}", f"{n - 1:05}" if n else None, *([blob("seed", "1")] if not n else []))
        for n in range(5000)
    ]
    for start in range(0, 5000, 500):
        store(backend, *write[start : start + 500])
    return backend


def test_5000_steps_in_one_answer(long_thread: SupabaseBackend) -> None:
    page = long_thread.scan(Scan(limit=5000, values=False))
    assert [e.snapshot.checkpoint.checkpoint_id for e in page.entries if e.snapshot.checkpoint] == [
        f"{n:05}" for n in reversed(range(5000))
    ]
    assert len(ids(long_thread, Scan(limit=1500))) == 5000
    [seed] = long_thread.lineage("thread", "", None, ["seed"])
    assert [each.channel for each in seed.blobs] == ["seed"]
    assert long_thread.prune("thread", [("", f"{n:05}") for n in range(1, 4999)]) == 4998


def test_5000_threads_in_one_answer(backend: SupabaseBackend) -> None:
    for start in range(0, 5000, 500):
        store(backend, *(put("1", thread=f"{n:04}", at=n) for n in range(start, start + 500)))
    rows = backend.threads(ThreadQuery(limit=5000))
    assert [row.thread_id for row in rows] == [f"{n:04}" for n in reversed(range(5000))]


def test_5000_heads_and_writes_in_one_answer(backend: SupabaseBackend) -> None:
    store(backend, put("1"))
    store(backend, pending("1", *(write(f"task {n:04}") for n in range(5000))))
    assert len(read(backend, "1").writes) == 5000
    assert len(backend.pull("thread", ()).entries[0].snapshot.writes) == 5000


def big_batch() -> list[PutCheckpoint]:
    """40 steps with 10 kB each, none like another."""
    chance = random.Random(5)
    return [
        put(f"{n:02}", f"{n - 1:02}" if n else None, blob("c", f"{n}", chance.randbytes(10_000)))
        for n in range(40)
    ]


def test_a_big_batch_goes_in_requests_of_bounded_size(project: Project) -> None:
    """In order, so that no head is there before what it stands on."""
    backend, units = open_service(project, max_request=100_000), big_batch()
    backend.setup()
    project.gateway.calls.clear()
    assert statuses(backend.write(units)) == ["stored"] * 40
    calls = project.gateway.calls
    assert 5 < len(calls) < 20
    assert max(call.sent for call in calls) <= 100_000
    assert head(backend) == "39"
    assert read(backend, "07").blobs == list(units[7].blobs)


def test_a_single_step_above_the_bound(project: Project) -> None:
    """Goes whole: there is no smaller transaction."""
    backend = open_service(project, max_request=1000)
    big = put("2", "1", blob("c", "2", random.Random(5).randbytes(3_000_000)))
    store(backend, put("1"), big, put("3", "2"))
    assert read(backend, "2").blobs == list(big.blobs)
    assert head(backend) == "3"


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_big_batch_of_which_a_request_is_lost(fault: Any, project: Project) -> None:
    """Part of it is there; repeated, each unit is there once."""
    backend, units = open_service(project, max_request=100_000), big_batch()
    backend.setup()
    original, calls = project.faults.take, 0

    def second(function: str | None) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            project.faults.order(fault)
        return original(function)

    project.faults.take = second  # type: ignore[method-assign]
    try:
        with pytest.raises(BackendUnavailable):
            backend.write(units)
    finally:
        del project.faults.take
    assert 0 < len(ids(backend)) < 40
    assert head(backend) == ids(backend)[0]
    assert statuses(backend.write(units)) == ["stored"] * 40
    assert len(ids(backend)) == 40
    assert head(backend) == "39"
