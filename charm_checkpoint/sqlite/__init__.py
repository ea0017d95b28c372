"""Threads in a local SQLite file: the `local` provider."""

from __future__ import annotations

from charm_checkpoint.sqlite.backend import SqliteBackend
from charm_checkpoint.sqlite.store import LocalMemory

__all__ = ["LocalMemory", "SqliteBackend"]
