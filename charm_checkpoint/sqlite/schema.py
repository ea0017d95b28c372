"""The tables of a SQLite thread file, and how a file is recognised as ours."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from charm_checkpoint.errors import BackendCorrupt

FORMAT = 2


class Kind(NamedTuple):
    """A kind of files that this project writes."""

    application_id: int
    """In every file, so that a foreign database is never written to."""
    tables: str


_TABLES = """
CREATE TABLE IF NOT EXISTS threads (
    thread_id TEXT NOT NULL PRIMARY KEY,
    created_at REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS tombstones (
    thread_id TEXT NOT NULL PRIMARY KEY,
    deleted_at REAL NOT NULL,
    deleted_through TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS deleted_firsts (
    thread_id TEXT NOT NULL,
    checkpoint_id TEXT NOT NULL,
    PRIMARY KEY (thread_id, checkpoint_id)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS heads (
    thread_id TEXT NOT NULL,
    namespace TEXT NOT NULL,
    checkpoint_id TEXT NOT NULL,
    device TEXT NOT NULL,
    moved_at REAL NOT NULL,
    PRIMARY KEY (thread_id, namespace)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS checkpoints (
    thread_id TEXT NOT NULL,
    namespace TEXT NOT NULL,
    checkpoint_id TEXT NOT NULL,
    parent_id TEXT,
    format INTEGER NOT NULL,
    body BLOB NOT NULL,
    versions TEXT NOT NULL,
    metadata BLOB NOT NULL,
    run_id TEXT,
    root_id TEXT,
    device TEXT NOT NULL,
    created_at REAL NOT NULL,
    PRIMARY KEY (thread_id, namespace, checkpoint_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS checkpoints_by_run ON checkpoints (run_id) WHERE run_id IS NOT NULL;

CREATE TABLE IF NOT EXISTS blobs (
    thread_id TEXT NOT NULL,
    namespace TEXT NOT NULL,
    version TEXT NOT NULL,
    channel TEXT NOT NULL,
    type TEXT NOT NULL,
    base TEXT,
    depth INTEGER NOT NULL,
    weight INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (thread_id, namespace, version, channel)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS writes (
    thread_id TEXT NOT NULL,
    namespace TEXT NOT NULL,
    checkpoint_id TEXT NOT NULL,
    task_id TEXT NOT NULL,
    idx INTEGER NOT NULL,
    channel TEXT NOT NULL,
    task_path TEXT NOT NULL,
    type TEXT NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (thread_id, namespace, checkpoint_id, task_id, idx)
) WITHOUT ROWID;
"""

THREADS = Kind(0x4368726D, _TABLES)  # "Chrm"

TABLES_OF_A_THREAD = ("threads", "heads", "checkpoints", "blobs", "writes")


def is_ours(connection: sqlite3.Connection, name: str, kind: Kind) -> bool:
    """Whether the file has our tables; False for an empty one, or one of an older release that lacks some.

    Raises:
        BackendCorrupt: The file holds something else or comes from a newer release. It was not changed.
    """
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    if application_id == 0:
        if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            raise BackendCorrupt(
                f"{name} is a SQLite database of another program; it was left as it is. Give this store a file of "
                "its own."
            )
        return False
    if application_id != kind.application_id:
        raise BackendCorrupt(
            f"{name} is a SQLite database of another program or another kind (application id {application_id:#x}, "
            f"not {kind.application_id:#x}); it was left as it is. Give this store a file of its own."
        )
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > FORMAT:
        raise BackendCorrupt(
            f"{name} has format {found}, this release knows {FORMAT}; it was left as it is. Upgrade charm-checkpoint."
        )
    return bool(found == FORMAT)


def prepare(connection: sqlite3.Connection, name: str, kind: Kind) -> None:
    """Make the tables that the file lacks, in the caller's transaction.

    Raises:
        BackendCorrupt: As `is_ours`.
    """
    if is_ours(connection, name, kind):
        return
    for statement in kind.tables.split(";\n"):
        if statement.strip():
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {FORMAT}")
    connection.execute(f"PRAGMA application_id = {kind.application_id}")
