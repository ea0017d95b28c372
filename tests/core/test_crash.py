"""Runs killed with SIGKILL at random points: what was acknowledged is there, and nothing is there by half."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from langgraph.checkpoint.base import CheckpointTuple

from tests.core.crasher import THREAD, build, digest
from tests.core.support import Process, id_of, opened, place

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")

RUNS_PER_FILE = 10


class Told(NamedTuple):
    """What a run said of its steps before it was killed."""

    checkpoints: dict[str, str]
    """Id to the digest of its values."""
    writes: dict[tuple[str, str], str]
    """Checkpoint and task to the digest of its writes."""

    def note(self, kind: str, checkpoint_id: str, *rest: str) -> None:
        if kind == "checkpoint":
            self.checkpoints[checkpoint_id] = rest[0]
        else:
            self.writes[checkpoint_id, rest[0]] = rest[1]


class Killed(NamedTuple):
    begun: Told
    stored: Told


@pytest.fixture(scope="module")
def crasher() -> Iterator[Process]:
    with Process("crasher") as process:
        yield process


def kill(crasher: Process, path: Path, rng: random.Random) -> Killed:
    """Run turns on a file and kill them at a random point."""
    crasher.tell(str(path), rng.choice(["sync", "async", "exit"]))
    _, pid = crasher.hear()
    lines = rng.choice([0, 0, rng.randrange(12), rng.randrange(50)])
    heard: list[Any] = []
    while len(heard) < lines:
        heard.append(crasher.hear())
        assert heard[-1][0] != "ended", "it failed on its own; see its stderr"
    # Anywhere between two lines: a step takes about so long.
    time.sleep(rng.random() * 0.008)
    os.kill(pid, signal.SIGKILL)
    while (line := crasher.hear())[0] != "ended":
        heard.append(line)
    assert line[1] == -signal.SIGKILL
    killed = Killed(Told({}, {}), Told({}, {}))
    for when, *what in heard:
        getattr(killed, when).note(*what)
    return killed


def check(path: Path, killed: Killed) -> None:
    """Compare a file with what the last run on it said."""
    begun, stored = killed
    with opened(path) as saver:
        head = saver.get_tuple(place(THREAD))
        found = {
            id_of(t.config): t for t in saver.list(place(THREAD), limit=len(begun.checkpoints) + 1)
        }
    for checkpoint_id in stored.checkpoints:
        assert checkpoint_id in found, "it was acknowledged"
    for checkpoint_id, expected in begun.checkpoints.items():
        if checkpoint_id in found:
            assert digest(found[checkpoint_id].checkpoint["channel_values"]) == expected
    for (checkpoint_id, task_id), expected in stored.writes.items():
        if checkpoint_id not in found and checkpoint_id not in stored.checkpoints:
            continue  # They came before their checkpoint, which was still on its way.
        assert writes_of(found[checkpoint_id])[task_id] == expected, "they were acknowledged"
    for checkpoint_id, each in found.items():
        for task_id, those in writes_of(each).items():
            if checkpoint_id in begun.checkpoints:
                assert begun.writes[checkpoint_id, task_id] == those, "all of a task's or none"
    if stored.checkpoints:
        newest = max(stored.checkpoints)
        assert head is not None
        # One more may have been stored, and its answer lost with the process.
        assert newest in (id_of(head.config), head.parent_config and id_of(head.parent_config))


def writes_of(found: CheckpointTuple) -> dict[str, str]:
    """A digest of each task's writes."""
    by_task: defaultdict[str, list[Any]] = defaultdict(list)
    for task_id, channel, value in found.pending_writes or ():
        by_task[task_id].append([channel, value])
    return {task_id: digest(writes) for task_id, writes in by_task.items()}


def check_file(path: Path) -> None:
    """Check what no reader of the thread would see."""
    db = sqlite3.connect(path)
    try:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        lost = db.execute(
            "SELECT * FROM heads LEFT JOIN checkpoints c USING (thread_id, namespace, checkpoint_id) "
            "WHERE c.format IS NULL"
        )
        assert lost.fetchall() == [], "every head is there"
    finally:
        db.close()


@pytest.mark.parametrize("runs", [200, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_kill_loses_nothing_acknowledged(crasher: Process, tmp_path: Path, runs: int) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    acknowledged = 0
    for run in range(runs):
        # The first run on a file is also killed while it makes it; the later ones go on from the killed.
        path = tmp_path / f"{run // RUNS_PER_FILE}.db"
        killed = kill(crasher, path, rng)
        check(path, killed)
        acknowledged += len(killed.stored.checkpoints) + len(killed.stored.writes)
        if run % RUNS_PER_FILE == RUNS_PER_FILE - 1:
            check_file(path)
            with opened(path) as saver:
                turn = build(saver).invoke({"log": ["last"], "same": []}, place(THREAD))
            assert turn["log"][-1] == "summed up"
    assert acknowledged > runs, "most were killed while they worked"
