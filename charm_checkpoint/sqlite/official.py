"""A file of LangGraph's SqliteSaver as a source of threads: read as it is, and never written to."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from charm_checkpoint.backend import Entry, HeadRow, WriteRow
from charm_checkpoint.errors import BackendCorrupt, BackendError, DeserializationError
from charm_checkpoint.moving.foreign import FOREIGN_DEVICE, ForeignCheckpoint, split
from charm_checkpoint.moving.source import Thread

__all__ = ["OfficialFile", "is_official"]

_CHECKPOINTS = {
    "thread_id",
    "checkpoint_ns",
    "checkpoint_id",
    "parent_checkpoint_id",
    "type",
    "checkpoint",
    "metadata",
}
_BUSY = 10.0  # seconds to wait for who writes


def is_official(path: Path) -> bool:
    """Whether a file is a SqliteSaver's."""
    if not path.is_file():
        return False
    try:
        with closing(_connect(path)) as db:
            return (
                db.execute("PRAGMA application_id").fetchone()[0] == 0
                and _columns(db, "checkpoints") >= _CHECKPOINTS
                and bool(_columns(db, "writes"))
            )
    except sqlite3.Error:
        return False  # whoever opens it tells what it is


class OfficialFile:
    """A `Source` over a file of `SqliteSaver` or `AsyncSqliteSaver`, of any of their releases.

    Values go as the bytes that are stored; nothing of them is loaded.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def name(self) -> str:
        return f"SqliteSaver's {self._path}"

    def threads(self) -> Iterator[str]:
        with self._open() as db:
            for (thread_id,) in db.execute("SELECT DISTINCT thread_id FROM checkpoints"):
                yield str(thread_id)

    def thread(self, thread_id: str) -> Thread | None:
        with self._open() as db:
            newest = db.execute(
                "SELECT checkpoint_ns, max(checkpoint_id), min(checkpoint_id) FROM checkpoints "
                "WHERE thread_id = ? GROUP BY checkpoint_ns ORDER BY checkpoint_ns",
                (thread_id,),
            ).fetchall()
            heads = [
                HeadRow(
                    namespace, last, FOREIGN_DEVICE, self._made_at(db, thread_id, namespace, last)
                )
                for namespace, last, _ in newest
            ]
            times = [self._made_at(db, thread_id, ns, first) for ns, _, first in newest]
        return Thread(thread_id, min(times), tuple(heads)) if heads else None

    def entries(self, thread_id: str) -> Iterator[Entry]:
        with self._open() as db:
            found = db.execute(
                "SELECT checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata "
                "FROM checkpoints WHERE thread_id = ? ORDER BY checkpoint_id, checkpoint_ns",
                (thread_id,),
            )
            for row in found:
                yield self._foreign(db, thread_id, row).entry()

    def _made_at(self, db: sqlite3.Connection, *place: str) -> float:
        row = db.execute(
            "SELECT checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata "
            "FROM checkpoints WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
            place,
        ).fetchone()
        return self._foreign(db, place[0], row).made_at

    def _foreign(
        self, db: sqlite3.Connection, thread_id: str, row: tuple[Any, ...]
    ) -> ForeignCheckpoint:
        namespace, checkpoint_id, parent_id, type_, checkpoint, metadata = row
        where = f"{self.name}: thread {thread_id!r}, checkpoint {checkpoint_id}"
        fields, values = split(type_ or "json", checkpoint, where)
        # A file that was last written before there were paths lacks the column.
        column = "task_path" if "task_path" in _columns(db, "writes") else "''"
        writes = db.execute(
            f"SELECT task_id, idx, channel, {column}, type, value FROM writes "
            "WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
            (thread_id, namespace, checkpoint_id),
        )
        return ForeignCheckpoint(
            thread_id,
            namespace,
            checkpoint_id,
            parent_id,
            fields,
            values,
            _metadata(metadata, where),
            [
                WriteRow(task_id, idx, channel, path, type_, bytes(data or b""))
                for task_id, idx, channel, path, type_, data in writes
            ],
        )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(_connect(self._path)) as db:
                yield db
        except sqlite3.DatabaseError as error:
            kind = BackendCorrupt if type(error) is sqlite3.DatabaseError else BackendError
            raise kind(f"{self.name} cannot be read ({error})") from error


def _connect(path: Path) -> sqlite3.Connection:
    path = path.absolute()
    side = Path(f"{path}-wal")
    is_used = side.exists() and side.stat().st_size > 0
    # A reader that may not write leaves SQLite's side files behind. One that may moves what they hold into the file.
    mode = "ro" if is_used or not os.access(path.parent, os.W_OK) else "rw"
    uri = f"file:{quote(str(path))}?mode={mode}"
    db = sqlite3.connect(uri, uri=True, timeout=_BUSY, check_same_thread=False)
    db.execute("PRAGMA query_only = ON")
    return db


def _columns(db: sqlite3.Connection, table: str) -> set[str]:
    return {column[1] for column in db.execute(f"PRAGMA table_info({table})")}


def _metadata(stored: bytes | str | None, where: str) -> dict[str, Any]:
    try:
        found = json.loads(stored) if stored else {}
    except ValueError as error:
        raise DeserializationError(f"{where}: its metadata cannot be read ({error})") from error
    return found if isinstance(found, dict) else {}
