"""What the tests of the core share: small threads, a small graph, backends that get in the way, other processes."""

from __future__ import annotations

import asyncio
import json
import operator
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, empty_checkpoint
from typing_extensions import Self, TypedDict

from charm_checkpoint.backend import Backend, Outcome, Unit
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.sqlite import SqliteBackend

ROOT = Path(__file__).parents[2]
WAIT = 60.0
"""Seconds after which an event that has to come will not: a test that fails, not a measurement."""


def place(thread_id: Any, checkpoint_id: Any = None, namespace: Any = "") -> RunnableConfig:
    """A config that names a thread, and a checkpoint if one is given."""
    configurable = {"thread_id": thread_id, "checkpoint_ns": namespace}
    if checkpoint_id is not None:
        configurable["checkpoint_id"] = checkpoint_id
    return {"configurable": configurable}


def checkpoint_of(**values: Any) -> tuple[Checkpoint, ChannelVersions]:
    """A fresh checkpoint whose channels hold `values`, and their versions."""
    checkpoint = empty_checkpoint()
    versions: ChannelVersions = {channel: f"1.{uuid4().hex}" for channel in values}
    checkpoint["channel_values"] = values
    checkpoint["channel_versions"] = dict(versions)
    return checkpoint, versions


def put(saver: CheckpointSaver, config: RunnableConfig, **values: Any) -> RunnableConfig:
    """Store a fresh checkpoint on the one that `config` names."""
    checkpoint, versions = checkpoint_of(**values)
    return saver.put(config, checkpoint, {"source": "loop", "step": 0}, versions)


async def aput(saver: CheckpointSaver, config: RunnableConfig, **values: Any) -> RunnableConfig:
    """Like `put`."""
    checkpoint, versions = checkpoint_of(**values)
    return await saver.aput(config, checkpoint, {"source": "loop", "step": 0}, versions)


def id_of(config: RunnableConfig) -> str:
    """The checkpoint id that a put answered."""
    found: str = config["configurable"]["checkpoint_id"]
    return found


def latest(saver: CheckpointSaver, thread_id: Any) -> dict[str, Any]:
    """The newest values of a thread."""
    found = saver.get_tuple(place(thread_id))
    assert found is not None, f"thread {thread_id!r} is empty"
    return found.checkpoint["channel_values"]


@contextmanager
def opened(target: Path | Backend, **options: Any) -> Iterator[CheckpointSaver]:
    """A saver on a file or a backend, closed at the end."""
    backend = SqliteBackend(target) if isinstance(target, Path) else target
    saver = CheckpointSaver(backend, **options)
    try:
        yield saver
    finally:
        saver.close()


class Chat(TypedDict):
    """A state whose list shows every turn that was not lost."""

    turns: Annotated[list[str], operator.add]


def chat_graph(saver: CheckpointSaver) -> Any:
    """A graph of two steps that adds to each turn an answer."""
    from langgraph.graph import END, START, StateGraph

    builder = StateGraph(Chat)
    builder.add_node("think", lambda state: {})
    builder.add_node("answer", lambda state: {"turns": [f"re {state['turns'][-1]}"]})
    builder.add_edge(START, "think")
    builder.add_edge("think", "answer")
    builder.add_edge("answer", END)
    return builder.compile(checkpointer=saver)


class Through:
    """Hands every verb on to a real backend. Subclasses get in the way of some."""

    def __init__(self, backend: Backend) -> None:
        self.inner = backend

    def __getattr__(self, verb: str) -> Any:
        return getattr(self.inner, verb)

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        return self.inner.write(units)


class Gate(Through):
    """Counts batches, and holds them up while it is shut."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self.batches: list[int] = []
        self.opened = threading.Event()
        self.entered = threading.Event()

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        self.batches.append(len(units))
        self.entered.set()
        assert self.opened.wait(WAIT)
        return super().write(units)


async def begun(*tasks: asyncio.Task[Any]) -> None:
    """Let fresh tasks run to where they wait."""
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


def in_flight(gate: Gate, saver: CheckpointSaver, pool: ThreadPoolExecutor) -> Future[Any]:
    """One write of a thread that the gate holds up."""
    first = pool.submit(put, saver, place("first"), n=0)
    assert gate.entered.wait(WAIT)
    return first


def command(module: str, *args: object) -> list[str]:
    """How a module of these tests is run in a Python process of its own."""
    # Newer Pythons warn of every fork of a process that has threads.
    quiet = ["-W", "ignore::DeprecationWarning"]
    return [sys.executable, *quiet, "-m", f"tests.core.{module}", *map(str, args)]


def environment() -> dict[str, str]:
    """What such a process needs to find these tests."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


def run(module: str, *args: object, timeout: float | None = None) -> str:
    """Run a module to its good end, which is a silent one. Returns what it printed."""
    done = subprocess.run(
        command(module, *args), env=environment(), capture_output=True, text=True, timeout=timeout
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


class Process:
    """A module of these tests in a Python process of its own, told and heard in JSON lines."""

    def __init__(self, module: str, *args: object, pass_fds: Sequence[int] = ()) -> None:
        self.process = subprocess.Popen(
            command(module, *args),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
            env=environment(),
        )

    def tell(self, *words: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended with {self.process.wait()}; see its stderr"
        return json.loads(line)

    def ask(self, *words: Any) -> Any:
        self.tell(*words)
        return self.hear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failed: object) -> None:
        if failed[0] is not None:
            self.process.kill()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        code = self.process.wait()
        assert failed[0] is not None or code == 0, f"it ended with {code}; see its stderr"


def say(answer: Any) -> None:
    """For such a process: answer with one line, written whole."""
    os.write(1, json.dumps(answer).encode() + b"\n")


def commands() -> Iterator[list[Any]]:
    """For such a process: what it is told, until its parent has had enough."""
    for line in sys.stdin:
        yield json.loads(line)
