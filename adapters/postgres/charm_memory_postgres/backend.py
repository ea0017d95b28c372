"""The Postgres backend: one call of one function for each verb, which is one round trip and one transaction."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from psycopg import errors, sql

from charm_checkpoint.backend import (
    Ancestor,
    Compacted,
    HeadMark,
    Outcome,
    Page,
    Pulled,
    Scan,
    Seen,
    Snapshot,
    ThreadQuery,
    ThreadRow,
    Unit,
)
from charm_checkpoint.errors import ThreadExistsError, ThreadNotFoundError
from charm_memory_postgres import packing, wire
from charm_memory_postgres.bases import Bases
from charm_memory_postgres.connections import Connections
from charm_memory_postgres.errors import NOT_THE_BASE
from charm_memory_postgres.schema import has_tables, prepare

if TYPE_CHECKING:
    from charm_memory_postgres.official import OfficialDatabase

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
        timeout: Seconds to wait for the server to take a connection, or for one of those there are.
        answer_timeout: Seconds without a byte from the server after which it is taken to hang. What may take any time
            (making tables, `delete`, `copy`, `prune`, `compact`) is waited for.
        migrate: `"auto"`, or `"check"` to alter nothing.
        pack_after: How many of each namespace's newest checkpoints `compact` leaves whole.

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
        answer_timeout: float = 60.0,
        migrate: str = "auto",
        pack_after: int = packing.PACK_AFTER,
    ) -> None:
        self._connections = Connections(
            url, size=pool_size, timeout=timeout, patience=answer_timeout
        )
        # Some connections are left for readers.
        self._most_parallel_writes = max(1, min(_PARALLEL_WRITES, pool_size - 2))
        self._shortest_call = float("inf")
        self._bases = Bases()
        self._schema = schema
        quoted = sql.Identifier(schema).as_string().replace("%", "%%")
        self._place = "public." if schema == "public" else f"{quoted}."  # said in each call
        self._migrate = migrate
        self._pack_after = min(pack_after, 2**31 - 1)

    @property
    def name(self) -> str:
        suffix = "" if self._schema == "public" else f" ({self._schema})"
        return f"{self._connections.name}{suffix}"

    @property
    def parallel_writes(self) -> int:
        """How many writes at once are of use."""
        return 1 if self._is_near else self._most_parallel_writes

    @property
    def _is_near(self) -> bool:
        """Whether the server has ever answered too soon to be far away."""
        return self._shortest_call < _FAR

    def official(self) -> OfficialDatabase | None:
        """The tables of LangGraph's PostgresSaver as they are, if nothing else was made there; alters nothing."""
        from charm_memory_postgres.official import OfficialDatabase

        found = OfficialDatabase(self._connections, self._schema)
        return found if found.is_there() else None

    def is_made(self) -> bool:
        """Whether there are tables, if only those of a saver of LangGraph's. Where none may be made, `setup` tells."""
        if self._migrate == "check":
            return True
        with self._connections.lend() as connection:
            return has_tables(connection, self._schema)

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
                message = wire.encode(units, self._bases, near=self._is_near)
                told = self._write(connection, message)
            except errors.DatabaseError as error:
                if error.sqlstate != NOT_THE_BASE:
                    raise
                # The server lost a base, or somebody replaced it: send everything whole.
                told = self._write(connection, wire.encode(units, None))
        return wire.outcomes(units, told, self._bases)

    def _write(self, connection: Any, message: wire.Message) -> Any:
        return self._call(connection, "charm_write_v1(%s,%b)", *message)[0]

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Snapshot:
        held = self._bases.held(thread_id, namespace)
        with self._connections.lend() as connection:
            rows = self._rows(
                connection,
                "charm_read_v1(%s,%s,%s,%s)",
                thread_id,
                namespace,
                checkpoint_id,
                json.dumps(wire.blobs_held(held)),
            )
        return wire.snapshot(rows, self._bases, held)

    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        with self._connections.lend() as connection:
            rows = self._rows(
                connection, "charm_pull_v1(%s, %s::jsonb)", thread_id, json.dumps(wire.held(held))
            )
        return wire.pulled(rows, self._bases)

    def scan(self, query: Scan) -> Page:
        asked = json.dumps(wire.scan_asked(query, _PAGE_BYTES))
        with self._connections.lend() as connection:
            return wire.page(self._rows(connection, "charm_scan_v1(%s::jsonb)", asked))

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

    def threads(self, query: ThreadQuery) -> Sequence[ThreadRow]:
        asked = wire.threads_asked(query)
        if asked is None:
            return []
        with self._connections.lend() as connection:
            [told] = self._call(connection, "charm_threads_v1(%s::jsonb)", json.dumps(asked))
        return [wire.thread_row(each) for each in told or ()]

    # -- deleting and copying --------------------------------------------------------------------------------------

    def delete(self, thread_id: str, *, at: float) -> bool:
        with self._connections.lend(patient=True) as connection:
            [deleted] = self._call(connection, "charm_delete_v1(%s, %s::float8)", thread_id, at)
        return bool(deleted)

    def delete_if(self, thread_id: str, seen: Seen, *, at: float) -> bool:
        """As `delete`, but of a thread only that is as it was `seen`."""
        told = json.dumps(wire.seen(seen))
        with self._connections.lend(patient=True) as connection:
            [deleted] = self._call(
                connection, "charm_delete_if_v1(%s, %s::jsonb, %s::float8)", thread_id, told, at
            )
        return bool(deleted)

    def copy(self, source: str, target: str, *, at: float) -> None:
        with self._connections.lend(patient=True) as connection:
            [told] = self._call(connection, "charm_copy_v1(%s, %s, %s::float8)", source, target, at)
        if told == "missing":
            raise ThreadNotFoundError(f"thread {source!r} has no checkpoints to copy")
        if told == "exists":
            raise ThreadExistsError(
                f"thread {target!r} already has checkpoints; delete it or copy to another id"
            )

    def prune(self, thread_id: str, drop: Sequence[tuple[str, str]]) -> int:
        """Remove checkpoints, and say how many went.

        Where the newest packed ones go and older ones stay, these are packed anew, in the same transaction: about a
        second for 300 checkpoints. Removing the oldest does not do that.
        """
        with self._connections.lend(patient=True) as connection:
            [went] = self._call(
                connection,
                "charm_prune_v1(%s, %s::jsonb)",
                thread_id,
                json.dumps(wire.doomed(drop)),
            )
        return int(went)

    # -- room ------------------------------------------------------------------------------------------------------

    def sizes(self, thread_id: str) -> Mapping[tuple[str, str], int]:
        """By `(namespace, checkpoint_id)` the bytes stored for it, each value with the greatest id that has it."""
        with self._connections.lend() as connection:
            [told] = self._call(connection, "charm_sizes_v1(%s)", thread_id)
        return {(namespace, checkpoint_id): size for namespace, checkpoint_id, size in told or ()}

    def compact(self, *, pack: bool = True) -> Compacted:
        """Pack the values that only old checkpoints have, which makes their room free for what comes.

        Beside running agents: a thread's writers wait for some values to be packed, others for nothing. Packed values
        are read here as before; other savers find them no more. The server keeps the room: only its `VACUUM FULL`
        gives it back to the disk, for which everybody has to wait.

        Args:
            pack: If false nothing is done: room that deleting left is the server's to look after.

        Raises:
            BackendCorrupt: Values of a thread are damaged; those of the others were packed.
        """
        if not pack:
            return Compacted(0, 0, None)
        before, freed = packing.pack(self._ask, self._pack_after)
        if freed:
            with self._connections.lend(patient=True) as connection:
                # Sooner than the server's own: what agents write meanwhile would need room beside what is free, and an
                # index that is good enough for few rows would be used when there are many again.
                for table in ("checkpoint_blobs", "charm_packed"):
                    name = sql.Identifier(self._schema, table)
                    connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(name))
        return Compacted(before, before - freed, None)

    def _ask(self, function: str, *arguments: Any) -> Any:
        with self._connections.lend(patient=True) as connection:
            [told] = self._call(connection, function, *arguments)
        return told

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
