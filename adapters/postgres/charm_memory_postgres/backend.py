"""The Postgres backend: one call of one function for each verb, which is one round trip and one transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from psycopg import errors, sql

from charm_checkpoint.backend import (
    Ancestor,
    Entry,
    Outcome,
    Page,
    PutCheckpoint,
    Scan,
    Snapshot,
    ThreadCursor,
    ThreadRow,
    Unit,
)
from charm_checkpoint.errors import ThreadExistsError, ThreadNotFoundError
from charm_memory_postgres import wire
from charm_memory_postgres.bases import Bases
from charm_memory_postgres.connections import Connections
from charm_memory_postgres.errors import NOT_THE_BASE
from charm_memory_postgres.schema import prepare

__all__ = ["PostgresBackend"]

# A page of a scan ends early when its values are more than this.
_PAGE_BYTES = 32 * 1024 * 1024


class PostgresBackend:
    """Threads in LangGraph's own tables, so that its PostgresSaver can be used on them before, after and beside.

    Args:
        url: A URL or keywords, as libpq takes them.
        schema: Where the tables are; made if missing.
        pool_size: Connections at most.
        timeout: Seconds to wait for the server, or for a connection.
        migrate: `"auto"`, or `"check"` to alter nothing.

    Raises:
        ConfigError: `url` is not valid.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str = "public",
        pool_size: int = 10,
        timeout: float = 10.0,
        migrate: str = "auto",
    ) -> None:
        self._connections = Connections(url, size=pool_size, timeout=timeout)
        self._bases = Bases()
        self._schema = schema
        quoted = sql.Identifier(schema).as_string().replace("%", "%%")
        self._select = f"SELECT * FROM {quoted}."  # noqa: S608 - quoted, and no more than a schema
        self._migrate = migrate

    @property
    def name(self) -> str:
        suffix = "" if self._schema == "public" else f" ({self._schema})"
        return f"{self._connections.name}{suffix}"

    def setup(self) -> None:
        prepare(self._connections, self._schema, self._migrate)

    def close(self) -> None:
        self._connections.close()

    # -- writing ---------------------------------------------------------------------------------------------------

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        if not units:
            return []
        with self._connections.lend() as connection:
            try:
                told = self._write(connection, wire.encode(units, self._bases))
            except errors.DatabaseError as error:
                if error.sqlstate != NOT_THE_BASE:
                    raise
                # The server lost a base, or somebody replaced it: send everything whole.
                told = self._write(connection, wire.encode(units, None))
        for unit in units:
            if isinstance(unit, PutCheckpoint):
                self._bases.remember(unit.thread_id, unit.namespace, unit.blobs)
        return [wire.outcome(each) for each in told]

    def _write(self, connection: Any, message: wire.Message) -> Any:
        return self._call(connection, "charm_write_v1(%s::jsonb, %b)", *message)[0]

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Snapshot:
        with self._connections.lend() as connection:
            info, payload = self._call(
                connection, "charm_read_v1(%s, %s, %s)", thread_id, namespace, checkpoint_id
            )
        facts = {"head": info["head"], "deleted_through": info["deleted_through"]}
        for entry in wire.entries(info["found"], payload):
            self._bases.remember(thread_id, namespace, entry.snapshot.blobs)
            return entry.snapshot._replace(**facts)
        return Snapshot(**facts)

    def scan(self, query: Scan) -> Page:
        asked = {
            "thread": query.thread_id,
            "ns": query.namespace,
            "id": query.checkpoint_id,
            "before": query.before,
            "runs": query.run_ids,
            "after": query.after,
            "limit": query.limit,
            "values": query.values,
            "max_bytes": _PAGE_BYTES,
        }
        told = json.dumps({key: value for key, value in asked.items() if value is not None})
        with self._connections.lend() as connection:
            info, payload = self._call(connection, "charm_scan_v1(%s::jsonb)", told)
        entries = wire.entries(info["found"], payload)
        return Page(entries, _key(entries[-1]) if info["more"] else None)

    def lineage(
        self, thread_id: str, namespace: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> Sequence[Ancestor]:
        with self._connections.lend() as connection:
            info, payload = self._call(
                connection,
                "charm_lineage_v1(%s, %s, %s, %s::text[])",
                thread_id,
                namespace,
                checkpoint_id,
                list(channels),
            )
        return wire.lineage(info, payload)

    def threads(
        self, *, limit: int, after: ThreadCursor | None = None, thread_id: str | None = None
    ) -> Sequence[ThreadRow]:
        with self._connections.lend() as connection:
            [told] = self._call(
                connection,
                "charm_threads_v1(%s::integer, %s::float8, %s, %s)",
                limit,
                *(after or (None, None)),
                thread_id,
            )
        return [wire.thread_row(each) for each in told or ()]

    # -- deleting and copying --------------------------------------------------------------------------------------

    def delete(self, thread_id: str, *, at: float) -> bool:
        with self._connections.lend() as connection:
            [deleted] = self._call(connection, "charm_delete_v1(%s, %s::float8)", thread_id, at)
        return bool(deleted)

    def copy(self, source: str, target: str, *, at: float) -> None:
        with self._connections.lend() as connection:
            [told] = self._call(connection, "charm_copy_v1(%s, %s, %s::float8)", source, target, at)
        if told == "missing":
            raise ThreadNotFoundError(f"thread {source!r} has no checkpoints to copy")
        if told == "exists":
            raise ThreadExistsError(
                f"thread {target!r} already has checkpoints; delete it or copy to another id"
            )

    def prune(self, thread_id: str, drop: Sequence[tuple[str, str]]) -> int:
        doomed: dict[str, list[str]] = {}
        for namespace, checkpoint_id in drop:
            doomed.setdefault(namespace, []).append(checkpoint_id)
        with self._connections.lend() as connection:
            [went] = self._call(
                connection, "charm_prune_v1(%s, %s::jsonb)", thread_id, json.dumps(doomed)
            )
        return int(went)

    def _call(self, connection: Any, function: str, *arguments: Any) -> Any:
        """The one row that a function answers."""
        return connection.execute(self._select + function, arguments, binary=True).fetchone()


def _key(entry: Entry) -> tuple[str, str, str]:
    assert entry.snapshot.checkpoint is not None
    return entry.snapshot.checkpoint.checkpoint_id, entry.thread_id, entry.namespace
