"""The SQLite backend keeps the contract; so does the `local` provider as a store of messages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from charm_checkpoint.backend import Backend
from charm_checkpoint.sqlite import LocalMemory, SqliteBackend
from charm_checkpoint.store import BaseMemoryStore
from charm_checkpoint.testing import BackendContract, MessagesContract


class TestSqlite(BackendContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[SqliteBackend]:
        backend = SqliteBackend(tmp_path / "threads.db")
        yield backend
        backend.close()

    def reopen(self, backend: Backend) -> SqliteBackend:
        assert isinstance(backend, SqliteBackend)
        return SqliteBackend(backend.path)


class TestLocalMemory(MessagesContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[LocalMemory]:
        store = LocalMemory({"path": str(tmp_path / "threads.db")})
        yield store
        store.close()

    def reopen_store(self, store: BaseMemoryStore) -> LocalMemory:
        assert isinstance(store, LocalMemory)
        return LocalMemory(store.config)
