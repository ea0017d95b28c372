"""The `postgres` provider: threads in a Postgres database, beside any other LangGraph saver's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from charm_memory_postgres.backend import PostgresBackend
    from charm_memory_postgres.store import PostgresMemory

__all__ = ["PostgresBackend", "PostgresMemory"]

_HOMES = {"PostgresBackend": "backend", "PostgresMemory": "store"}


def __getattr__(name: str) -> Any:
    # The driver is imported by whoever opens a store, not by whoever looks at what is installed.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
