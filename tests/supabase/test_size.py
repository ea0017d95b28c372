"""Long answers, which PostgREST would cut if they were sets, and big calls."""

from __future__ import annotations

import random
from typing import Any

import pytest

from charm_checkpoint.backend import PutCheckpoint, Scan, ThreadQuery, Unit
from charm_checkpoint.errors import BackendUnavailable
from charm_checkpoint.testing.rows import (
    blob,
    contents,
    head,
    ids,
    pending,
    put,
    read,
    statuses,
    store,
    write,
)
from charm_memory_postgres import PostgresBackend
from charm_memory_supabase import SupabaseBackend
from tests.supabase.conftest import Project
from tests.supabase.support import function_of, open_service

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


def long_run(thread: str) -> list[Unit]:
    """Steps of a graph with a subgraph: a list that grows, a value that stays, and pending writes."""
    chance = random.Random(5)
    said, units = b"", []
    for n in range(6):
        said += chance.randbytes(700)
        kept = [blob("kept", data=b"value" * 50)] if n == 0 else []
        step, before = f"{n:02}", f"{n - 1:02}" if n else None
        units += [
            put(
                step,
                before,
                blob("said", f"{n}", said),
                *kept,
                thread=thread,
                versions={"kept": "1"},
            ),
            put(step, before, blob("c", f"{n}"), thread=thread, namespace="sub:1", root=step),
            pending(step, write(data=chance.randbytes(300)), thread=thread),
        ]
    return units


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_batch_that_breaks_off_anywhere(fault: Any, project: Project) -> None:
    """Between any two of its requests each head stands on all it needs; repeated, all is there once."""
    function = function_of(project, "write")
    reader = PostgresBackend(project.postgres_url, schema="charm", migrate="check")
    project.opened.callback(reader.close)
    project.gateway.calls.clear()
    open_service(project, max_request=2500).write(long_run("whole"))
    requests = sum(call.function == function for call in project.gateway.calls)
    assert requests > 6
    whole = contents(reader, "whole")
    for cut in range(requests):
        thread = f"cut at {cut}"
        backend = open_service(project, max_request=2500)
        project.faults.order(fault, function, after=cut)
        with pytest.raises(BackendUnavailable):
            backend.write(long_run(thread))
        found = contents(reader, thread)
        assert (len(found) > 0) == (cut + (fault == "after") > 0)
        for namespace in {namespace for namespace, _ in found}:
            newest = head(reader, thread, namespace)
            steps = sorted(step for each, step in found if each == namespace)
            assert newest == steps[-1], "a head that is not there, or was left behind"
            assert steps == [f"{n:02}" for n in range(len(steps))], "something it grew from is not"
            for step in steps:
                # All but pending writes, which come behind.
                assert found[namespace, step][:2] == whole[namespace, step][:2]
                assert ("", step) in found
        assert set(statuses(backend.write(long_run(thread)))) == {"stored"}
        assert contents(reader, thread) == whole
        assert [head(reader, thread, each) for each in ("", "sub:1")] == ["05", "05"]
