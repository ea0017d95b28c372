"""What a project answers instead of what was asked, as this project's errors."""

from __future__ import annotations

from typing import NamedTuple

from charm_checkpoint.errors import (
    BackendCorrupt,
    BackendError,
    BackendFull,
    BackendReadOnly,
    BackendUnavailable,
)
from charm_memory_postgres.states import error_of

__all__ = ["TO_RUN", "BaseLost", "Refusal", "TooSlow", "is_expired", "translate"]

TO_RUN = (
    "Save what `charm-checkpoint sql supabase` prints as supabase/migrations/<time>_charm_checkpoint.sql and run "
    "`supabase db push`, or run it in the SQL editor"
)

_NOT_THE_BASE = "CH001"
_SOMEBODY_ELSES = "CH002"

# Where Postgres was not asked, or did not answer: passing, until it lasts.
_PASSING = (408, 425, 429)
_BAD_TOKEN = ("PGRST301", "PGRST302", "PGRST303")
# No such function, or schema; or not what it calls.
_NOT_MADE = ("PGRST202", "PGRST106", "42883", "42P01", "3F000")
_TOO_LARGE = 413
_LONGEST = 300


class TooSlow(BackendUnavailable):
    """The project's statement_timeout ended it, and nothing was done; less at once may be done in time."""


class BaseLost(BackendError):
    """The server does not hold what a value was sent as a change to."""


class Refusal(NamedTuple):
    """An answer that says no."""

    status: int
    """HTTP's."""
    code: str
    """PostgREST's or Postgres's; empty if there was none."""
    message: str
    """Without secrets."""
    retry_after: float = 0.0
    """Seconds for which the project wants to be left alone."""
    is_json: bool = True
    """Else it is a page: something on the way answered in the project's place."""


def is_expired(refusal: Refusal) -> bool:
    """Whether another token might be taken."""
    return refusal.status == 401 and refusal.is_json and refusal.code in ("", *_BAD_TOKEN)


def translate(refusal: Refusal, name: str) -> BackendError:
    """Make this project's error of what the project at `name` said."""
    status, code, message, retry_after, is_json = refusal
    message = " ".join(message.split())
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]}…"
    said = f"{code or status}: {message}"
    is_state = len(code) == 5
    is_passing = status in _PASSING or (status >= 500 and not is_state)
    is_redirect = 300 <= status < 400 and not code
    if (is_redirect or not is_json) and not is_passing and status != _TOO_LARGE:
        return BackendUnavailable(
            f"{name}: what answered is not the project (status {status}). Does this network want somebody to sign in "
            "first? Or is this not the URL of a Supabase project?"
        )
    if code == _NOT_THE_BASE:
        return BaseLost(f"{name}: {said}")
    if code == _SOMEBODY_ELSES:
        return BackendReadOnly(
            f"{name}: {message}; nothing of this step was stored. Use another thread id ({code})"
        )
    if code in _NOT_MADE:
        return BackendReadOnly(f"{name} has not the functions of this release ({said}). {TO_RUN}")
    if code in _BAD_TOKEN or (status == 401 and not code):
        return BackendError(
            f"{name} refused the key or the access token ({said}). A server needs the service key; a device the "
            "project's public key and its user's access_token, best as a function that returns a fresh one"
        )
    if code == "42501":
        return BackendReadOnly(
            f"{name} does not let whoever asks do that ({said}): sign the user in and give the access_token, or use "
            "the service key; if rights were changed by hand, run again what `charm-checkpoint sql supabase` prints"
        )
    if status == _TOO_LARGE:
        return BackendError(
            f"{name} takes no request as large as this one ({said}); lower max_request, or store less in one step"
        )
    if code == "57014":
        return TooSlow(f"{name} took longer than its statement_timeout allows ({said})")
    kind = error_of(code) if is_state else BackendError
    if is_passing:
        kind = BackendUnavailable
    elif not is_state:
        return BackendError(f"{name}: {said}. Is this the URL of a Supabase project?")
    hint = {
        BackendUnavailable: " cannot answer now",
        BackendFull: " has no room left; nothing of this step was stored",
        BackendReadOnly: " cannot be written; a project whose disk is full is read only",
        BackendCorrupt: ": the tables are damaged, were changed by hand, or come from another release",
    }.get(kind, " failed")
    error = kind(f"{name}{hint} ({said})")
    if isinstance(error, BackendUnavailable):
        error.retry_after = retry_after
    return error
