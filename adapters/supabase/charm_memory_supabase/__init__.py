"""The `supabase` provider: threads in a Supabase project, over HTTPS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from charm_memory_supabase.backend import SupabaseBackend
    from charm_memory_supabase.store import SupabaseMemory

__all__ = ["SupabaseBackend", "SupabaseMemory"]

_HOMES = {"SupabaseBackend": "backend", "SupabaseMemory": "store"}


def __getattr__(name: str) -> Any:
    # The client is imported by whoever opens a store, not by whoever looks at what is installed.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
