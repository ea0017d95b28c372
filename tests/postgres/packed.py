"""Threads to pack, and what is packed of them."""

from __future__ import annotations

import random
from typing import Annotated, Any

import psycopg
from langgraph.channels import DeltaChannel
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from charm_checkpoint.backend import Unit
from charm_checkpoint.testing.rows import (
    THREAD,
    blob,
    put,
    store,
)
from charm_memory_postgres import PostgresBackend
from tests.retention.agents import append, extend


def version(n: int) -> str:
    return f"{n:032}.0.{n * 7919 % 1000}"


class Talk:
    """A thread whose "messages" grow by some random bytes with each checkpoint."""

    def __init__(self, thread: str = THREAD, namespace: str = "", seed: int = 1) -> None:
        self.place = {"thread": thread, "namespace": namespace}
        self.rng = random.Random(seed)
        self.values: dict[str, bytes] = {}
        self.n = 0

    def step(self, parent: str | None = None, size: int = 2000, **options: Any) -> Unit:
        """A checkpoint that grew from `parent`, or the last one."""
        if parent is None and self.n:
            parent = f"{self.n:04}"
        self.n += 1
        name = f"{self.n:04}"
        self.values[name] = self.values.get(parent or "", b"") + self.rng.randbytes(size)
        messages = blob("messages", version(self.n), self.values[name])
        return put(name, parent, messages, **self.place, **options)

    def go_on(self, backend: PostgresBackend, steps: int) -> None:
        for _ in range(steps):
            store(backend, self.step())


def packed_rows(connection: psycopg.Connection, table: str = "charm_packed") -> int:
    found = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert found is not None
    return int(found[0])


def whole(connection: psycopg.Connection) -> set[str]:
    """The versions of "messages" that other savers find."""
    found = connection.execute("SELECT version FROM checkpoint_blobs WHERE channel = 'messages'")
    return {version for (version,) in found}


class State(TypedDict):
    said: Annotated[list[str], append]
    quick: Annotated[list[str], DeltaChannel(extend, snapshot_frequency=4)]


def chatter(saver: Any) -> Any:
    """A graph whose answers are long, with a DeltaChannel."""
    builder = StateGraph(State)
    builder.add_node("hear", lambda state: {"quick": [state["said"][-1] + "q" * 300]})
    builder.add_node("reply", lambda state: {"said": [f"re {state['said'][-1]} " + "x" * 400]})
    return builder.add_edge(START, "hear").add_edge("hear", "reply").compile(checkpointer=saver)
