"""How the tables come into being, and who may do what with them."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.postgres import PostgresSaver
from psycopg.rows import dict_row

from charm_checkpoint import open_store
from charm_checkpoint.backend import ThreadQuery
from charm_checkpoint.errors import (
    BackendCorrupt,
    BackendReadOnly,
    ConfigError,
    ThreadExistsError,
)
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.testing.colours import place
from charm_checkpoint.testing.rows import chain, head, ids, put, store
from charm_checkpoint.testing.scenarios import chat, turn
from charm_memory_postgres import PostgresBackend, PostgresMemory
from charm_memory_postgres.schema import VERSION, script
from tests.postgres.children import in_children
from tests.postgres.conftest import in_database


def objects(url: str) -> list[Any]:
    """Everything that was made in a database, with its definition."""
    with psycopg.connect(url) as connection:
        return connection.execute(
            """
            SELECT 'column', table_schema, table_name, column_name, data_type, collation_name, is_nullable
            FROM information_schema.columns WHERE table_schema NOT IN ('pg_catalog', 'information_schema')
            UNION ALL SELECT 'index', schemaname, tablename, indexname, indexdef, '', '' FROM pg_indexes
            WHERE schemaname NOT IN ('pg_catalog', 'information_schema')
            UNION ALL SELECT 'function', n.nspname, p.proname, pg_get_functiondef(p.oid), '', '', ''
            FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
            WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')
            UNION ALL SELECT 'trigger', '', tgname, pg_get_triggerdef(oid), '', '', '' FROM pg_trigger
            WHERE NOT tgisinternal
            ORDER BY 1, 2, 3, 4
            """
        ).fetchall()


def test_sixteen_processes_at_once(empty_database: str) -> None:
    def run() -> None:
        backend = PostgresBackend(empty_database)
        backend.setup()
        store(backend, put("1", thread=str(os.getpid())))
        backend.close()

    in_children(*[run] * 16)
    backend = PostgresBackend(empty_database)
    assert len(backend.threads(ThreadQuery(limit=100))) == 16
    backend.close()


def test_beside_the_official_savers_set_up(empty_database: str) -> None:
    """Which takes no lock, and may fail; this one may not."""

    def official(_: int) -> None:
        with (
            psycopg.connect(empty_database, autocommit=True, row_factory=dict_row) as connection,
        ):
            try:
                PostgresSaver(connection).setup()
            except psycopg.Error:
                return

    def ours(_: int) -> None:
        backend = PostgresBackend(empty_database)
        backend.setup()
        backend.close()

    with ThreadPoolExecutor(8) as pool:
        racing = [pool.submit(f, n) for n in range(4) for f in (official, ours)]
        for each in racing:
            each.result()
    backend = PostgresBackend(empty_database)
    store(backend, put("1"))
    assert head(backend) == "1"
    backend.close()


def test_the_script_makes_what_setup_makes(empty_database: str, database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        for _ in range(2):
            connection.execute(script().encode())
    assert objects(empty_database) == objects(database)
    backend = PostgresBackend(empty_database, migrate="check")
    backend.setup()
    store(backend, put("1"))
    backend.close()


def test_checking_makes_nothing(empty_database: str) -> None:
    backend = PostgresBackend(empty_database, migrate="check")
    with pytest.raises(BackendReadOnly, match="`charm-checkpoint sql postgres`"):
        backend.setup()
    assert objects(empty_database) == []
    backend.close()


@pytest.mark.parametrize("harm", ["DROP FUNCTION charm_write_v1", "DROP TABLE charm_heads CASCADE"])
def test_an_older_release_s_tables_are_upgraded(empty_database: str, harm: str) -> None:
    backend = PostgresBackend(empty_database)
    backend.setup()
    chain(backend, "1", "2")
    newest = objects(empty_database)
    with psycopg.connect(empty_database, autocommit=True) as owner:
        owner.execute(harm.encode())
        owner.execute("UPDATE charm_migrations SET v = %s", (VERSION - 1,))
    checking = PostgresBackend(empty_database, migrate="check")
    with pytest.raises(BackendReadOnly, match="has not the tables and functions of this release"):
        checking.setup()
    checking.close()
    backend.setup()
    assert objects(empty_database) == newest
    store(backend, put("3", "2", fenced=True))
    assert ids(backend) == ["3", "2", "1"]
    backend.close()


def test_a_set_up_that_fails_leaves_nothing(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("CREATE TABLE charm_threads (of_another_program text)")
    before = objects(empty_database)
    backend = PostgresBackend(empty_database)
    with pytest.raises(BackendCorrupt):
        backend.setup()
    assert objects(empty_database) == before
    backend.close()


@pytest.mark.parametrize("schema", ["elsewhere", 'of "its" own, 100%', "Ünï $$"])
def test_a_schema_of_its_own(empty_database: str, schema: str) -> None:
    backends = [PostgresBackend(empty_database, schema=s) for s in (schema, "public")]
    for backend in backends:
        backend.setup()
        assert head(backend) is None
        store(backend, put(backend.name))
    assert [head(backend) for backend in backends] == [backend.name for backend in backends]
    assert {row[1] for row in objects(empty_database) if row[1]} == {schema, "public"}
    for backend in backends:
        assert backend.delete("thread", at=1.0)
        assert backend.threads(ThreadQuery(limit=9)) == []
        backend.close()


def test_the_search_path_does_not_matter(empty_database: str) -> None:
    backend = PostgresBackend(f"{empty_database} options='-c search_path=nowhere'")
    backend.setup()
    chain(backend, "1", "2")
    assert backend.prune("thread", [("", "1")]) == 1
    backend.close()


@pytest.fixture
def role(admin_url: str, empty_database: str) -> Any:
    """Makes roles with rights on the tables; answers their URL."""
    made = []
    backend = PostgresBackend(empty_database)
    backend.setup()
    backend.close()
    with psycopg.connect(empty_database, autocommit=True) as owner:

        def make(rights: str) -> str:
            name = f"charm_role_{len(made)}"
            owner.execute(f"CREATE ROLE {name} LOGIN")
            made.append(name)
            owner.execute(f"GRANT {rights} ON ALL TABLES IN SCHEMA public TO {name}")
            return psycopg.conninfo.make_conninfo(empty_database, user=name)

        yield make
        for name in made:
            owner.execute(f"DROP OWNED BY {name}")
            owner.execute(f"DROP ROLE {name}")


@pytest.mark.parametrize("migrate", ["auto", "check"])
def test_a_role_that_may_only_change_rows(role: Any, migrate: str) -> None:
    backend = PostgresBackend(role("SELECT, INSERT, UPDATE, DELETE"), migrate=migrate)
    saver = CheckpointSaver(backend)
    chat(saver).invoke(turn("hi"), place())
    saver.copy_thread("thread", "copy")
    saver.prune(["thread"])
    saver.delete_thread("copy")
    assert chat(saver).invoke(turn("again"), place())["items"][-1] == "said again"
    with pytest.raises(ThreadExistsError):
        saver.copy_thread("thread", "thread")
    saver.close()


def test_a_role_that_may_not_make_the_tables(role: Any) -> None:
    backend = PostgresBackend(role("SELECT"), schema="another")
    with pytest.raises(
        BackendReadOnly, match=r"may not make .*`charm-checkpoint sql postgres --schema another`"
    ):
        backend.setup()
    backend.close()


def test_a_role_that_may_only_read(role: Any, empty_database: str) -> None:
    owner = PostgresBackend(empty_database)
    store(owner, put("1"))
    owner.close()
    reader = PostgresBackend(role("SELECT"))
    reader.setup()
    assert head(reader) == "1"
    with pytest.raises(BackendReadOnly, match="needs SELECT, INSERT"):
        reader.write([put("2", "1")])
    reader.close()


def test_a_database_that_is_not_in_utf8(admin_url: str) -> None:
    name = f"charm_latin_{os.getpid()}"
    with psycopg.connect(admin_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
        url = in_database(admin_url, name)
        backend = PostgresBackend(url)
        with pytest.raises(BackendCorrupt, match="LATIN1"):
            backend.setup()
        backend.close()
        assert objects(url) == []
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_tables_of_a_newer_release_serve_this_one(empty_database: str) -> None:
    """As long as it keeps the functions of this version."""
    backend = PostgresBackend(empty_database)
    backend.setup()
    with psycopg.connect(empty_database, autocommit=True) as owner:
        owner.execute("INSERT INTO charm_migrations VALUES (%s)", (VERSION + 1,))
        before = objects(empty_database)
        backend.setup()
        store(backend, put("1"))
        assert objects(empty_database) == before
        owner.execute("DROP FUNCTION charm_write_v1")
        with pytest.raises(BackendCorrupt, match="another release"):
            backend.write([put("2", "1")])
    backend.close()


# -- the configuration -------------------------------------------------------------------------------------------------


def test_the_store_of_a_url(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = psycopg.conninfo.conninfo_to_dict(database)
    url = "postgresql://{user}@{host}:{port}/{dbname}".format(**given)
    with PostgresMemory({"url": url, "pool_size": "2", "timeout": "5"}) as memory:
        memory.save_messages("thread", [{"role": "user", "content": "hi"}])
        assert [info.thread_id for info in memory.threads()] == ["thread"]
    with open_store(url) as memory:
        assert isinstance(memory, PostgresMemory)
        assert [m["content"] for m in memory.load_messages("thread")] == ["hi"]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "needs a url"),
        ({"url": " "}, "needs a url"),
        ({"url": "postgresql://u:s3cret@h/d?colour=red"}, "colour"),
        ({"url": "postgresql://u:s3cret@[::1/d"}, "not valid"),
        ({"url": "postgresql://h/d", "migrate": "never"}, "migrate='never'"),
        ({"url": "postgresql://h/d", "schema": ""}, "schema=''"),
        ({"url": "postgresql://h/d", "schema": "x" * 64}, "schema="),
        ({"url": "postgresql://h/d", "pool_size": 0}, "pool_size=0"),
        ({"url": "postgresql://h/d", "timeout": "soon"}, "timeout='soon'"),
        ({"url": "postgresql://h/d", "timeout": True}, "timeout=True"),
        ({"url": "postgresql://h/d", "retry_timeout": "soon"}, "retry_timeout='soon'"),
        ({"url": "postgresql://h/d", "retry_timeout": -1}, "retry_timeout=-1"),
        ({"url": "postgresql://h/d", "poolsize": 3}, "poolsize"),
    ],
)
def test_a_config_that_is_not_valid(config: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        PostgresMemory(config)
    assert "s3cret" not in str(refused.value)


def test_looking_at_what_is_installed_imports_no_driver() -> None:
    code = "import sys, charm_memory_postgres; sys.exit('psycopg' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_name_tells_no_password() -> None:
    backend = PostgresBackend("postgresql://u:s3cret@h:5433/d?sslmode=disable", schema="s")
    assert backend.name == "postgresql://h:5433/d (s)"
