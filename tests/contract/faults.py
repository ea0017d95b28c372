"""What faulty backends and plugins are made from, and how the kit is run over them.

The faults are put around a sound backend, verb by verb, so that they say nothing about how it works inside.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest

from charm_checkpoint.backend import (
    Ancestor,
    HeadMark,
    MoveHead,
    Outcome,
    Page,
    Pulled,
    PutCheckpoint,
    PutWrites,
    Scan,
    Seen,
    Snapshot,
    ThreadQuery,
    ThreadRow,
    Unit,
)
from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.store import BaseMemoryStore
from charm_checkpoint.testing import BackendContract, MessagesContract

C = TypeVar("C", bound=type)

TESTS: dict[str, type] = {}
"""Test classes by name, one for each fault."""
CAUGHT_BY: dict[str, tuple[str, ...]] = {}
"""Name of the test class to the tests that have to fail."""


def caught_by(*tests: str) -> Callable[[C], C]:
    """Make a test class of a faulty backend or store."""

    def register(faulty: C) -> C:
        name = f"Test{faulty.__name__}"
        contract, subject = (
            (BackendContract, "backend")
            if issubclass(faulty, Sound)
            else (MessagesContract, "store")
        )

        @pytest.fixture
        def fixture(self: Any) -> Any:
            return faulty()

        TESTS[name] = type(name, (contract,), {subject: fixture})
        CAUGHT_BY[name] = tests
        return faulty

    return register


class Sound:
    """Passes every verb on."""

    name = "mutant"

    def __init__(self) -> None:
        self.inner = MemoryBackend()

    def setup(self) -> None:
        self.inner.setup()

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        return self.inner.write(units)

    def read(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Snapshot:
        return self.inner.read(thread_id, namespace, checkpoint_id)

    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        return self.inner.pull(thread_id, held)

    def scan(self, query: Scan) -> Page:
        return self.inner.scan(query)

    def lineage(
        self, thread_id: str, namespace: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> Sequence[Ancestor]:
        return self.inner.lineage(thread_id, namespace, checkpoint_id, channels)

    def threads(self, query: ThreadQuery) -> Sequence[ThreadRow]:
        return self.inner.threads(query)

    def delete(self, thread_id: str, *, at: float) -> bool:
        return self.inner.delete(thread_id, at=at)

    def delete_if(self, thread_id: str, seen: Seen, *, at: float) -> bool:
        return self.inner.delete_if(thread_id, seen, at=at)

    def copy(self, source: str, target: str, *, at: float) -> None:
        self.inner.copy(source, target, at=at)

    def prune(self, thread_id: str, drop: Sequence[tuple[str, str]]) -> int:
        return self.inner.prune(thread_id, drop)

    def close(self) -> None:
        self.inner.close()

    def entries(self, **query: Any) -> list[tuple[str, str, str]]:
        """`(thread_id, namespace, checkpoint_id)` of a scan, newest first."""
        page = self.inner.scan(Scan(limit=10_000, values=False, **query))
        return [
            (e.thread_id, e.namespace, e.snapshot.checkpoint.checkpoint_id)
            for e in page.entries
            if e.snapshot.checkpoint
        ]


class ChangesUnits(Sound):
    """Changes what is written."""

    def checkpoint(self, put: PutCheckpoint) -> PutCheckpoint:
        return put

    def pending(self, put: PutWrites) -> PutWrites:
        return put

    def move(self, move: MoveHead) -> MoveHead:
        return move

    def changed(self, unit: Unit) -> Unit:
        if isinstance(unit, PutCheckpoint):
            return self.checkpoint(unit)
        return self.pending(unit) if isinstance(unit, PutWrites) else self.move(unit)

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        return self.inner.write([self.changed(unit) for unit in units])


class ChangesSnapshots(Sound):
    """Changes what is read, wherever it is."""

    def snapshot(self, thread_id: str, namespace: str, snapshot: Snapshot) -> Snapshot:
        return snapshot

    def read(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Snapshot:
        found = super().read(thread_id, namespace, checkpoint_id)
        return self.snapshot(thread_id, namespace, found)


class SoundPlugin(BaseMemoryStore):
    """Keeps lists by thread."""

    def __init__(self) -> None:
        super().__init__({})
        self.kept: dict[str, str] = {}

    def load_messages(self, thread_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.kept.get(thread_id, "[]"))
        return found

    def save_messages(self, thread_id: str, messages: list[dict[str, Any]]) -> None:
        self.kept[thread_id] = json.dumps(messages)
