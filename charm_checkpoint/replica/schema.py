"""The tables that a replica's file has beside the threads: what waits to be sent, what the remote is known to have."""

from __future__ import annotations

from charm_checkpoint.sqlite.schema import THREADS, Kind

__all__ = ["REPLICA", "TABLES_OF_A_THREAD"]

_TABLES = """
CREATE TABLE IF NOT EXISTS outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    thread_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    namespace TEXT NOT NULL,
    checkpoint_id TEXT NOT NULL,
    task_id TEXT NOT NULL,
    detail TEXT NOT NULL,
    size INTEGER NOT NULL,
    at REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS outbox_by_thread ON outbox (thread_id);
CREATE INDEX IF NOT EXISTS outbox_lost ON outbox (thread_id) WHERE kind = 'lost';

CREATE TABLE IF NOT EXISTS sent (
    thread_id TEXT NOT NULL PRIMARY KEY,
    seq INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS marks (
    thread_id TEXT NOT NULL,
    namespace TEXT NOT NULL,
    checkpoint_id TEXT NOT NULL,
    device TEXT NOT NULL,
    moved_at REAL NOT NULL,
    writes TEXT,
    PRIMARY KEY (thread_id, namespace)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS lineages (
    thread_id TEXT NOT NULL,
    namespace TEXT NOT NULL,
    checkpoint_id TEXT NOT NULL,
    channels TEXT NOT NULL,
    ancestors TEXT NOT NULL,
    PRIMARY KEY (thread_id, namespace, checkpoint_id)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS conflicts (
    thread_id TEXT NOT NULL,
    namespace TEXT NOT NULL,
    first_id TEXT NOT NULL,
    tip_id TEXT NOT NULL,
    head_id TEXT NOT NULL,
    head_device TEXT NOT NULL,
    head_moved_at REAL NOT NULL,
    noticed_at REAL NOT NULL,
    PRIMARY KEY (thread_id, namespace, first_id)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS state (
    key TEXT NOT NULL PRIMARY KEY,
    value TEXT
) WITHOUT ROWID;
"""

REPLICA = Kind(0x43687252, THREADS.tables + _TABLES)  # "ChrR"

TABLES_OF_A_THREAD = ("marks", "lineages")
