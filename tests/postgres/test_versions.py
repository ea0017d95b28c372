"""An older Postgres, in a database whose order of text is a language's and not that of bytes."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from charm_checkpoint.backend import Backend
from charm_checkpoint.testing import (
    BackendContract,
    IdContract,
    ListingContract,
    PullContract,
    ReadContract,
    SyncContract,
    ThreadContract,
    WriteContract,
)
from charm_memory_postgres import PostgresBackend, backend, bases, steps
from tests.postgres.conftest import database_with_tables, empty, in_database
from tests.postgres.server import Server
from tests.postgres.test_packed_histories import play


@pytest.fixture(scope="module")
def english_database(older_server: Server) -> Iterator[psycopg.Connection]:
    options = "TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'"
    with database_with_tables(older_server.url(), options) as connection:
        yield connection


def test_its_order_of_text_is_not_that_of_bytes(english_database: psycopg.Connection) -> None:
    assert english_database.execute("SELECT 'a' < 'B'").fetchone() == (True,)


def test_packing(older_server: Server, english_database: psycopg.Connection) -> None:
    empty(english_database)
    url = in_database(older_server.url(), english_database.info.dbname)
    play(url, english_database, seed=3, acts=60)


class Older:
    @pytest.fixture
    def backend(
        self,
        older_server: Server,
        english_database: psycopg.Connection,
        monkeypatch: pytest.MonkeyPatch,
    ) -> Iterator[Backend]:
        empty(english_database)
        # What is done for a server that is far away, too.
        monkeypatch.setattr(backend, "_FAR", 0.0)
        monkeypatch.setattr(steps, "_MIN_BYTES", 1)
        monkeypatch.setattr(bases, "_MIN_BYTES", 1)
        self.url = in_database(older_server.url(), english_database.info.dbname)
        opened = PostgresBackend(self.url)
        yield opened
        opened.close()

    def reopen(self, backend: Backend) -> Backend:
        return PostgresBackend(self.url)


# What the server's functions do. The rest is what the saver makes of it, on any server.
_ROWS = (
    WriteContract,
    ReadContract,
    ListingContract,
    ThreadContract,
    PullContract,
    SyncContract,
    IdContract,
)


class TestOlderPostgres(Older, *_ROWS):
    """The part of the contract kit that a server's version can change."""


@pytest.mark.slow
class TestOlderPostgresAboveRows(
    Older, *(part for part in BackendContract.__bases__ if part not in _ROWS)
):
    """The rest of the kit."""
