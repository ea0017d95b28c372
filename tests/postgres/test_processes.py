"""Processes that race for one thread, and processes that are killed: what was acknowledged is there, whole and once."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import time
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

from charm_checkpoint.backend import PutCheckpoint
from charm_checkpoint.testing.rows import (
    blob,
    blobs_of,
    head,
    ids,
    pending,
    put,
    read,
    store,
    write,
)
from charm_memory_postgres import PostgresBackend
from tests.postgres.children import fork, in_children

ROUNDS = 300


def test_one_wins_each_step(database: str, tmp_path: Path) -> None:
    """Both have read the same head when they write; the other is told by whom it was overtaken."""

    def race(name: str, other: socket.socket) -> None:
        def meet() -> None:
            other.sendall(b".")
            assert other.recv(1) == b"."

        other.settimeout(60)
        backend = PostgresBackend(database)
        told: list[Any] = []
        for n in range(ROUNDS):
            newest = backend.read("thread", "", None).head
            meet()
            mine = put(f"{n} {name}", newest, blob("a", f"{n} {name}"), fenced=True, device=name)
            [outcome] = backend.write([mine])
            told.append([outcome.status, outcome.head and outcome.head.device])
            meet()
        backend.close()
        (tmp_path / name).write_text(json.dumps(told))

    laptop, phone = socket.socketpair()
    with laptop, phone:
        in_children(lambda: race("laptop", laptop), lambda: race("phone", phone))
    won = []
    for n, results in enumerate(
        zip(
            *(json.loads((tmp_path / name).read_text()) for name in ("laptop", "phone")),
            strict=True,
        )
    ):
        winner = "laptop" if results[0][0] == "stored" else "phone"
        assert sorted(results, key=str) == [["conflict", winner], ["stored", None]]
        won.append(f"{n} {winner}")
    backend = PostgresBackend(database)
    assert head(backend) == won[-1]
    assert sorted(ids(backend)) == sorted(won)
    for id, parent in zip(won, [None, *won], strict=False):
        found = read(backend, id)
        assert found.checkpoint is not None
        assert found.checkpoint.parent_id == parent
        assert set(blobs_of(found)) == {"a"}
    backend.close()


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


def _is_served(database: str, name: str) -> bool:
    with psycopg.connect(database) as connection:
        query = "SELECT FROM pg_stat_activity WHERE application_name = %s"
        return connection.execute(query, (name,)).fetchone() is not None


def test_a_kill_loses_nothing_acknowledged(database: str) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    chance = random.Random(seed)
    acknowledged = 0
    for run in range(20):
        thread = f"run {run}"
        reader, writer = os.pipe()
        child = fork()
        if child == 0:
            backend = PostgresBackend(f"{database} application_name='{thread}'")
            for n in count():
                store(
                    backend,
                    _step(n, thread),
                    pending(f"{n:05}", write(data=b"%d" % n), thread=thread),
                )
                os.write(writer, b".")
        os.close(writer)
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            answers = sum(len(pipe.read(1)) for _ in range(chance.randrange(20)))
            time.sleep(chance.random() * 0.003)  # anywhere within a step
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            answers += len(pipe.read())
        while _is_served(database, thread):
            pass  # what it sent last may be stored yet
        backend = PostgresBackend(database)
        found = head(backend, thread)
        stored = int(found) + 1 if found else 0
        assert answers <= stored <= answers + 1, (
            "one more may be there, its answer lost with the process"
        )
        for n in range(stored):
            snapshot = read(backend, f"{n:05}", thread)
            assert blobs_of(snapshot)["a"][2] == _step(n, thread).blobs[0].data
            assert [w.data for w in snapshot.writes] == [b"%d" % n]
        store(backend, _step(stored, thread))
        backend.close()
        acknowledged += answers
    assert acknowledged > 20, "most were killed while they worked"
