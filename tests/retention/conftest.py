"""Stores of every kind that is cheap to have."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from charm_checkpoint.backend import Backend
from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.sqlite import LocalMemory, SqliteBackend
from charm_checkpoint.store import CheckpointStore, store_from_saver
from tests.replica.support import Device

MakeStore = Callable[..., CheckpointStore]

DAY = 86400


def later(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """Let the time be some days on, as far as retention sees it."""
    now = time.time() + days * DAY
    monkeypatch.setattr("charm_checkpoint.retention.time", SimpleNamespace(time=lambda: now))


def _over(backend: Backend, config: dict[str, Any]) -> CheckpointStore:
    store = store_from_saver(CheckpointSaver(backend), **config)
    assert isinstance(store, CheckpointStore)
    return store


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[MakeStore]:
    """Opens a store by its kind, with a config."""
    with ExitStack() as opened:

        def make(kind: str, **config: Any) -> CheckpointStore:
            if kind == "memory":
                store = _over(MemoryBackend(), config)
            elif kind == "sqlite":
                store = LocalMemory({"path": str(tmp_path / "threads.db"), **config})
            else:
                remote = SqliteBackend(tmp_path / "remote.db")
                store = Device("laptop", tmp_path / "laptop.db", remote, **config)
            opened.callback(store.close)
            return store

        yield make


@pytest.fixture
def store(make_store: MakeStore) -> CheckpointStore:
    """A SQLite store."""
    return make_store("sqlite")
