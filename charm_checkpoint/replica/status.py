"""What a replica tells of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["SyncStatus", "Waiting"]


class Waiting(NamedTuple):
    """What is not at the remote yet."""

    entries: int = 0
    """Checkpoints, tasks' writes and deletions."""
    bytes: int = 0
    since: float | None = None
    """When the oldest was committed here, seconds since the epoch."""
    error: str | None = None
    """Why the remote does not take it, where that is not for being away."""


class SyncStatus(NamedTuple):
    """How far the remote is behind this device."""

    remote: str
    path: str
    """This device's file."""
    waiting: Waiting
    threads: Mapping[str, Waiting]
    """By thread; threads with nothing to send are left out."""
    last_success: float | None
    """When the remote last took something, seconds since the epoch."""
    last_error: str | None
    offline_since: float | None
    """Seconds since the epoch; `None` while the remote answers."""
    conflicts: int
    """Branches that wait for somebody to decide."""
