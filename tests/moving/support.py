"""Threads of every kind, and everything that a store holds of them."""

from __future__ import annotations

import json
import operator
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from langgraph.channels import DeltaChannel
from langgraph.graph import START, MessagesState, StateGraph
from typing_extensions import Self, TypedDict

from charm_checkpoint.backend import Backend, Entry, Scan, ThreadQuery
from charm_checkpoint.engine import Engine
from charm_checkpoint.moving.source import key_of
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.sqlite import SqliteBackend
from charm_checkpoint.testing.colours import Driver, Saver
from charm_checkpoint.testing.scenarios import SCENARIOS

ROOT = Path(__file__).parents[2]


class Deltas(TypedDict):
    log: Annotated[
        list[str], DeltaChannel(lambda old, new: [*old, *operator.concat([], *new)] if new else old)
    ]


def messages(saver: Saver) -> Any:
    """A chat whose answers are long enough to be stored as changes."""
    builder = StateGraph(MessagesState)
    builder.add_node(
        "answer", lambda state: {"messages": [("ai", f"{len(state['messages'])} " * 500)]}
    )
    builder.add_edge(START, "answer")
    return builder.compile(checkpointer=saver)


def at(thread: str) -> Any:
    """A config that names a thread."""
    return {"configurable": {"thread_id": thread}}


async def play_all(saver: Saver, only: Iterable[str] | None = None) -> list[str]:
    """One thread for each of the kit's scenarios, named after it; and a chat."""
    names = []
    for scenario in SCENARIOS:
        if only is not None and scenario.name not in only:
            continue
        driver = Driver(scenario.build(saver), "sync", "sync", scenario.name)
        await scenario.play(driver)
        names.append(scenario.name)
    graph = messages(saver)
    for n in range(3):
        graph.invoke({"messages": [("user", f"turn {n}")]}, at("messages"))
    return [*names, "messages"]


def entries(backend: Backend, thread: str | None = None) -> list[Entry]:
    """All checkpoints, or a thread's, newest first, read as one page after the other."""
    found: list[Entry] = []
    scan = Scan(thread_id=thread, limit=50)
    engine = Engine(backend)
    while True:
        page = engine.call(lambda backend, scan=scan: backend.scan(scan))
        found += page.entries
        if page.next is None:
            return found
        scan = scan._replace(after=page.next)


def held(backend: Backend, thread: str) -> Any:
    """All that a backend holds of a thread, but for when it says that the thread was made.

    Values and writes by their bytes; what is JSON as such, since Postgres gives its keys back in another order.
    """
    [row] = Engine(backend).call(lambda b: b.threads(ThreadQuery(1, thread_id=thread))) or [None]
    return (
        row and (row.thread_id, list(row.heads), row.updated_at, row.status, dict(row.labels)),
        {
            key_of(entry): (
                _row(entry),
                sorted(entry.snapshot.blobs),
                list(entry.snapshot.writes),
                list(entry.snapshot.sends),
                entry.snapshot.head,
            )
            for entry in entries(backend, thread)
        },
    )


def _row(entry: Entry) -> Any:
    row = entry.snapshot.checkpoint
    assert row is not None
    return (
        row._replace(versions={}, body=b"", metadata=b""),
        dict(row.versions),
        json.loads(row.body),
        json.loads(row.metadata),
    )


def names(backend: Backend) -> set[str]:
    """The threads that a backend lists."""
    return {row.thread_id for row in Engine(backend).call(lambda b: b.threads(ThreadQuery(10_000)))}


def saver_on(path: Path, device: str = "laptop") -> CheckpointSaver:
    return CheckpointSaver(SqliteBackend(path), device=device)


class Copiers:
    """A process that forks copying processes, which end themselves with SIGKILL when told to."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            # Newer Pythons warn of every fork of a process that has threads.
            [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "tests.moving.copier"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        )

    def copy(
        self, source: Sequence[str], target: Sequence[str], dies: tuple[int, str] | None = None
    ) -> Any:
        """Copy all threads in a fresh process.

        Args:
            source: What kind of store, and where.
            target: Likewise.
            dies: At which write to the target, and whether `"before"` or `"after"` it is made.

        Returns:
            The outcomes by thread; `None` if it was killed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([source, target, dies]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "it ended; see its stderr"
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait() == 0
