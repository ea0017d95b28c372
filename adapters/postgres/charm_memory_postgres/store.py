"""The store that the provider names `postgres` and `postgresql` open."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from charm_checkpoint.config import number
from charm_checkpoint.errors import ConfigError
from charm_checkpoint.store import CheckpointStore
from charm_memory_postgres.backend import PostgresBackend
from charm_memory_postgres.packing import PACK_AFTER
from charm_memory_postgres.schema import MIGRATE, script

if TYPE_CHECKING:
    from charm_checkpoint.moving import Source

__all__ = ["PostgresMemory"]


class PostgresMemory(CheckpointStore):
    """Threads in a Postgres database.

    Args:
        config: `url`: where the database is, as libpq takes it. `schema`: where in it the tables are (`public`).
            `pool_size`: connections at most (10). `timeout`: seconds to wait for the server to take a connection, or
            for one of those there are (10). `answer_timeout`: seconds without a byte from the server after which it is
            taken to hang (60). `migrate`: `"auto"` makes and upgrades the tables, `"check"` never alters anything.
            `pack_after`: how many of each namespace's newest checkpoints `compact` leaves whole (20).
            And what every `CheckpointStore` takes.

    Raises:
        ConfigError: The configuration is not valid. Nothing is connected to yet.
    """

    options = frozenset(
        {"url", "schema", "pool_size", "timeout", "answer_timeout", "migrate", "pack_after"}
    )

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
        return PostgresBackend(
            url,
            schema=_name("schema", config.get("schema", "public")),
            pool_size=int(number(config, "pool_size", 10, least=1)),
            timeout=number(config, "timeout", 10.0, least=0.1),
            answer_timeout=number(config, "answer_timeout", 60.0, least=0.1),
            migrate=migrate,
            pack_after=int(number(config, "pack_after", PACK_AFTER, least=1)),
        )

    def source(self) -> Source:
        """What copies read threads from: where only LangGraph's PostgresSaver was, its tables are read as they are."""
        backend = self.get_langgraph_checkpointer().engine.backend
        assert isinstance(backend, PostgresBackend)
        return backend.official() or super().source()

    @staticmethod
    def script(*, schema: str = "public", role: str | None = None) -> str:
        """Return the SQL that makes the tables, for whoever may: what `charm-checkpoint sql postgres` prints.

        Args:
            schema: Where the tables go; made if missing.
            role: Gets the rights that a store with `migrate="check"` needs, and no more.

        Raises:
            ConfigError: No schema or role can have such a name.
        """
        return script(_name("schema", schema), None if role is None else _name("role", role))


def _name(key: str, value: object) -> str:
    if isinstance(value, str) and "\x00" not in value:
        with suppress(UnicodeEncodeError):
            if 0 < len(value.encode()) < 64:
                return value
    raise ConfigError(f"{key}={value!r} is no name of a {key}")
