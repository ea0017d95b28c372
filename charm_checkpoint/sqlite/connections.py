"""SQLite connections of one file: made private, shared between threads, never across a fork."""

from __future__ import annotations

import errno
import json
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from charm_checkpoint.errors import (
    BackendCorrupt,
    BackendError,
    BackendFull,
    BackendReadOnly,
    BackendUnavailable,
)
from charm_checkpoint.forks import ForkAware
from charm_checkpoint.sqlite import schema

logger = logging.getLogger("charm_checkpoint.sqlite")

_IDLE_READERS = 8
# Seconds a fork waits for reads of other threads to end.
_FORK_PATIENCE = 10.0
_creating = threading.Lock()


class _Connection(sqlite3.Connection):
    """One that can be referred to weakly."""


class Connections(ForkAware):
    """Hands out one writer at a time and readers as needed, all on one file.

    Args:
        path: The file; it and its folder are made when missing, readable by the owner only.
        busy_timeout: Seconds to wait for another process's transaction.
        vfs: SQLite's VFS by name, `"unix-dotfile"` for file systems without POSIX locks.
        kind: What the file holds.
        on_rollback: Called when a write transaction did not come to its end.
    """

    def __init__(
        self,
        path: Path,
        *,
        busy_timeout: float,
        vfs: str | None,
        kind: schema.Kind,
        on_rollback: Callable[[], object],
    ) -> None:
        super().__init__()
        self._kind = kind
        self._on_rollback = on_rollback
        self.path = path
        self.name = f"sqlite:{path}"
        self.journal_mode = ""
        self._busy_timeout = busy_timeout
        self._vfs = vfs
        self._reset()

    def _reset(self) -> None:
        self._write_lock = threading.Lock()
        # Taken only by `with self._pool`: a condition's own `with` can be interrupted (Ctrl-C) while it holds the lock.
        self._pool = threading.Lock()
        self._returned = threading.Condition(self._pool)
        self._writer: _Connection | None = None
        self._readers: list[_Connection] = []
        # Weak, so that one which an interrupt kept from being given back does not count for ever.
        self._lent: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._forking = False

    # SQLite keeps its file locks per process in tables of its own, which a child inherits while the locks themselves
    # stay behind: a connection open at the fork would let both believe the file is theirs. So none is.

    def before_fork(self) -> None:
        self._write_lock.acquire()
        self._pool.acquire()
        self._forking = True
        if not self._returned.wait_for(lambda: not len(self._lent), _FORK_PATIENCE):
            logger.warning(
                "%s is still being read at a fork; do not use it in the child", self.name
            )
        self._close_all()

    def after_fork_in_parent(self) -> None:
        self._forking = False
        self._returned.notify_all()
        self._pool.release()
        self._write_lock.release()

    def after_fork_in_child(self) -> None:
        global _creating
        _creating = threading.Lock()
        self._reset()

    @contextmanager
    def reading(self) -> Iterator[_Connection]:
        """A connection within a read transaction: everything read is of one moment."""
        lent: list[_Connection] = []
        with self._translated():
            try:
                self._lend(lent)
                lent[0].execute("BEGIN")
                yield lent[0]
            finally:
                self._take_back(lent)

    @contextmanager
    def writing(self) -> Iterator[_Connection]:
        """A connection within a write transaction: committed at the end, rolled back on any exception."""
        with self._write_lock, self._translated():
            connection = self._open_writer()
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                self._on_rollback()
                if connection.in_transaction:
                    connection.rollback()
                raise

    def vacuum(self) -> bool:
        """Write the file anew without what was deleted. Readers go on meanwhile, writers wait.

        Returns:
            False if readers that began before kept the old bytes in the log for longer than `busy_timeout`.
        """
        with self._write_lock, self._translated():
            connection = self._open_writer()
            connection.execute("VACUUM")
            # All of it into the file, and nothing left in the log.
            busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            return not busy

    def size(self) -> int:
        """The bytes of the file and its log."""
        with self._translated():
            files = (self.path, self.path.with_name(f"{self.path.name}-wal"))
            return sum(file.stat().st_size for file in files if file.exists())

    def _open_writer(self) -> _Connection:
        if self._writer is None:
            self._writer = self._connect()
        return self._writer

    def close(self) -> None:
        """Close all connections; the next use opens new ones."""
        with self._write_lock, self._pool:
            self._close_all()

    def _close_all(self) -> None:
        connections = [c for c in (self._writer, *self._readers) if c is not None]
        self._writer, self._readers = None, []
        for connection in connections:
            connection.close()

    def _lend(self, lent: list[_Connection]) -> None:
        """Put a reader into `lent`, where the caller finds it even if Ctrl-C comes before this returns."""
        with self._pool:
            self._returned.wait_for(lambda: not self._forking)
            connection = self._readers.pop() if self._readers else self._connect()
            self._lent.add(connection)
            lent.append(connection)

    def _take_back(self, lent: list[_Connection]) -> None:
        for connection in lent:
            if connection.in_transaction:
                connection.rollback()
            with self._pool:
                if len(self._readers) < _IDLE_READERS:
                    self._readers.append(connection)
                else:
                    connection.close()
                self._lent.discard(connection)
                self._returned.notify_all()

    def _connect(self) -> _Connection:
        # Never made here: the file would be anybody's to read.
        query = "?mode=rw" + (f"&vfs={quote(self._vfs)}" if self._vfs else "")
        connection = sqlite3.connect(
            f"file:{quote(str(self.path))}{query}",
            uri=True,
            timeout=self._busy_timeout,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=64,
            factory=_Connection,
        )
        try:
            # FULL: a commit is on the disk before it is answered.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def prepare(self) -> None:
        """Make the file with its tables, or check it; choose the journal. Safe beside other processes."""
        with self._translated():
            self._create_private_file()
        with self.reading() as connection:
            made = schema.is_ours(connection, self.name, self._kind)
            self.journal_mode = str(connection.execute("PRAGMA journal_mode").fetchone()[0])
        if not made:
            with self.writing() as connection:
                schema.prepare(connection, self.name, self._kind)
        if self.journal_mode != "wal":
            # Only now, since it changes the file: a foreign database has been refused above.
            with self._write_lock, self._translated():
                self.journal_mode = self._set_wal(self._open_writer())
        if self.journal_mode != "wal":
            logger.warning(
                "%s is on a file system where SQLite's write-ahead log cannot work (a network mount?); using a "
                "rollback journal (%s): correct, but readers and writers wait for each other",
                self.name,
                self.journal_mode,
            )

    def _set_wal(self, connection: _Connection) -> str:
        deadline = time.monotonic() + self._busy_timeout
        while True:
            try:
                mode = str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
                break
            except sqlite3.OperationalError:
                # Another process is changing it: SQLite does not wait for that by itself.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        if mode == "wal":
            try:
                connection.execute("SELECT 1 FROM threads LIMIT 1").fetchall()
            except sqlite3.OperationalError:
                # The header changed but the shared memory file cannot be mapped here.
                mode = str(connection.execute("PRAGMA journal_mode = DELETE").fetchone()[0])
        return mode

    def _create_private_file(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Closing any descriptor of a file drops all locks this process has on it, so a file that may be in use is not
        # opened here, and nobody opens a new one before it is closed.
        with _creating, suppress(FileExistsError):
            # SQLite gives the WAL and shared memory files the same mode.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        if not os.access(self.path, os.W_OK):
            # SQLite would open it for reading and leave side files that nobody can write later.
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _translate(error, self.name) from error
        except OSError as error:
            raise _translate_os(error, self.name) from error
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise _damaged(self.name, error) from error


def _translate_os(error: OSError, name: str) -> BackendError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BackendFull(f"{name}: no room left on the device; nothing of this step was stored")
    return BackendReadOnly(
        f"{name} cannot be made or written ({error.strerror}); choose another path or change its permissions"
    )


def _translate(error: sqlite3.Error, name: str) -> BackendError:
    kind = _kind(error)
    if kind in ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"):
        return BackendUnavailable(f"{name} is locked by another process; try again ({error})")
    if kind == "SQLITE_FULL":
        return BackendFull(
            f"{name}: no room left; nothing of this step was stored. Free some space and repeat ({error})"
        )
    if kind in ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM"):
        return BackendReadOnly(
            f"{name} cannot be written ({error}); choose another path or change its permissions"
        )
    if kind in ("SQLITE_CORRUPT", "SQLITE_NOTADB"):
        return _damaged(name, error)
    return BackendError(f"{name}: {error}")


def _damaged(name: str, error: Exception) -> BackendCorrupt:
    return BackendCorrupt(
        f"{name} is damaged or not a SQLite database ({error}); it was left as it is. Restore a backup or give this "
        "store another file"
    )


# Python 3.10 has no error codes on its exceptions; these are the texts of sqlite3_errstr.
_TEXTS = {
    "database is locked": "SQLITE_BUSY",
    "database table is locked": "SQLITE_LOCKED",
    "locking protocol": "SQLITE_PROTOCOL",
    "database or disk is full": "SQLITE_FULL",
    "attempt to write a readonly database": "SQLITE_READONLY",
    "unable to open database file": "SQLITE_CANTOPEN",
    "access permission denied": "SQLITE_PERM",
    "database disk image is malformed": "SQLITE_CORRUPT",
    "file is not a database": "SQLITE_NOTADB",
}


def _kind(error: sqlite3.Error) -> str:
    """The primary result code by name: `SQLITE_BUSY_SNAPSHOT` is `SQLITE_BUSY`."""
    name = getattr(error, "sqlite_errorname", None) or _TEXTS.get(str(error), "")
    return "_".join(name.split("_")[:2])
