"""The SQLite backend: threads in one file, shared by threads and processes of one machine."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from charm_checkpoint.backend import (
    Ancestor,
    BlobRow,
    CheckpointRow,
    Compacted,
    Entry,
    HeadMark,
    Outcome,
    Page,
    Pulled,
    PutCheckpoint,
    PutWrites,
    Scan,
    Seen,
    Snapshot,
    ThreadQuery,
    ThreadRow,
    Unit,
    WriteRow,
)
from charm_checkpoint.errors import ThreadExistsError, ThreadNotFoundError
from charm_checkpoint.rules import judge, judge_again, pulled
from charm_checkpoint.sqlite import rows
from charm_checkpoint.sqlite.connections import Connections
from charm_checkpoint.sqlite.schema import TABLES_OF_A_THREAD, THREADS
from charm_checkpoint.sqlite.values import Values

__all__ = ["SqliteBackend"]


class SqliteBackend:
    """Threads in a SQLite file: WAL, full sync, one transaction per verb, file mode 0600.

    Args:
        path: The file; made with its folder when missing.
        busy_timeout: Seconds to wait for another process's transaction before `BackendUnavailable`.
        vfs: A SQLite VFS by name, for file systems without POSIX locks.
    """

    kind = THREADS

    def __init__(
        self, path: str | Path, *, busy_timeout: float = 10.0, vfs: str | None = None
    ) -> None:
        self._values = Values()
        self._db = Connections(
            Path(path).absolute(),
            busy_timeout=busy_timeout,
            vfs=vfs,
            kind=self.kind,
            on_rollback=self._values.forget,
        )

    @property
    def name(self) -> str:
        return self._db.name

    @property
    def path(self) -> Path:
        """The file."""
        return self._db.path

    def is_made(self) -> bool:
        """Whether the file is there."""
        return self.path.exists()

    @property
    def journal_mode(self) -> str:
        """`"wal"`, or what SQLite fell back to; empty before `setup`."""
        return self._db.journal_mode

    def setup(self) -> None:
        self._db.prepare()

    def close(self) -> None:
        self._db.close()

    # -- writing ---------------------------------------------------------------------------------------------------

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        with self._db.writing() as db:
            return [self._store(db, unit) for unit in units]

    def _store(self, db: sqlite3.Connection, unit: Unit) -> Outcome:
        if isinstance(unit, PutCheckpoint):
            facts = rows.read_facts(db, unit.thread_id, unit.namespace, unit.row.checkpoint_id)
            return self._put(db, unit, facts)
        if isinstance(unit, PutWrites):
            return rows.put_writes(db, unit)
        return rows.move_head(db, unit)

    def _put(self, db: sqlite3.Connection, put: PutCheckpoint, facts: rows.Facts) -> Outcome:
        row, place = put.row, (put.thread_id, put.namespace)
        if facts.is_stored:
            return judge_again(
                put,
                facts.head,
                lambda id: any(a == row.checkpoint_id for a, _ in rows.ancestors(db, *place, id)),
            )
        tombstone = facts.tombstone
        if tombstone is not None and row.parent_id is None:
            tombstone = tombstone._replace(first_ids=rows.deleted_firsts(db, put.thread_id))
        outcome = judge(
            put,
            facts.head,
            tombstone,
            lambda namespace, id: rows.read_facts(db, put.thread_id, namespace, id).is_stored,
        )
        if outcome.status not in ("stored", "branched"):
            db.execute(
                "DELETE FROM writes WHERE thread_id = ? AND namespace = ? AND checkpoint_id = ?",
                (*place, row.checkpoint_id),
            )
            return outcome
        if facts.head is None:
            rows.insert_thread(db, put.thread_id, row.created_at)
        rows.insert_checkpoint(db, place, row)
        self._values.insert(db, place, put.blobs)
        if outcome.status == "stored":
            rows.set_head(db, *place, row.checkpoint_id, row.device, row.created_at)
        return outcome

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Snapshot:
        with self._db.reading() as db:
            head, through, *columns = db.execute(
                rows.READ, {"t": thread_id, "n": namespace, "c": checkpoint_id}
            ).fetchone()
            if columns[0] is None:
                return Snapshot(head=head, deleted_through=through)
            row = rows.as_checkpoint(columns)
            newest = row.checkpoint_id == head
            snapshot = self._snapshot(db, thread_id, namespace, row, remember=newest)
            return snapshot._replace(head=head, deleted_through=through)

    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        with self._db.reading() as db:
            heads = [
                (head, rows.read_without_blobs(db, thread_id, head.namespace, row))
                for head, row in rows.read_live_heads(db, thread_id)
            ]

            def versions(namespace: str, checkpoint_id: str) -> Mapping[str, str]:
                row = rows.read_checkpoint(db, thread_id, namespace, checkpoint_id)
                return row.versions if row else {}

            def blobs(namespace: str, wanted: Mapping[str, str]) -> Sequence[BlobRow]:
                return self._values.fetch(db, (thread_id, namespace), wanted, remember=False)

            tombstone = rows.read_facts(db, thread_id, "", "").tombstone
            return pulled(thread_id, held, heads, tombstone, versions=versions, blobs=blobs)

    def scan(self, query: Scan) -> Page:
        with self._db.reading() as db:
            return self._scan(db, query)

    def _scan(self, db: sqlite3.Connection, query: Scan, also: str = "1") -> Page:
        where, parameters = rows.conditions(query)
        listed = db.execute(
            f"SELECT thread_id, namespace, {rows.CHECKPOINT} FROM checkpoints WHERE {where} AND {also} "
            "ORDER BY checkpoint_id DESC, thread_id DESC, namespace DESC LIMIT ?",
            (*parameters, query.limit + 1),
        ).fetchall()
        entries = []
        for thread_id, namespace, *columns in listed[: query.limit]:
            row = rows.as_checkpoint(columns)
            values = (
                self._snapshot(db, thread_id, namespace, row) if query.values else Snapshot(row)
            )
            head = rows.read_head(db, thread_id, namespace)
            values = values._replace(head=head.checkpoint_id if head else None)
            entries.append(Entry(thread_id, namespace, values))
        if len(listed) <= query.limit:
            return Page(entries, None)
        thread_id, namespace, checkpoint_id = listed[query.limit - 1][:3]
        return Page(entries, (checkpoint_id, thread_id, namespace))

    def _snapshot(
        self,
        db: sqlite3.Connection,
        thread_id: str,
        namespace: str,
        row: CheckpointRow,
        *,
        remember: bool = False,
    ) -> Snapshot:
        blobs = self._values.fetch(db, (thread_id, namespace), row.versions, remember=remember)
        return rows.read_without_blobs(db, thread_id, namespace, row)._replace(blobs=blobs)

    def lineage(
        self, thread_id: str, namespace: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> Sequence[Ancestor]:
        found: list[Ancestor] = []
        unseeded = set(channels)
        with self._db.reading() as db:
            if checkpoint_id is None:
                head = rows.read_head(db, thread_id, namespace)
                checkpoint_id = head.checkpoint_id if head else ""
            for ancestor_id, versions in rows.ancestors(db, thread_id, namespace, checkpoint_id):
                marks = ",".join("?" * len(unseeded))
                writes = db.execute(
                    f"SELECT {rows.WRITE} FROM writes WHERE thread_id = ? AND namespace = ? AND checkpoint_id = ? "
                    f"AND channel IN ({marks}) {rows.WRITE_ORDER}",
                    (thread_id, namespace, ancestor_id, *unseeded),
                ).fetchall()
                wanted = {c: versions[c] for c in unseeded if c in versions}
                seeds = self._values.fetch(db, (thread_id, namespace), wanted, remember=False)
                unseeded.difference_update(blob.channel for blob in seeds)
                if seeds or writes:
                    found.append(Ancestor(ancestor_id, seeds, [WriteRow(*w) for w in writes]))
                if not unseeded:
                    break
        return found

    def threads(self, query: ThreadQuery) -> Sequence[ThreadRow]:
        with self._db.reading() as db:
            return rows.list_threads(db, query)

    # -- deleting and copying --------------------------------------------------------------------------------------

    def delete(self, thread_id: str, *, at: float) -> bool:
        with self._db.writing() as db:
            return rows.delete_thread(db, thread_id, at)

    def delete_if(self, thread_id: str, seen: Seen, *, at: float) -> bool:
        """Delete a thread that is as it was seen."""
        with self._db.writing() as db:
            return rows.look(db, thread_id) == seen and rows.delete_thread(db, thread_id, at)

    def copy(self, source: str, target: str, *, at: float) -> None:
        with self._db.writing() as db:
            if not rows.has_checkpoints(db, source):
                raise ThreadNotFoundError(f"thread {source!r} has no checkpoints to copy")
            if rows.has_checkpoints(db, target):
                raise ThreadExistsError(
                    f"thread {target!r} already has checkpoints; delete it or copy to another id"
                )
            # Writes that came for checkpoints never stored are of no use beside the copied ones.
            for table in TABLES_OF_A_THREAD:
                db.execute(f"DELETE FROM {table} WHERE thread_id = ?", (target,))
            db.execute("INSERT INTO threads VALUES (?, ?)", (target, at))
            for table in TABLES_OF_A_THREAD[1:]:
                columns = [c[1] for c in db.execute(f"PRAGMA table_info({table})")][1:]
                db.execute(
                    f"INSERT INTO {table} SELECT ?, {', '.join(columns)} FROM {table} WHERE thread_id = ?",
                    (target, source),
                )

    def prune(self, thread_id: str, drop: Sequence[tuple[str, str]]) -> int:
        by_namespace: dict[str, list[str]] = {}
        for namespace, checkpoint_id in drop:
            by_namespace.setdefault(namespace, []).append(checkpoint_id)
        with self._db.writing() as db:
            return sum(
                self._prune_namespace(db, thread_id, namespace, ids)
                for namespace, ids in by_namespace.items()
            )

    def _prune_namespace(
        self, db: sqlite3.Connection, thread_id: str, namespace: str, ids: Sequence[str]
    ) -> int:
        place = (thread_id, namespace)
        parents: dict[str, str | None] = {}
        for checkpoint_id in ids:
            row = rows.read_checkpoint(db, *place, checkpoint_id)
            if row is None:
                continue
            parents[checkpoint_id] = row.parent_id
            for table in ("checkpoints", "writes"):
                db.execute(
                    f"DELETE FROM {table} WHERE thread_id = ? AND namespace = ? AND checkpoint_id = ?",
                    (*place, checkpoint_id),
                )
        self._values.keep_only_referenced(db, place)
        rows.move_head_off(db, *place, parents)
        return len(parents)

    # -- room ------------------------------------------------------------------------------------------------------

    def sizes(self, thread_id: str) -> Mapping[tuple[str, str], int]:
        """By `(namespace, checkpoint_id)` the bytes stored for it, each once, with the greatest id read from it."""
        with self._db.reading() as db:
            return rows.sizes(db, thread_id)

    def compact(self, *, pack: bool = True) -> Compacted:
        """Give the room of what was deleted back to the file system; no byte of it is left.

        Beside running agents: their reads go on, their writes wait while the file is written anew. It needs as much
        room again, for that time.

        Args:
            pack: Store old values in less room first, one namespace after the other.
        """
        before = self._db.size()
        if pack:
            with self._db.reading() as db:
                places = self._values.places_to_pack(db)
            for place in places:
                with self._db.writing() as db:
                    self._values.pack(db, place)
        complete = self._db.vacuum()
        return Compacted(before, self._db.size(), complete)
