"""The local half of a replica: threads in a SQLite file, and in the same transactions what the remote has to learn."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

from charm_checkpoint.backend import (
    STORED,
    Ancestor,
    Entry,
    HeadMark,
    HeadRow,
    Outcome,
    Pulled,
    PutCheckpoint,
    PutWrites,
    Scan,
    Tombstone,
    Unit,
    WriteRow,
)
from charm_checkpoint.replica import claims, outbox
from charm_checkpoint.replica.conflicts import (
    Conflict,
    list_conflicts,
    note_branch,
    remove_conflicts,
)
from charm_checkpoint.replica.schema import REPLICA, TABLES_OF_A_THREAD
from charm_checkpoint.sqlite import SqliteBackend, rows

# Of a thread's unsent checkpoints, how many of the newest are named when it is pulled.
_ON_THE_WAY = 32

__all__ = ["Front", "Known", "Lineage", "MissingAncestorError"]


class Known(NamedTuple):
    """What this device knows of the remote's side of a thread."""

    marks: tuple[HeadMark, ...]
    tombstone: Tombstone | None
    activity: tuple[int, int]
    """Changes when this device adds to the outbox, or the remote takes something out of it: an answer that was asked
    for before may then be older than what is here."""
    unsent: tuple[HeadMark, ...] = ()
    """Checkpoints of this device that may be on their way there."""

    @property
    def held(self) -> tuple[HeadMark, ...]:
        """What to pull with."""
        return self.unsent + self.marks

    def is_gone(self, pulled: Pulled) -> bool:
        """Whether a pull tells of a deletion that this device does not know.

        Without a tombstone nobody deleted the thread: the remote lost it, and gets it back with the next step.
        """
        told, known = pulled.tombstone, self.tombstone
        if told is None:
            return False
        # The greatest deleted id may be that of a clock that was ahead, from a deletion before; and so may the time be.
        emptied = not pulled.heads and any(":" not in mark.head.namespace for mark in self.marks)
        return (
            emptied
            or known is None
            or told.deleted_through > known.deleted_through
            or told.deleted_at > known.deleted_at
        )


class Lineage(NamedTuple):
    """What the DeltaChannels of one checkpoint are rebuilt from, as the remote told it."""

    namespace: str
    checkpoint_id: str
    channels: frozenset[str]
    ancestors: Sequence[Ancestor]


class MissingAncestorError(Exception):
    """A walk up the parents came to a checkpoint whose parent is not on this device."""

    def __init__(self, checkpoint_id: str) -> None:
        super().__init__(checkpoint_id)
        self.checkpoint_id = checkpoint_id


class Front(SqliteBackend):
    """A SQLite backend that keeps account of what is not at the remote yet."""

    kind = REPLICA

    # -- what this device does -------------------------------------------------------------------------------------

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        outcomes: list[Outcome] = []
        queued: list[outbox.Entry] = []
        with self._db.writing() as db:
            for unit in units:
                if isinstance(unit, PutCheckpoint):
                    place = (unit.thread_id, unit.namespace, unit.row.checkpoint_id)
                    facts = rows.read_facts(db, *place)
                    outcome = self._put(db, unit, facts)
                    news = not facts.is_stored and outcome.status in ("stored", "branched")
                    head = facts.head
                else:
                    outcome, head = self._store(db, unit), None
                    news = outcome == STORED
                outcomes.append(outcome)
                if news:
                    queued += outbox.entries_of(unit, head)
            if queued:
                outbox.insert(db, queued)
        return outcomes

    def delete(self, thread_id: str, *, at: float) -> bool:
        """Remove a thread here, and at the remote even if this device never saw it."""
        with self._db.writing() as db:
            heads = [mark.head for mark in _marks(db, thread_id)]
            through = max((head.checkpoint_id for head in heads), default="")
            known = _known_at_remote(db, thread_id, heads)
            existed = rows.delete_thread(db, thread_id, at, through)
            _forget(db, thread_id)
            _forget_conflicts(db, thread_id)
            # One that waits means what was there then, and no more: the thread may have begun anew elsewhere.
            if existed or not outbox.is_deleted(db, thread_id):
                deletion = outbox.Entry(thread_id, "delete", known[0], known[1], at=at)
                outbox.insert(db, [deletion])
            return existed

    def prune(self, thread_id: str, drop: Sequence[tuple[str, str]]) -> int:
        """Remove checkpoints that are gone from the remote. What is known of its heads is asked anew after that."""
        removed = super().prune(thread_id, drop)
        with self._db.writing() as db:
            _forget(db, thread_id)
            gone = set(drop)
            remove_conflicts(
                db,
                [c for c in list_conflicts(db, thread_id) if (c.namespace, c.tip_id) in gone],
            )
        return removed

    # -- what the remote tells -------------------------------------------------------------------------------------

    def known(self, thread_id: str) -> Known:
        """What to pull a thread with."""
        with self._db.reading() as db:
            return _known(db, thread_id)

    def adopt(
        self, thread_id: str, asked: Known, pulled: Pulled, lineages: Sequence[Lineage]
    ) -> Literal["done", "waiting", "changed"]:
        """Take over what a pull answered, in one transaction.

        Returns:
            `"done"`; `"waiting"`: the thread moved on elsewhere, and something of this device has to be sent first, to
            become a branch; `"changed"`: the answer is out of date, pull again.
        """
        with self._db.writing() as db:
            known = _known(db, thread_id)
            waiting = outbox.waiting_of(db, thread_id)
            entries = pulled.entries
            if pulled.tombstone is not None and known.is_gone(pulled):
                if waiting:
                    return "waiting"
                if known != asked:
                    return "changed"
                # What is there now was pulled whole, and takes its place in this transaction.
                rows.delete_thread(db, thread_id, *pulled.tombstone[:2])
                _forget(db, thread_id)
                known = asked = _known(db, thread_id)
            if waiting or known != asked:
                # What this device did may have been on its way when the answer was made.
                entries = [entry for entry in entries if not _is_behind(db, entry)]
                if entries and known != asked:
                    return "changed"
            held = {mark.head.namespace: mark for mark in known.marks}
            marks = {mark.head.namespace: mark for mark in pulled.heads}
            for entry in entries:
                mark, before = marks[entry.namespace], held.get(entry.namespace)
                moved = before is None or before.head.checkpoint_id != mark.head.checkpoint_id
                if moved and waiting:
                    return "waiting"
                self._import(db, entry, waiting)
                if moved:
                    claims.give_up(db, thread_id, entry.namespace)
                    rows.set_head(db, thread_id, *mark.head)
                _set_mark(db, thread_id, mark)
            for lineage in lineages:
                self._attach(db, thread_id, lineage)
            return "done"

    def keep(
        self,
        entry: Entry,
        asked: Known,
        lineages: Sequence[Lineage] = (),
        *,
        head: HeadRow | None = None,
    ) -> bool:
        """Keep a checkpoint that was read at the remote; without `head` where it is, it is one beside the heads.

        Returns:
            False if the answer is out of date.
        """
        with self._db.writing() as db:
            if _known(db, entry.thread_id) != asked:
                return False
            self._import(db, entry, outbox.waiting_of(db, entry.thread_id))
            for lineage in lineages:
                self._attach(db, entry.thread_id, lineage)
            if head is not None:
                rows.set_head(db, entry.thread_id, *head)
            return True

    def attach(self, thread_id: str, lineage: Lineage) -> None:
        """Keep what DeltaChannels of a checkpoint are rebuilt from."""
        with self._db.writing() as db:
            self._attach(db, thread_id, lineage)

    def _import(
        self, db: sqlite3.Connection, entry: Entry, waiting: Collection[tuple[str, str, str, str]]
    ) -> None:
        row, place = entry.snapshot.checkpoint, (entry.thread_id, entry.namespace)
        assert row is not None
        rows.insert_thread(db, entry.thread_id, row.created_at)
        if rows.read_checkpoint(db, *place, row.checkpoint_id) is None:
            rows.insert_checkpoint(db, place, row)
        self._values.insert(db, place, entry.snapshot.blobs)
        for checkpoint_id, written in (
            (row.checkpoint_id, entry.snapshot.writes),
            (row.parent_id, entry.snapshot.sends),
        ):
            if checkpoint_id is not None:
                news = [
                    write
                    for write in written
                    if ("writes", entry.namespace, checkpoint_id, write.task_id) not in waiting
                ]
                rows.insert_writes(db, PutWrites(*place, checkpoint_id, tuple(news)))

    def _attach(self, db: sqlite3.Connection, thread_id: str, lineage: Lineage) -> None:
        place = (thread_id, lineage.namespace)
        told = []
        for ancestor in lineage.ancestors:
            self._values.insert(db, place, ancestor.blobs)
            rows.insert_writes(
                db, PutWrites(*place, ancestor.checkpoint_id, tuple(ancestor.writes))
            )
            seeds = {blob.channel: blob.version for blob in ancestor.blobs}
            told.append((ancestor.checkpoint_id, seeds))
        db.execute(
            "INSERT OR REPLACE INTO lineages VALUES (?, ?, ?, ?, ?)",
            (*place, lineage.checkpoint_id, json.dumps(sorted(lineage.channels)), json.dumps(told)),
        )

    # -- sending ---------------------------------------------------------------------------------------------------

    def batch(self, *, skip: Collection[str] = ()) -> list[outbox.Entry]:
        """What to send next; see `outbox.batch`."""
        with self._db.reading() as db:
            if not db.execute("SELECT 1 FROM outbox WHERE kind = 'lost' LIMIT 1").fetchone():
                return outbox.batch(db, self._values, skip=skip)
        with self._db.writing() as db:
            claims.move_to_copies(db)
            return outbox.batch(db, self._values, skip=skip)

    def whole(self, entry: outbox.Entry) -> outbox.Entry:
        """The same checkpoint with all its values, for a remote that lacks its parent."""
        with self._db.reading() as db:
            return outbox.with_unit(db, self._values, entry, whole=True)

    def acknowledge(
        self, entries: Sequence[outbox.Entry], outcomes: Sequence[Outcome]
    ) -> list[Conflict]:
        """Note what became of entries at the remote, and forget them. Returns the conflicts that came of it."""
        conflicts: list[Conflict] = []
        with self._db.writing() as db:
            taken = [
                entry
                for entry, outcome in zip(entries, outcomes, strict=True)
                if (entry.kind, outcome.status) != ("writes", "conflict")
            ]
            outbox.remove(db, taken)
            db.executemany(
                "INSERT OR REPLACE INTO sent VALUES (?, ?)",
                {entry.thread_id: entry.seq for entry in entries}.items(),
            )
            for entry, outcome in zip(entries, outcomes, strict=True):
                if entry.kind == "delete" or entry.unit is None:
                    continue
                if outcome.status == "branched" and isinstance(entry.unit, PutCheckpoint):
                    wanted = outbox.is_beside(entry)
                    if not wanted and (conflict := note_branch(db, entry.unit, outcome)):
                        conflicts.append(conflict)
                    # The remote's head is not where this device is, also if it is where it was.
                    db.execute(
                        "DELETE FROM marks WHERE thread_id = ? AND namespace = ?",
                        (entry.thread_id, entry.namespace),
                    )
                elif outcome.status == "conflict" and entry.kind == "writes":
                    claims.lose(db, entry)
                elif outcome.status == "stored":
                    _sent(db, entry)
            if not any(entry.kind == "delete" or entry.unit is not None for entry in entries):
                return conflicts  # all of it was deleted here since, and the remote was not asked
            _set_state(db, "last_success", repr(time.time()))
            away = "SELECT 1 FROM state WHERE key = 'offline_since' AND value IS NOT NULL"
            if db.execute(away).fetchone():
                # It was noted by another process, which may be gone by now.
                _set_state(db, "offline_since", None)
                _set_state(db, "last_error", None)
        return conflicts

    def waiting(self, thread_id: str | None = None) -> dict[str, tuple[int, int, float]]:
        """By thread: how many entries wait, their bytes, and since when (seconds since the epoch)."""
        with self._db.reading() as db:
            return outbox.waiting(db, thread_id)

    def is_waiting(self, thread_id: str | None = None) -> bool:
        """Whether anything waits, of one thread or at all."""
        with self._db.reading() as db:
            return outbox.is_waiting(db, thread_id)

    def waiting_bytes(self) -> int:
        """Bytes that wait."""
        with self._db.reading() as db:
            return int(db.execute("SELECT coalesce(sum(size), 0) FROM outbox").fetchone()[0])

    # -- reading beside the remote ---------------------------------------------------------------------------------

    def unsent(self, thread_id: str | None = None) -> Unsent:
        """Which checkpoints of a thread, or of all, are not at the remote as they are here."""
        with self._db.reading() as db:
            found = db.execute(
                "SELECT DISTINCT thread_id, kind, namespace, checkpoint_id FROM outbox "
                "WHERE ? IN (thread_id, '') AND kind <> 'lost'",
                (thread_id or "",),
            ).fetchall()
        return Unsent(
            frozenset((t, n, c) for t, kind, n, c in found if kind in ("checkpoint", "writes")),
            frozenset(t for t, kind, *_ in found if kind == "delete"),
            frozenset(t for t, *_ in found),
        )

    def scan_unsent(self, query: Scan) -> Sequence[Entry]:
        """The first of the checkpoints that are not at the remote as they are here."""
        with self._db.reading() as db:
            return self._scan(
                db,
                query,
                "EXISTS (SELECT 1 FROM outbox o WHERE o.thread_id = checkpoints.thread_id "
                "AND o.namespace = checkpoints.namespace AND o.checkpoint_id = checkpoints.checkpoint_id "
                "AND o.kind IN ('checkpoint', 'writes'))",
            ).entries

    def lineage(
        self, thread_id: str, namespace: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> Sequence[Ancestor]:
        """As any backend's, up to where the remote told the rest.

        Raises:
            MissingAncestorError: It goes on with a checkpoint that is not here.
        """
        place, unseeded, found = (thread_id, namespace), set(channels), list[Ancestor]()
        with self._db.reading() as db:
            if checkpoint_id is None:
                head = rows.read_head(db, *place)
                checkpoint_id = head.checkpoint_id if head else ""
            row = rows.read_checkpoint(db, *place, checkpoint_id)
            seen = set[str]()
            while row is not None and unseeded and row.checkpoint_id not in seen:
                seen.add(row.checkpoint_id)
                told = _told_ancestors(db, *place, row.checkpoint_id, unseeded)
                if told is not None:
                    for ancestor_id, seeds in told:
                        self._step(db, place, ancestor_id, seeds, unseeded, found)
                    break
                if row.parent_id is None:
                    break
                parent = rows.read_checkpoint(db, *place, row.parent_id)
                if parent is None:
                    raise MissingAncestorError(row.checkpoint_id)
                self._step(db, place, parent.checkpoint_id, parent.versions, unseeded, found)
                row = parent
        return found

    def _step(
        self,
        db: sqlite3.Connection,
        place: tuple[str, str],
        ancestor_id: str,
        versions: Mapping[str, str],
        unseeded: set[str],
        found: list[Ancestor],
    ) -> None:
        written: list[WriteRow] = [
            write
            for write in rows.read_writes(db, *place, ancestor_id)
            if write.channel in unseeded
        ]
        wanted = {c: versions[c] for c in unseeded if c in versions}
        seeds = self._values.fetch(db, place, wanted, remember=False)
        unseeded.difference_update(blob.channel for blob in seeds)
        if seeds or written:
            found.append(Ancestor(ancestor_id, seeds, written))

    # -- status ----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, str]:
        """What was noted: `remote`, `last_success`, `last_error`, `offline_since`."""
        with self._db.reading() as db:
            return dict(db.execute("SELECT key, value FROM state WHERE value IS NOT NULL"))

    def note(self, **state: str | None) -> None:
        """Note something for other processes to see; `None` takes it back."""
        with self._db.writing() as db:
            for key, value in state.items():
                _set_state(db, key, value)

    def conflicts(self, thread_id: str | None = None) -> list[Conflict]:
        """Branches of this device that lost to another writer, the oldest first."""
        with self._db.reading() as db:
            return list_conflicts(db, thread_id)

    def branch(self, conflict: Conflict) -> list[Conflict]:
        """A conflict with those of the subgraphs that ran on its branch."""
        thread_id = conflict.thread_id
        with self._db.reading() as db:
            roots = {conflict.first_id}
            row = rows.read_checkpoint(db, thread_id, "", conflict.tip_id)
            while row is not None and row.checkpoint_id not in roots:
                roots.add(row.checkpoint_id)
                row = rows.read_checkpoint(db, thread_id, "", row.parent_id or "")
            if first := rows.read_checkpoint(db, thread_id, "", conflict.first_id):
                roots.add(first.parent_id or "")
            found = [conflict]
            for other in list_conflicts(db, thread_id):
                row = rows.read_checkpoint(db, thread_id, other.namespace, other.tip_id)
                if other.namespace and row is not None and row.root_id in roots:
                    found.append(other)
            return found if conflict.namespace == "" else [conflict]

    def settle(self, settled: Sequence[Conflict]) -> None:
        """Take conflicts off the list."""
        with self._db.writing() as db:
            remove_conflicts(db, settled)


class Unsent(NamedTuple):
    """What the remote's own answer does not show yet."""

    checkpoints: frozenset[tuple[str, str, str]]
    """`(thread_id, namespace, checkpoint_id)` that are new, or have new writes."""
    deleted: frozenset[str]
    """Threads whose deletion is not at the remote yet."""
    threads: frozenset[str]
    """All that have something to send."""


def _known(db: sqlite3.Connection, thread_id: str) -> Known:
    activity = db.execute(
        "SELECT coalesce((SELECT seq FROM sent WHERE thread_id = :t), 0), "
        "coalesce((SELECT max(seq) FROM outbox WHERE thread_id = :t), 0)",
        {"t": thread_id},
    ).fetchone()
    tombstone = rows.read_facts(db, thread_id, "", "").tombstone
    unsent = db.execute(
        "SELECT namespace, checkpoint_id FROM outbox WHERE thread_id = ? AND kind = 'checkpoint' "
        "ORDER BY seq DESC LIMIT ?",
        (thread_id, _ON_THE_WAY),
    )
    on_the_way = tuple(HeadMark(HeadRow(ns, id, "", 0.0), None) for ns, id in unsent)
    return Known(_marks(db, thread_id), tombstone, activity, on_the_way)


def _is_behind(db: sqlite3.Connection, entry: Entry) -> bool:
    """Whether a head of the remote is one that this device went on from, with nothing about it that is not here."""
    row, place = entry.snapshot.checkpoint, (entry.thread_id, entry.namespace)
    head = rows.read_head(db, *place)
    if row is None or head is None:
        return False
    if head.checkpoint_id != row.checkpoint_id:
        ancestors = rows.ancestors(db, *place, head.checkpoint_id)
        return any(ancestor_id == row.checkpoint_id for ancestor_id, _ in ancestors)
    here = set(rows.read_writes(db, *place, row.checkpoint_id))
    return here.issuperset(entry.snapshot.writes)


def _marks(db: sqlite3.Connection, thread_id: str) -> tuple[HeadMark, ...]:
    found = db.execute(
        "SELECT namespace, checkpoint_id, device, moved_at, writes FROM marks WHERE thread_id = ? ORDER BY namespace",
        (thread_id,),
    )
    return tuple(HeadMark(HeadRow(*head), writes) for *head, writes in found)


def _known_at_remote(
    db: sqlite3.Connection, thread_id: str, heads: Sequence[HeadRow]
) -> tuple[str, str]:
    """`(namespace, checkpoint_id)` that tells whether what this device knew of a thread is still at the remote."""
    if heads:
        return heads[0][:2]
    # Nothing is known to be there. What was sent and not answered yet begins with the first step.
    first = db.execute(
        "SELECT min(checkpoint_id) FROM checkpoints WHERE thread_id = ? AND namespace = ''",
        (thread_id,),
    ).fetchone()[0]
    return "", first or ""


def _set_mark(db: sqlite3.Connection, thread_id: str, mark: HeadMark) -> None:
    if mark.head.namespace == "":
        # What ran under an earlier checkpoint of the root graph is over: it need not be asked about any more.
        db.execute(
            "DELETE FROM marks WHERE thread_id = ? AND instr(namespace, ':') > 0 AND EXISTS ("
            " SELECT 1 FROM marks WHERE thread_id = ? AND namespace = '' AND checkpoint_id <> ?)",
            (thread_id, thread_id, mark.head.checkpoint_id),
        )
    db.execute(
        "INSERT OR REPLACE INTO marks VALUES (?, ?, ?, ?, ?, ?)",
        (thread_id, *mark.head, mark.writes),
    )


def _sent(db: sqlite3.Connection, entry: outbox.Entry) -> None:
    place = (entry.thread_id, entry.namespace)
    if isinstance(entry.unit, PutWrites):
        db.execute(
            "UPDATE marks SET writes = NULL WHERE thread_id = ? AND namespace = ? AND checkpoint_id = ?",
            (*place, entry.checkpoint_id),
        )
        return
    row = rows.read_checkpoint(db, *place, entry.checkpoint_id)
    if row is not None:
        head = HeadRow(entry.namespace, row.checkpoint_id, row.device, row.created_at)
        written = rows.read_writes(db, *place, entry.checkpoint_id)
        _set_mark(db, entry.thread_id, HeadMark(head, None if written else ""))


def _told_ancestors(
    db: sqlite3.Connection, thread_id: str, namespace: str, checkpoint_id: str, unseeded: set[str]
) -> list[tuple[str, dict[str, str]]] | None:
    told = db.execute(
        "SELECT channels, ancestors FROM lineages WHERE thread_id = ? AND namespace = ? AND checkpoint_id = ?",
        (thread_id, namespace, checkpoint_id),
    ).fetchone()
    if told is None or not unseeded.issubset(json.loads(told[0])):
        return None
    return [(ancestor_id, seeds) for ancestor_id, seeds in json.loads(told[1])]


def _forget(db: sqlite3.Connection, thread_id: str) -> None:
    db.execute("DELETE FROM outbox WHERE thread_id = ? AND kind = 'lost'", (thread_id,))
    for table in TABLES_OF_A_THREAD:
        db.execute(f"DELETE FROM {table} WHERE thread_id = ?", (thread_id,))


def _forget_conflicts(db: sqlite3.Connection, thread_id: str) -> None:
    db.execute("DELETE FROM conflicts WHERE thread_id = ?", (thread_id,))


def _set_state(db: sqlite3.Connection, key: str, value: str | None) -> None:
    db.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (key, value))
