"""Random histories, packed now and then: everything reads as in the reference packer."""

from __future__ import annotations

import random
from contextlib import closing
from typing import Any

import psycopg
import pytest

from charm_checkpoint.backend import MoveHead, Scan
from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.testing.rows import (
    blob,
    contents,
    head,
    pending,
    put,
    statuses,
)
from charm_memory_postgres import PostgresBackend
from tests.core.support import place
from tests.postgres.packed import chatter


class Twins:
    """One history in Postgres, packed now and then, and in the reference packer, never packed."""

    def __init__(self, packer: PostgresBackend, rng: random.Random) -> None:
        self.ours, self.reference, self.rng, self.n = packer, MemoryBackend(), rng, 0
        self.values: dict[tuple[str, ...], bytes] = {}

    def both(self, verb: str, *arguments: Any, **options: Any) -> Any:
        told = [getattr(b, verb)(*arguments, **options) for b in (self.ours, self.reference)]
        if verb == "write":
            told = [statuses(outcomes) for outcomes in told]
        elif verb == "lineage":
            told = [[a._replace(blobs=sorted(a.blobs)) for a in ancestors] for ancestors in told]
        assert told[0] == told[1], verb
        return told[0]

    def known(self, thread: str, namespace: str) -> list[str]:
        found = self.reference.scan(Scan(thread, namespace, limit=10_000, values=False)).entries
        return [e.snapshot.checkpoint.checkpoint_id for e in found if e.snapshot.checkpoint]

    def put(self, thread: str, namespace: str) -> None:
        self.n += 1
        newest = self.reference.read(thread, namespace, None)
        origin = self.rng.choice(self.known(thread, namespace) or [None])
        how: Any = self.rng.choice(["raise", "raise", "branch", "beside", "overwrite"])
        on_head = self.rng.random() < 0.7
        parent = newest.head if on_head else origin
        before = self.reference.read(thread, namespace, parent) if parent else None
        versions = dict(before.checkpoint.versions) if before and before.checkpoint else {}
        blobs = []
        for channel in self.rng.sample(["messages", "notes", "small"], self.rng.randint(0, 3)):
            old = (
                next((b.data for b in before.blobs if b.channel == channel), b"") if before else b""
            )
            at = self.rng.randrange(len(old) + 1)
            new = {
                "messages": old + self.rng.randbytes(self.rng.randrange(3000)),
                "notes": (
                    old[:at] + self.rng.randbytes(50) + old[at:]
                    if old
                    else self.rng.randbytes(3000)
                ),
                "small": self.rng.randbytes(100),
            }[channel]
            blobs.append(blob(channel, f"{self.n:032}.{self.rng.random()}", new))
            versions.pop(channel, None)
        unit = put(
            f"{self.n:05}", parent, *blobs, thread=thread, namespace=namespace, versions=versions,
            fenced=self.rng.random() < 0.5, on_conflict=how,
        )  # fmt: skip
        if self.both("write", [unit]) in (["stored"], ["branched"]) and self.rng.random() < 0.3:
            self.both("write", [pending(f"{self.n:05}", thread=thread, namespace=namespace)])

    def act(self) -> None:
        thread, namespace = self.rng.choice("ab"), self.rng.choice(["", "", "sub"])
        known = self.known(thread, namespace)
        match self.rng.choices(
            ["put", "move", "prune", "delete", "copy", "pack"], [60, 3, 4, 1, 2, 8]
        )[0]:
            case "put":
                self.put(thread, namespace)
            case "move" if known:
                over = self.reference.read(thread, namespace, None).head or ""
                to = self.rng.choice(known)
                self.both("write", [MoveHead(thread, namespace, to, over, "phone", 5.0)])
            case "prune" if known:
                some = self.rng.choice([known[len(known) // 2 :], known[:3], known[::3]])
                self.both("prune", thread, [(namespace, name) for name in some])
            case "delete":
                self.both("delete", thread, at=float(self.n))
            case "copy" if self.known("a", "") and not any(
                self.known("b", ns) for ns in ("", "sub")
            ):
                self.both("copy", "a", "b", at=1.0)
            case "pack":
                self.ours._pack_after = self.rng.choice([1, 2, 5])
                self.ours.compact()
            case _:
                pass

    def compare(self, connection: psycopg.Connection) -> None:
        for thread in "ab":
            assert contents(self.ours, thread) == contents(self.reference, thread)
            for namespace in ("", "sub"):
                assert head(self.ours, thread, namespace) == head(self.reference, thread, namespace)
                newest = self.reference.read(thread, namespace, None)
                for found in newest.blobs:
                    there = connection.execute(
                        "SELECT 1 FROM checkpoint_blobs WHERE thread_id = %s AND checkpoint_ns = %s "
                        "AND channel = %s AND version = %s AND blob = %s",
                        (thread, namespace, found.channel, found.version, found.data),
                    ).fetchone()
                    assert there, "a head is not whole"
                for name in self.known(thread, namespace)[:3]:
                    self.both("lineage", thread, namespace, name, ["messages", "notes"])


def play(database: str, connection: psycopg.Connection, seed: int, acts: int) -> None:
    print(f"seed {seed}")
    with closing(PostgresBackend(database)) as packer:
        packer.setup()
        twins = Twins(packer, random.Random(seed))
        for n in range(acts):
            twins.act()
            if n % 10 == 9:
                twins.compare(connection)


@pytest.mark.parametrize("seed", range(3))
def test_random_histories(seed: int, database: str, shared_database: psycopg.Connection) -> None:
    play(database, shared_database, seed, 120)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 130))
def test_random_histories_long(
    seed: int, database: str, shared_database: psycopg.Connection
) -> None:
    play(database, shared_database, seed, 500)


def test_time_travel(packer: PostgresBackend) -> None:
    """A graph with a DeltaChannel: its history, an edit of old state, and a run from there."""
    saver = CheckpointSaver(packer, device="laptop")
    graph = chatter(saver)
    for n in range(12):
        graph.invoke({"said": [f"turn {n}"]}, place("t"))

    def history() -> list[Any]:
        return [
            (s.config, s.values, s.next, s.metadata) for s in graph.get_state_history(place("t"))
        ]

    before = history()
    packer.compact()
    assert history() == before
    old = next(each for each in before[20:] if each[2] == ())
    edited = graph.update_state(
        old[0], {"said": ["edited"], "quick": ["edited, too"]}, as_node="reply"
    )
    assert graph.get_state(edited).values["said"] == [*old[1]["said"], "edited"]
    assert graph.get_state(place("t")).values["quick"] == [*old[1]["quick"], "edited, too"]
    told = graph.invoke({"said": ["and on"]}, place("t"))
    assert told["said"][:-1] == [*old[1]["said"], "edited", "and on"]
    packer.compact()
    assert history()[-len(before) :] == before
    saver.close()
