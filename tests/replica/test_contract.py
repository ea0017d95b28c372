"""A replica keeps the contract, for every backend behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from charm_checkpoint.backend import Backend
from charm_checkpoint.replica import ReplicaBackend
from charm_checkpoint.sqlite import SqliteBackend
from charm_checkpoint.testing import BackendContract


class TestReplicaOfSqlite(BackendContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[ReplicaBackend]:
        self.folder = tmp_path
        backend = ReplicaBackend(tmp_path / "replica.db", self.remote())
        yield backend
        backend.close()

    def remote(self) -> Backend:
        return SqliteBackend(self.folder / "remote.db")

    def reopen(self, backend: Backend) -> Backend:
        """Another process of the same device."""
        return ReplicaBackend(self.folder / "replica.db", self.remote())
