"""The contract kit over Postgres."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from charm_checkpoint.backend import Backend, PutWrites, WriteRow
from charm_checkpoint.testing import BackendContract
from charm_checkpoint.testing.rows import chain, pending, read, statuses, write
from charm_memory_postgres import PostgresBackend


class TestPostgres(BackendContract):
    @pytest.fixture
    def backend(self, database: str) -> Iterator[Backend]:
        self.url = database
        backend = PostgresBackend(database)
        yield backend
        backend.close()

    def test_fenced_writes(self, ready: Backend) -> None:
        """The rule is written in SQL here, not taken from `judge`."""

        def fenced(checkpoint_id: str, *rows: WriteRow) -> PutWrites:
            return pending(checkpoint_id, *rows)._replace(fenced=True)

        chain(ready, "1", "2")
        first, other = write(data=b"first"), write(data=b"other")
        again = [fenced("2", first), fenced("2", first), fenced("3", first)]
        assert statuses(ready.write(again)) == ["stored"] * 3
        clashes = ready.write([fenced("2", other), fenced("3", other), fenced("1", first)])
        assert [(c.status, c.head and c.head.checkpoint_id) for c in clashes] == [
            ("conflict", "2")
        ] * 3
        replaced = [fenced("2", write(idx=-1, data=data)) for data in (b"a", b"b")]
        assert statuses(ready.write(replaced)) == ["stored"] * 2
        assert [w.data for w in read(ready, "2").writes] == [b"b", b"first"]
        assert not read(ready, "1").writes

    def reopen(self, backend: Backend) -> Backend:
        return PostgresBackend(self.url)
