"""The `redis` provider: threads in Redis or Valkey, without modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from charm_memory_redis.backend import RedisBackend
    from charm_memory_redis.store import RedisMemory

__all__ = ["RedisBackend", "RedisMemory"]

_HOMES = {"RedisBackend": "backend", "RedisMemory": "store"}


def __getattr__(name: str) -> Any:
    # The driver is imported by whoever opens a store, not by whoever looks at what is installed.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
