"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["describe"]

_DISTRIBUTIONS = (
    "charm-checkpoint",
    "charm-memory-postgres",
    "charm-memory-redis",
    "langgraph",
    "langgraph-checkpoint",
    "langgraph-checkpoint-sqlite",
    "langgraph-checkpoint-postgres",
    "langgraph-checkpoint-redis",
    "langgraph-checkpoint-plainredis",
    "psycopg",
    "redis",
    "langchain-core",
)


def describe(base: Path | None) -> dict[str, Any]:
    """Versions, cores, load, and what a forced write to the folder costs."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "sqlite": sqlite3.sqlite_version,
        "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else [],
        "fsync_us": round(_fsync_microseconds(base)),
        "distributions": {name: _version(name) for name in _DISTRIBUTIONS},
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _fsync_microseconds(base: Path | None) -> float:
    took = []
    with tempfile.TemporaryFile(dir=base, buffering=0) as file:
        for _ in range(50):
            file.write(bytes(4096))
            began = time.perf_counter()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - began)
    return 1e6 * statistics.median(took)
