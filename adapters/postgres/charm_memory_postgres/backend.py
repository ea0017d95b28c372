"""The Postgres backend: one call of one function for each verb, which is one round trip and one transaction."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from psycopg import errors, sql

from charm_checkpoint.backend import (
    Ancestor,
    Entry,
    HeadMark,
    Outcome,
    Page,
    Pulled,
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

_PARALLEL_WRITES = 8
# Seconds. Nearer than this, several writes are done sooner with one commit for all of them than side by side.
_FAR = 0.002
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
        # Some connections are left for readers.
        self._most_parallel_writes = max(1, min(_PARALLEL_WRITES, pool_size - 2))
        self._shortest_call = float("inf")
        self._bases = Bases()
        self._schema = schema
        quoted = sql.Identifier(schema).as_string().replace("%", "%%")
        self._place = f"{quoted}."
        self._migrate = migrate

    @property
    def name(self) -> str:
        suffix = "" if self._schema == "public" else f" ({self._schema})"
        return f"{self._connections.name}{suffix}"

    @property
    def parallel_writes(self) -> int:
        """How many writes at once are of use: one, if the server has ever answered too soon to be far away."""
        return 1 if self._shortest_call < _FAR else self._most_parallel_writes

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
                message = wire.encode(units, self._bases, near=_is_near(connection))
                told = self._write(connection, message)
            except errors.DatabaseError as error:
                if error.sqlstate != NOT_THE_BASE:
                    raise
                # The server lost a base, or somebody replaced it: send everything whole.
                told = self._write(connection, wire.encode(units, None))
        for unit, each in zip(units, told, strict=True):
            if isinstance(unit, PutCheckpoint) and each["status"] in ("stored", "branched"):
                for blob in unit.blobs:
                    self._bases.remember(unit.thread_id, unit.namespace, blob, each.get("xid"))
        return [wire.outcome(each) for each in told]

    def _write(self, connection: Any, message: wire.Message) -> Any:
        return self._call(connection, "charm_write_v1(%s::jsonb, %b)", *message)[0]

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Snapshot:
        held = self._bases.held(thread_id, namespace)
        with self._connections.lend() as connection:
            rows = self._rows(
                connection,
                "charm_read_v1(%s, %s, %s, %s::jsonb)",
                thread_id,
                namespace,
                checkpoint_id,
                wire.blobs_held(held),
            )
        facts = wire.info(rows)
        for entry in wire.entries(rows, self._bases, held):
            return entry.snapshot._replace(**facts)
        return Snapshot(**facts)

    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        with self._connections.lend() as connection:
            rows = self._rows(
                connection, "charm_pull_v1(%s, %s::jsonb)", thread_id, wire.held(held)
            )
        return wire.pulled(rows, self._bases)

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
            rows = self._rows(connection, "charm_scan_v1(%s::jsonb)", told)
        entries = wire.entries(rows)
        return Page(entries, _key(entries[-1]) if wire.info(rows)["more"] else None)

    def lineage(
        self, thread_id: str, namespace: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> Sequence[Ancestor]:
        with self._connections.lend() as connection:
            rows = self._rows(
                connection,
                "charm_lineage_v1(%s, %s, %s, %s::text[])",
                thread_id,
                namespace,
                checkpoint_id,
                list(channels),
            )
        return wire.lineage(rows)

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
        query = f"SELECT {self._place}{function}"
        return self._execute(connection, query, arguments).fetchone()

    def _rows(self, connection: Any, function: str, *arguments: Any) -> list[wire.Row]:
        query = f"SELECT * FROM {self._place}{function}"  # noqa: S608 - quoted, and no more than a schema
        return [wire.Row(*row) for row in self._execute(connection, query, arguments)]

    def _execute(self, connection: Any, query: str, arguments: Sequence[Any]) -> Any:
        began = time.monotonic()
        cursor = connection.execute(query, arguments, binary=True)
        self._shortest_call = min(self._shortest_call, time.monotonic() - began)
        return cursor


def _is_near(connection: Any) -> bool:
    address = connection.info.hostaddr  # empty for a Unix socket
    return not address or address == "::1" or address.startswith("127.")


def _key(entry: Entry) -> tuple[str, str, str]:
    assert entry.snapshot.checkpoint is not None
    return entry.snapshot.checkpoint.checkpoint_id, entry.thread_id, entry.namespace
