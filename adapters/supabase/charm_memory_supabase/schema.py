"""The migration: the Postgres store's tables and functions, who may see what, and what the REST interface can call."""

from __future__ import annotations

from importlib import resources

from charm_checkpoint.errors import ConfigError

__all__ = ["FUNCTIONS", "SCHEMA", "script"]

SCHEMA = "charm"
"""Where the tables are unless somebody says otherwise: not where PostgREST looks."""

FUNCTIONS = 3
"""Raised whenever a file in sql/ changes, there (`charm_rest_about_v1`) and here."""

_FILES = ("owners", "rest")
_EXPOSED = ("public", "graphql_public", "storage")


def script(schema: str = SCHEMA) -> str:
    """All statements, as a file of `supabase/migrations`: one by one or in a transaction; may be run again.

    Args:
        schema: Where the tables go; made if missing.

    Raises:
        ConfigError: The REST interface reaches the schema, or psycopg is missing.
    """
    if schema in _EXPOSED:
        raise ConfigError(
            f"schema={schema!r} is one that the REST interface reaches; the tables go into one of their own"
        )
    try:
        from charm_memory_postgres.schema import statements
    except ImportError as error:
        raise ConfigError(
            f'the migration needs psycopg ({error}): pip install "charm-memory-supabase[binary]"'
        ) from error
    files = resources.files("charm_memory_supabase") / "sql"
    own = [(files / f"{name}.sql").read_text(encoding="utf-8") for name in _FILES]
    return "\n".join(
        [
            "-- Written by `charm-checkpoint sql supabase`. May be run again; each release may have a newer one.",
            "SET client_encoding = 'UTF8';",
            "SET client_min_messages = warning;",  # not what was there already
            *statements(schema, local=False),
            *own,
            "RESET search_path;",
            "RESET client_min_messages;",
            "RESET client_encoding;",
            "NOTIFY pgrst, 'reload schema';\n",
        ]
    )
