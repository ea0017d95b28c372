"""The store that the provider names `postgres` and `postgresql` open."""

from __future__ import annotations

from typing import Any

from charm_checkpoint.errors import ConfigError
from charm_checkpoint.store import CheckpointStore
from charm_memory_postgres.backend import PostgresBackend
from charm_memory_postgres.schema import MIGRATE

__all__ = ["PostgresMemory"]


class PostgresMemory(CheckpointStore):
    """Threads in a Postgres database.

    Args:
        config: `url`: where the database is, as libpq takes it. `schema`: where in it the tables are (`public`).
            `pool_size`: connections at most (10). `timeout`: seconds to wait for the server, or for one of the
            connections (10). `migrate`: `"auto"` makes and upgrades the tables, `"check"` never alters anything.
            And what every `CheckpointStore` takes.

    Raises:
        ConfigError: The configuration is not valid. Nothing is connected to yet.
    """

    options = frozenset({"url", "schema", "pool_size", "timeout", "migrate"})

    def open_backend(self) -> PostgresBackend:
        config = self.config
        url = config.get("url")
        if not isinstance(url, str) or not url.strip():
            raise ConfigError(
                "the postgres provider needs a url, such as postgresql://user@host:5432/database; in charm.yaml write "
                'config: {url: "${DATABASE_URL}"}'
            )
        migrate = config.get("migrate", "auto")
        if migrate not in MIGRATE:
            raise ConfigError(f"migrate={migrate!r} is not one of {', '.join(MIGRATE)}")
        schema = config.get("schema", "public")
        if not isinstance(schema, str) or not 0 < len(schema.encode()) < 64 or "\x00" in schema:
            raise ConfigError(f"schema={schema!r} is no name of a schema")
        return PostgresBackend(
            url,
            schema=schema,
            pool_size=int(_number(config, "pool_size", 10, least=1)),
            timeout=_number(config, "timeout", 10.0, least=0.1),
            migrate=migrate,
        )


def _number(config: dict[str, Any], key: str, default: float, *, least: float) -> float:
    """A number of the config; `${VAR}` makes texts of them."""
    value = config.get(key, default)
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not least <= number < float("inf"):
        raise ConfigError(f"{key}={value!r} is not a number from {least} on")
    return number
