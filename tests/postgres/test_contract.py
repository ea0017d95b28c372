"""The contract kit over Postgres."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from charm_checkpoint.backend import Backend
from charm_checkpoint.testing import BackendContract
from charm_memory_postgres import PostgresBackend


class TestPostgres(BackendContract):
    @pytest.fixture
    def backend(self, database: str) -> Iterator[Backend]:
        self.url = database
        backend = PostgresBackend(database)
        yield backend
        backend.close()

    def reopen(self, backend: Backend) -> Backend:
        return PostgresBackend(self.url)
