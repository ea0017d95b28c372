"""A project's database over a Postgres connection: for servers that can hold one."""

from __future__ import annotations

from psycopg import sql

from charm_checkpoint.errors import BackendReadOnly
from charm_memory_postgres.backend import PostgresBackend
from charm_memory_supabase.errors import TO_RUN

__all__ = ["DirectBackend"]


class DirectBackend(PostgresBackend):
    """The Postgres store on the tables of the migration. Alters nothing: who sees what is the migration's."""

    def __init__(
        self, url: str, *, schema: str, pool_size: int, timeout: float, pack_after: int
    ) -> None:
        super().__init__(
            url,
            schema=schema,
            pool_size=pool_size,
            timeout=timeout,
            migrate="check",
            pack_after=pack_after,
        )

    def setup(self) -> None:
        """Check that the migration is there, and that this role is not one that row level security hides it from."""
        table = sql.Identifier(self._schema, "charm_threads").as_string()
        with self._connections.lend() as connection:
            row = connection.execute(
                "SELECT current_user WHERE row_security_active(to_regclass(%s))", (table,)
            ).fetchone()
        if row:
            raise BackendReadOnly(
                f"{self.name}: the role {row[0]!r} would find no thread, whatever is there, since row level security "
                "applies to it. Connect as the owner of the tables (postgres), give the role BYPASSRLS, or go over "
                "HTTPS with a user's access_token"
            )
        try:
            super().setup()
        except BackendReadOnly as error:
            raise BackendReadOnly(
                f"{self.name} has not the tables and functions of this release. {TO_RUN}"
            ) from error
