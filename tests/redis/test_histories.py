"""Random histories: calls that are lost, scripts that are forgotten, processes that are killed while others read."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from charm_checkpoint.backend import Backend, PutCheckpoint, Scan, ThreadQuery, Unit
from charm_checkpoint.errors import BackendUnavailable, CheckpointStoreError
from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.testing.rows import (
    blob,
    blobs_of,
    contents,
    ids,
    move,
    pending,
    put,
    read,
    store,
    write,
)
from charm_memory_redis import RedisBackend
from tests.postgres.children import fork
from tests.redis.proxy import Fault, Proxy
from tests.redis.server import Server
from tests.redis.support import is_script

_COUNT = int(os.environ.get("CHARM_TEST_HISTORIES", "100"))
_FIRST = int(os.environ.get("CHARM_TEST_HISTORIES_FROM", "0"))
SEEDS = [pytest.param(_FIRST + n, marks=() if n < 4 else pytest.mark.slow) for n in range(_COUNT)]

THREADS = ["a", "a:{b}", "*"]
NAMESPACES = ["", "sub", "sub:1"]
Call = Callable[[Backend], Any]


# -- lost calls --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_lost_calls_and_forgotten_scripts(
    seed: int, proxy: Proxy, server: Server, prefix: str
) -> None:
    """Whoever repeats what was lost has what a backend has that was called as often."""
    chance = random.Random(seed)
    theirs, ours = MemoryBackend(), RedisBackend(proxy.url, prefix=prefix, timeout=5.0)
    ours.setup()
    statuses: Counter[str] = Counter()
    with server.client() as client:
        for _ in range(200):
            described, call = _any_call(chance, theirs)
            if chance.random() < 0.1:
                client.script_flush()
            fault: Fault | None = chance.choice([None, None, None, "before", "after"])
            before = proxy.fired
            if fault and not described.startswith("copy"):  # which is not to be repeated
                proxy.break_at(fault, is_script)
            answer = _answer(ours, call)
            proxy.mend()
            runs = 2 if fault == "after" and proxy.fired > before else 1
            expected = [_answer(theirs, call) for _ in range(runs)][-1]
            print(
                described, fault, *([answer] if answer == expected else [answer, "not", expected])
            )
            assert repr(answer) == repr(expected)
            statuses.update(re.findall("stored|branched|conflict|deleted|orphaned", repr(answer)))
    for thread in THREADS:
        assert (contents(ours, thread) == contents(theirs, thread)) is True
    # When a thread began that was pruned away whole is not told by the contract.
    listed = [
        [row._replace(created_at=0.0, heads=tuple(row.heads)) for row in b.threads(ThreadQuery())]
        for b in (ours, theirs)
    ]
    assert listed[0] == listed[1]
    assert len(statuses) >= 4, statuses
    ours.close()


def _answer(backend: Backend, call: Call) -> Any:
    while True:
        try:
            return call(backend)
        except BackendUnavailable:
            continue
        except CheckpointStoreError as error:
            return type(error)


def _any_call(chance: random.Random, there: Backend) -> tuple[str, Call]:
    thread = chance.choice(THREADS)
    verbs = ["write", "read", "prune", "copy", "delete"]
    [verb] = chance.choices(verbs, weights=[40, 4, 3, 1, 1])
    at = chance.randrange(10**6) / 8
    if verb == "write":
        units = [_any_unit(chance, thread, at, there) for _ in range(chance.randint(1, 3))]
        return f"write {_told(units)}", lambda b: [tuple(outcome) for outcome in b.write(units)]
    if verb == "delete":
        return f"delete {thread} {at}", lambda b: b.delete(thread, at=at)
    if verb == "prune":
        namespace = chance.choice(NAMESPACES)
        drop = [(namespace, _any_id(chance, thread, namespace, there)) for _ in range(3)]
        return f"prune {thread} {drop}", lambda b: b.prune(thread, drop)
    if verb == "copy":
        target = chance.choice(THREADS)
        return f"copy {thread} {target}", lambda b: b.copy(thread, target, at=at)
    return f"read {thread}", lambda b: (
        sorted(contents(b, thread)),
        sorted(tuple(mark.head) for mark in b.pull(thread, ()).heads),
    )


def _any_unit(chance: random.Random, thread: str, at: float, there: Backend) -> Unit:
    namespace = chance.choice(NAMESPACES)
    where: Any = {"thread": thread, "namespace": namespace}
    [kind] = chance.choices(["put", "writes", "move"], weights=[6, 3, 1])

    def old() -> str:
        return _any_id(chance, thread, namespace, there)

    if kind == "writes":
        rows = [
            write(chance.choice("xy"), chance.randint(-2, 2), data=chance.choice([b"a", b"b"]))
            for _ in range(2)
        ]
        return pending(old(), *rows, **where)._replace(fenced=chance.random() < 0.2)
    head = there.read(thread, namespace, None).head
    if kind == "move":
        return move(old(), chance.choice([head or "none", old()]), **where, at=at)
    # The same under its key whoever stores it; it grows, so that a change to the one before is sent.
    version = str(chance.randint(1, 20))
    return put(
        f"{chance.randint(1, 99):02}",
        chance.choice([None, head, head, head, old()]),
        blob("messages", version, random.Random(5).randbytes(2000 + 100 * int(version))),
        **where,
        versions={"note": version},
        fenced=chance.random() < 0.5,
        on_conflict=chance.choice(["raise", "branch", "overwrite", "beside"]),
        root=chance.choice([None, _any_id(chance, thread, "", there)]),
        whole=chance.random() < 0.1,
        format=chance.choice([3, 4]),
        at=at,
    )


def _any_id(chance: random.Random, thread: str, namespace: str, there: Backend) -> str:
    """Mostly of what is there."""
    known = ids(there, Scan(thread_id=thread, namespace=namespace, values=False))
    return chance.choice([*known, f"{chance.randint(1, 99):02}"])


def _told(units: list[Unit]) -> str:
    """All but what the values are."""
    return "; ".join(
        str(unit._replace(row=tuple(unit.row[:3]), blobs=tuple(unit.row.versions.items())))  # type: ignore[arg-type]
        if isinstance(unit, PutCheckpoint)
        else str(unit)
        for unit in units
    )


# -- killed writers ----------------------------------------------------------------------------------------------------


def _step(n: int, thread: str) -> PutCheckpoint:
    """The same for the same `n`, with a value that grows."""
    value = random.Random(thread).randbytes(3000 + 100 * n)
    return put(
        f"{n:05}",
        f"{n - 1:05}" if n else None,
        blob("a", str(n), value),
        thread=thread,
        fenced=True,
    )


@pytest.mark.parametrize("seed", SEEDS[:: len(SEEDS) // 2 or 1][:2] if len(SEEDS) > 1 else SEEDS)
def test_a_kill_loses_nothing_acknowledged_and_nobody_sees_a_half(
    seed: int, server: Server, prefix: str
) -> None:
    chance = random.Random(seed)
    backend = RedisBackend(server.url(), prefix=prefix)
    backend.setup()
    acknowledged = 0
    for run in range(10):
        thread = f"run {run}"
        reader, writer = os.pipe()
        child = fork()
        if child == 0:
            own = RedisBackend(server.url(), prefix=prefix)
            for n in count():
                note = pending(f"{n:05}", write(data=b"%d" % n), thread=thread)
                store(own, note, _step(n, thread))
                os.write(writer, b".")
        os.close(writer)
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            answers = len(pipe.read(1))
            for _ in range(chance.randrange(20)):
                _is_whole(backend, thread, at_least=answers)
                answers += len(pipe.read(1))
            time.sleep(chance.random() * 0.003)  # anywhere within a step
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            answers += len(pipe.read())
        stored = _is_whole(backend, thread, at_least=answers)
        assert stored <= answers + 1, "one more may be there, its answer lost with the process"
        for n in range(stored):
            snapshot = read(backend, f"{n:05}", thread)
            assert blobs_of(snapshot)["a"][2] == _step(n, thread).blobs[0].data
            assert [w.data for w in snapshot.writes] == [b"%d" % n]
        store(backend, _step(stored, thread))
        acknowledged += answers
    assert acknowledged > 20, "most were killed while they worked"
    listed = [row.thread_id for row in backend.threads(ThreadQuery())]
    assert sorted(listed) == sorted(f"run {run}" for run in range(10))
    backend.close()


def _is_whole(backend: Backend, thread: str, *, at_least: int) -> int:
    """How many steps there are, as every verb tells it."""
    [entry] = backend.pull(thread, ()).entries
    row = entry.snapshot.checkpoint
    assert row is not None
    steps = int(row.checkpoint_id) + 1
    assert at_least <= steps
    assert blobs_of(entry.snapshot)["a"][2] == _step(steps - 1, thread).blobs[0].data
    assert [w.data for w in entry.snapshot.writes] == [b"%d" % (steps - 1)]
    page = backend.scan(Scan(thread_id=thread, limit=1000))
    assert len(page.entries) >= steps
    assert all(blobs_of(each.snapshot) and each.snapshot.writes for each in page.entries)
    newest = read(backend, None, thread).head
    assert newest is not None
    return int(newest) + 1
