"""A project's database over a Postgres connection: for servers that can hold one."""

from __future__ import annotations

from charm_checkpoint.errors import BackendReadOnly
from charm_memory_postgres.backend import PostgresBackend
from charm_memory_supabase.errors import TO_RUN

__all__ = ["DirectBackend"]


class DirectBackend(PostgresBackend):
    """The Postgres store on the tables of the migration. Alters nothing: who sees what is the migration's."""

    def __init__(self, url: str, *, schema: str, pool_size: int, timeout: float) -> None:
        super().__init__(url, schema=schema, pool_size=pool_size, timeout=timeout, migrate="check")

    def setup(self) -> None:
        try:
            super().setup()
        except BackendReadOnly as error:
            raise BackendReadOnly(
                f"{self.name} has not the tables and functions of this release. {TO_RUN}"
            ) from error
