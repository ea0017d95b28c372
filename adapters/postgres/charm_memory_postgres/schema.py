"""The tables and functions: how they are made, checked, and told to whoever may make them."""

from __future__ import annotations

import shlex
from importlib import resources
from typing import Any

import psycopg
from psycopg import errors, sql

from charm_checkpoint.errors import BackendCorrupt, BackendReadOnly
from charm_memory_postgres.connections import Connections
from charm_memory_postgres.wire import VERSION

__all__ = ["MIGRATE", "VERSION", "has_tables", "prepare", "script", "statements"]

MIGRATE = ("auto", "check")

_FILES = ("tables", "packing", "listing", "foreign", "write", "read", "threads", "rights")
# LangGraph's migration that added the last column used here.
_LANGGRAPH_VERSION = 9
_LOCK = 0x4368726D  # "Chrm"
_ATTEMPTS = 5
# An older release's functions would not see what a newer one put elsewhere.
_REFUSAL = f"""
DECLARE
    found integer;
BEGIN
    IF to_regclass('charm_migrations') IS NOT NULL THEN
        SELECT max(v) INTO found FROM charm_migrations;
        IF found > {VERSION} THEN
            RAISE EXCEPTION 'the tables are of a newer release (version %, not {VERSION}); nothing was changed', found
            USING ERRCODE = 'CH003', HINT = 'Run the newer release''s script, or none.';
        END IF;
    END IF;
END
"""  # noqa: S608 - a number

# Another program's set-up (PostgresSaver.setup) made the same thing at the same time.
_RACES = (
    errors.DuplicateTable,
    errors.DuplicateObject,
    errors.DuplicateFunction,
    errors.DuplicateSchema,
    errors.DuplicateColumn,
    errors.UniqueViolation,
    errors.DeadlockDetected,
)


def prepare(connections: Connections, schema: str, migrate: str) -> None:
    """Make what is missing, or for `"check"` tell that it is.

    Raises:
        BackendReadOnly: Something is missing and may not be made.
        BackendCorrupt: The tables are another program's, or the database is not in UTF-8.
    """
    with connections.lend() as connection:
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise BackendCorrupt(
                f"{connections.name} is in {encoding}; threads hold any text, so it has to be in UTF8"
            )
        if _is_ready(connection, schema):
            return
        named = "" if schema == "public" else f" --schema {shlex.quote(schema)}"
        hint = f"have its owner run what `charm-checkpoint sql postgres{named}` prints"
        if migrate == "check":
            raise BackendReadOnly(
                f"{connections.name} has not the tables and functions of this release; {hint}"
            )
    with connections.lend(patient=True) as connection:
        for attempt in range(_ATTEMPTS):
            try:
                _migrate(connection, connections.name, schema)
            except _RACES:
                if attempt == _ATTEMPTS - 1:
                    raise
            except errors.InsufficientPrivilege as error:
                raise BackendReadOnly(
                    f"{connections.name}: this role may not make the tables ({error.diag.message_primary}); {hint}"
                ) from error
            else:
                return


def has_tables(connection: psycopg.Connection[Any], schema: str) -> bool:
    """Whether there are tables of threads, this project's or LangGraph's."""
    query = """
        SELECT EXISTS (
            SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = %s AND c.relname IN ('charm_migrations', 'checkpoint_migrations')
        )
    """
    [found] = connection.execute(query, [schema]).fetchone() or (False,)
    return bool(found)


def script(schema: str = "public", role: str | None = None) -> str:
    """All statements, for `psql`, as UTF-8: in one transaction; may be run again.

    Args:
        schema: Where the tables go; made if missing.
        role: Gets the right to use them.
    """
    lines = [
        "BEGIN;",
        "SET LOCAL client_encoding = 'UTF8';",
        "SET LOCAL client_min_messages = warning;",  # not what was there already
        f"DO 'BEGIN PERFORM pg_advisory_xact_lock({_LOCK}); END';",  # a SELECT would print a row
        *statements(schema),
    ]
    if role is not None:
        lines.append(_grants(schema, role))
    return "\n".join([*lines, "COMMIT;\n"])


def _is_ready(connection: psycopg.Connection[Any], schema: str) -> bool:
    query = sql.SQL("SELECT (SELECT max(v) FROM {}), (SELECT max(v) FROM {})").format(
        sql.Identifier(schema, "charm_migrations"), sql.Identifier(schema, "checkpoint_migrations")
    )
    try:
        row = connection.execute(query).fetchone()
    except (errors.UndefinedTable, errors.InvalidSchemaName):
        return False
    assert row is not None
    ours, langgraphs = row
    return (ours or 0) >= VERSION and (langgraphs or 0) >= _LANGGRAPH_VERSION


def _migrate(connection: psycopg.Connection[Any], name: str, schema: str) -> None:
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        # Asked in a way that fails in no case, as a failure would end the transaction.
        columns = connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = %s "
            "AND table_name IN ('checkpoints', 'charm_migrations', 'checkpoint_migrations')",
            (schema,),
        ).fetchall()
        tables = {table for table, _ in columns}
        if "checkpoints" in tables and ("checkpoints", "checkpoint_id") not in columns:
            raise BackendCorrupt(
                f"{name}, schema {schema!r}: the table checkpoints is another program's (ShallowPostgresSaver's?); it "
                'was left as it is. Give this store a schema of its own: schema="…"'
            )
        if {"charm_migrations", "checkpoint_migrations"} <= tables and _is_ready(
            connection, schema
        ):
            return
        connection.execute("\n".join(statements(schema)).encode())


def statements(schema: str, *, local: bool = True) -> list[str]:
    """What makes the tables and functions, or upgrades them; sets the search_path.

    Args:
        schema: Where they go; made if missing.
        local: Whether the search_path ends with the transaction, which there has to be.

    Over the tables of a newer release they fail, with SQLSTATE CH003, and alter nothing.
    """
    from langgraph.checkpoint.postgres.base import MIGRATIONS

    quoted = sql.Identifier(schema).as_string()
    # Not CREATE … IF NOT EXISTS, which wants the right to create even where nothing has to be.
    make = f"BEGIN IF to_regnamespace({_literal(quoted)}) IS NULL THEN CREATE SCHEMA {quoted}; END IF; END"
    lines = [
        f"DO {_literal(make)};",
        # Functions take their search_path from here, for good.
        f"SET {'LOCAL ' if local else ''}search_path = {quoted}, pg_temp;",
        f"DO {_literal(_REFUSAL)};",
    ]
    for version, migration in enumerate(MIGRATIONS):
        # In a transaction nothing is made concurrently.
        statement = migration.strip().rstrip(";").replace(" CONCURRENTLY", "")
        if statement != "SELECT 1":  # stands for one that was taken back, and would print a row
            lines.append(f"{statement};")
        lines.append(
            f"INSERT INTO checkpoint_migrations VALUES ({version}) ON CONFLICT DO NOTHING;"  # noqa: S608
        )
    files = resources.files("charm_memory_postgres") / "sql"
    lines += [(files / f"{name}.sql").read_text(encoding="utf-8") for name in _FILES]
    lines[-1] = lines[-1].replace(":version", str(VERSION))
    lines.append(f"INSERT INTO charm_migrations VALUES ({VERSION}) ON CONFLICT DO NOTHING;")  # noqa: S608
    return lines


def _grants(schema: str, role: str) -> str:
    """Rights for a store with `migrate="check"`. Names without a schema mean the script's."""
    place, who = sql.Identifier(schema).as_string(), sql.Identifier(role).as_string()
    # Not all functions there, since others may be another program's.
    functions = f"""
DECLARE f regprocedure;
BEGIN
    FOR f IN SELECT oid FROM pg_proc
        WHERE pronamespace = {_literal(place)}::regnamespace AND starts_with(proname, 'charm_')
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', f, {_literal(who)});
    END LOOP;
END
"""  # noqa: S608 - the names are quoted
    return f"""\
GRANT USAGE ON SCHEMA {place} TO {who};
GRANT SELECT ON checkpoint_migrations, charm_migrations TO {who};
GRANT SELECT, INSERT, UPDATE, DELETE ON checkpoints, checkpoint_blobs, checkpoint_writes,
    charm_checkpoints, charm_heads, charm_threads, charm_labels, charm_packed TO {who};
DO {_literal(functions)};"""


def _literal(text: str) -> str:
    return sql.Literal(text).as_string().strip()
