"""What `charm-checkpoint sql postgres` prints: psql takes it, and a role with rights on rows alone can work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg import sql

from charm_checkpoint.errors import BackendReadOnly, ConfigError
from charm_checkpoint.testing.colours import place
from charm_checkpoint.testing.scenarios import chat, turn
from charm_memory_postgres import PostgresMemory
from tests.postgres.conftest import in_database
from tests.postgres.server import installations

ODD = "of 'its' \"own\" $$ \\ 100% Ünï"


class Roles(NamedTuple):
    """Two roles of one database, neither a superuser; the URLs of both."""

    owner: str
    app: str
    app_name: str


@pytest.fixture
def roles(admin_url: str) -> Iterator[Roles]:
    """A database whose owner's functions are nobody else's, and a role that may do nothing there."""
    database, owner, app = (
        f"charm_script_{os.getpid()}{suffix}" for suffix in ("", "_o", " 'a\" ")
    )
    names = [sql.Identifier(name) for name in (database, owner, app)]
    with psycopg.connect(admin_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {1} LOGIN; CREATE ROLE {2} LOGIN").format(*names))
        admin.execute(sql.SQL("CREATE DATABASE {0} OWNER {1}").format(*names))
        url = in_database(admin_url, database)
        with psycopg.connect(url, autocommit=True) as inside:
            inside.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
        as_owner, as_app = (psycopg.conninfo.make_conninfo(url, user=r) for r in (owner, app))
        with psycopg.connect(as_owner, autocommit=True) as inside:
            inside.execute("ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC")
        yield Roles(as_owner, as_app, app)
        admin.execute(sql.SQL("DROP DATABASE {0} WITH (FORCE)").format(*names))
        admin.execute(sql.SQL("DROP ROLE {1}, {2}").format(*names))


def printed(*options: str) -> bytes:
    """What the command prints, where the output's encoding does not have every letter."""
    done = subprocess.run(
        [sys.executable, "-m", "charm_checkpoint.cli", "sql", "postgres", *options],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    return done.stdout


def feed(psql: Path, url: str, script: bytes) -> None:
    """Have psql run it, which warns of nothing."""
    done = subprocess.run(
        [psql, "--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", "-d", url],
        input=script,
        env={**os.environ, "PGCLIENTENCODING": "LATIN1"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.fixture(scope="session")
def psql() -> Path:
    places = [*installations().values(), *map(Path, os.get_exec_path())]
    found = next(filter(None, (shutil.which("psql", path=place) for place in places)), None)
    if found is None:
        pytest.skip("no psql: apt-get install postgresql-client")
    return Path(found)


@pytest.mark.parametrize("schema", ["public", ODD], ids=["public", "odd"])
def test_a_role_that_was_let_in(psql: Path, roles: Roles, schema: str) -> None:
    config: dict[str, Any] = {"url": roles.app, "schema": schema, "migrate": "check"}
    script = printed("--schema", schema)
    for _ in range(2):
        feed(psql, roles.owner, script)
        with PostgresMemory(config) as store, pytest.raises(BackendReadOnly, match="needs SELECT"):
            store.load_messages("thread")
    feed(psql, roles.owner, printed("--schema", schema, "--role", roles.app_name))
    for migrate in ("check", "auto"):
        with PostgresMemory({**config, "migrate": migrate, "pack_after": 1}) as store:
            saver = store.get_langgraph_checkpointer()
            assert chat(saver).invoke(turn("hi"), place())["items"] == ["hi", "said hi"]
            assert chat(saver).invoke(turn("again"), place())["items"][-1] == "said again"
            saver.copy_thread("thread", "copy")
            saver.prune(["copy"])
            assert {info.thread_id for info in store.threads()} == {"thread", "copy"}
            chat(saver).invoke(turn("long " * 1000), place())
            chat(saver).invoke(turn("longer"), place())
            done = store.compact()
            assert done.after < done.before
            assert len(list(saver.list(place()))) == 16
            store.delete("copy")
            store.delete("thread")
    with psycopg.connect(roles.app, autocommit=True) as inside:
        for statement in ("CREATE TABLE {}.t ()", "TRUNCATE {}.checkpoints"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                inside.execute(sql.SQL(statement).format(sql.Identifier(schema)))


@pytest.mark.parametrize("option", ["schema", "role"])
@pytest.mark.parametrize("name", ["", "x" * 64, "a\x00b", "\ud800"])
def test_names_that_cannot_be(option: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"is no name of a {option}"):
        PostgresMemory.script(**{option: name})
