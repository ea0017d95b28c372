"""Postgres's errors as this project's, told apart by SQLSTATE."""

from __future__ import annotations

import re

import psycopg

from charm_checkpoint.config import mask
from charm_checkpoint.errors import (
    BackendCorrupt,
    BackendError,
    BackendFull,
    BackendReadOnly,
    BackendUnavailable,
)
from charm_memory_postgres.states import error_of

__all__ = ["NOT_THE_BASE", "connect_error", "translate"]

NOT_THE_BASE = "CH001"
"""Raised by `charm_put_checkpoint_v1`: the server does not hold what a value was sent as a change to."""

# libpq has no codes for connections that fail, only the server's text. A server that refuses is final, unless it says
# that it is starting, stopping or busy; in a language not known here, it is taken as passing.
_REFUSED = re.compile(
    r"FATAL: (?!.*(start|shut|recover|too many|slots|accept|terminat|crash))", re.IGNORECASE
)


def translate(error: psycopg.Error, name: str) -> BackendError:
    """Make this project's error of one that a statement raised."""
    told = mask(str(error).strip())
    state = error.sqlstate or ""
    if not state and isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
        return BackendUnavailable(f"{name}: the connection was lost ({told})")
    kind = error_of(state)
    if kind is BackendUnavailable:
        return kind(f"{name} cannot answer now ({told})")
    if kind is BackendFull:
        return kind(f"{name} has no room left; nothing of this step was stored ({told})")
    if kind is BackendReadOnly:
        return kind(
            f"{name} cannot be written ({told}). A standby is read only; a role needs SELECT, INSERT, UPDATE and "
            "DELETE on the tables, and EXECUTE on the charm_ functions, which is what `charm-checkpoint sql postgres "
            "--role` grants"
        )
    if kind is BackendCorrupt:
        return kind(
            f"{name}: the tables are damaged, were changed by hand, or come from another release ({told})"
        )
    return BackendError(f"{name}: {told}")


def connect_error(error: psycopg.Error, name: str) -> BackendError:
    """Make this project's error of a connection that could not be made."""
    told = mask(str(error).strip())
    if _REFUSED.search(told):
        return BackendError(f"{name} refused the connection ({told})")
    return BackendUnavailable(f"{name} cannot be reached ({told})")
