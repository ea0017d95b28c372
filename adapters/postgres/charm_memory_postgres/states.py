"""What Postgres's SQLSTATEs mean here, however they were told."""

from __future__ import annotations

from charm_checkpoint.errors import (
    BackendCorrupt,
    BackendError,
    BackendFull,
    BackendReadOnly,
    BackendUnavailable,
)

__all__ = ["error_of"]

# Classes and codes after which the same call may succeed: the connection or the server went away, another transaction
# was in the way, or an administrator cancelled.
_PASSING = (
    "08",
    "40001",
    "40003",
    "40P01",
    "53300",
    "55P03",
    "57014",
    "57P01",
    "57P02",
    "57P03",
    "57P05",
    "25P03",
)
_FULL = ("53100", "53200", "53400", "54023")
_READ_ONLY = ("25006", "42501")
_CORRUPT = ("3F000", "42P01", "42703", "42883", "XX001", "XX002", "CH003")


def error_of(state: str) -> type[BackendError]:
    """Tell which error of this project's an SQLSTATE stands for."""
    if state.startswith(_PASSING):
        return BackendUnavailable
    for states, kind in (
        (_FULL, BackendFull),
        (_READ_ONLY, BackendReadOnly),
        (_CORRUPT, BackendCorrupt),
    ):
        if state in states:
            return kind
    return BackendError
