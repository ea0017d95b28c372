"""A database of LangGraph's PostgresSaver as a source of threads: read as it is, with nothing made in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from psycopg import sql

from charm_checkpoint.backend import Entry, HeadRow, WriteRow
from charm_checkpoint.moving.foreign import FOREIGN_DEVICE, ForeignCheckpoint, Typed, dump, moment
from charm_checkpoint.moving.source import Key, Thread, paged
from charm_memory_postgres.connections import Connections

__all__ = ["OfficialDatabase"]

_CHECKPOINTS = """
SELECT checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata FROM {checkpoints} k
"""
_BLOBS = """
SELECT k.checkpoint_ns, k.checkpoint_id, b.channel, b.type, b.blob
FROM {checkpoints} k CROSS JOIN LATERAL jsonb_each_text(k.checkpoint -> 'channel_versions') v
JOIN {blobs} b ON b.thread_id = k.thread_id AND b.checkpoint_ns = k.checkpoint_ns
    AND b.channel = v.key AND b.version = v.value
"""
_WRITES = """
SELECT k.checkpoint_ns, k.checkpoint_id, w.task_id, w.idx, w.channel, {path}, w.type, w.blob
FROM {checkpoints} k JOIN {writes} w ON w.thread_id = k.thread_id AND w.checkpoint_ns = k.checkpoint_ns
    AND w.checkpoint_id = k.checkpoint_id
"""
_OF_PAGE = """
WHERE k.thread_id = %s
AND (k.checkpoint_ns, k.checkpoint_id) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
"""


class OfficialDatabase:
    """A `Source` over the tables that PostgresSaver made, of any of its releases. Each read is a read-only transaction.

    Args:
        connections: To the database.
        schema: Where the tables are.
    """

    def __init__(self, connections: Connections, schema: str) -> None:
        self._connections = connections
        self._schema = schema

    @property
    def name(self) -> str:
        return f"PostgresSaver's {self._connections.name}"

    def is_there(self) -> bool:
        """Whether there are such tables, and no other program's on top of them."""
        with self._reading() as run:
            tables = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = %s"
            columns = set(run(tables, self._schema))
        return ("checkpoints", "checkpoint_id") in columns and not any(
            table == "charm_migrations" for table, _ in columns
        )

    def threads(self) -> Iterator[str]:
        with self._reading() as run:
            found = run("SELECT DISTINCT thread_id FROM {checkpoints}")
        yield from (thread_id for (thread_id,) in found)

    def thread(self, thread_id: str) -> Thread | None:
        with self._reading() as run:
            found = run(
                "SELECT checkpoint_ns, checkpoint_id, checkpoint ->> 'ts' FROM {checkpoints} "
                'WHERE thread_id = %s ORDER BY checkpoint_id COLLATE "C"',
                thread_id,
            )
        heads, times = {}, []
        for namespace, checkpoint_id, ts in found:
            made_at = moment(ts)
            times.append(made_at)
            heads[namespace] = HeadRow(namespace, checkpoint_id, FOREIGN_DEVICE, made_at)
        return Thread(thread_id, times[0], tuple(sorted(heads.values()))) if heads else None

    def entries(self, thread_id: str) -> Iterator[Entry]:
        with self._reading() as run:
            keys = run(
                "SELECT checkpoint_id, checkpoint_ns FROM {checkpoints} WHERE thread_id = %s "
                'ORDER BY checkpoint_id COLLATE "C", checkpoint_ns COLLATE "C"',
                thread_id,
            )
        yield from paged(keys, lambda page: self._read(thread_id, page))

    def _read(self, thread_id: str, keys: Sequence[Key]) -> Mapping[Key, Entry]:
        page = (thread_id, [namespace for _, namespace in keys], [id for id, _ in keys])
        with self._reading() as run:
            checkpoints = run(_CHECKPOINTS + _OF_PAGE, *page)
            blobs = run(_BLOBS + _OF_PAGE, *page)
            has_path = run(
                "SELECT 1 FROM information_schema.columns WHERE table_schema = %s "
                "AND table_name = 'checkpoint_writes' AND column_name = 'task_path'",
                self._schema,
            )
            writes = run(
                _WRITES.replace("{path}", "w.task_path" if has_path else "''") + _OF_PAGE, *page
            )
        values: dict[Key, dict[str, Typed]] = {}
        for namespace, checkpoint_id, channel, type_, data in blobs:
            if type_ != "empty":
                values.setdefault((checkpoint_id, namespace), {})[channel] = (
                    type_,
                    bytes(data or b""),
                )
        rows: dict[Key, list[WriteRow]] = {}
        for namespace, checkpoint_id, task_id, idx, channel, path, type_, data in writes:
            rows.setdefault((checkpoint_id, namespace), []).append(
                WriteRow(task_id, idx, channel, path, type_, bytes(data))
            )
        found = {}
        for namespace, checkpoint_id, parent_id, fields, metadata in checkpoints:
            key = (checkpoint_id, namespace)
            # Plain values are in the checkpoint itself; what stands there for one with a blob is only a mark.
            inline = {c: dump(v) for c, v in (fields.get("channel_values") or {}).items()}
            found[key] = ForeignCheckpoint(
                thread_id,
                namespace,
                checkpoint_id,
                parent_id,
                fields,
                {**inline, **values.get(key, {})},
                metadata,
                rows.get(key, ()),
            ).entry()
        return found

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        names = {
            name: sql.Identifier(self._schema, table)
            for name, table in (
                ("checkpoints", "checkpoints"),
                ("blobs", "checkpoint_blobs"),
                ("writes", "checkpoint_writes"),
            )
        }
        with self._connections.lend() as connection, connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

            def run(query: str, *arguments: Any) -> list[Any]:
                composed = sql.SQL(query).format(**names)
                return connection.execute(composed, arguments or None).fetchall()

            yield run
