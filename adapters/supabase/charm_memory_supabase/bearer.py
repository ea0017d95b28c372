"""Who asks: a user's access token, kept until the project refuses it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable

from charm_checkpoint.errors import BackendError, BackendUnavailable, CheckpointStoreError
from charm_checkpoint.forks import ForkAware

__all__ = ["Bearer", "Token"]

Token = str | Callable[[], str]
"""A user's access token, or what returns a fresh one."""

# What comes of `client.auth.get_session().access_token` and the like where there is no session.
_NO_SESSION = (AttributeError, TypeError, LookupError)
# Of HTTP's statuses that say no, those that another time may not.
_PASSING = (408, 425, 429)


class Bearer(ForkAware):
    """Has a token when one is asked for. Usable from any thread; tokens are fetched by one at a time.

    Args:
        url: The project's, for messages.
        token: `None`: none is ever needed, as the key says who asks.
        owner: The user whose tokens have to be. `None`: that of the first.
    """

    def __init__(self, url: str, token: Token | None, owner: str | None) -> None:
        super().__init__()
        self._url = url
        self._source = token
        self.owner = owner or (_subject(token) if isinstance(token, str) else None)
        """Whose tokens these are, as far as that is known."""
        self.kept: str | None = None
        """The one in use."""
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()

    def token(self, refused: str | None = None) -> str | None:
        """A token other than the one that the project `refused`, if another can be had.

        Raises:
            BackendUnavailable: There is none to be had now.
            BackendError: Nobody is signed in, or somebody else.
        """
        if self._source is None:
            return None
        with self._lock:
            if self.kept is None or self.kept == refused:
                # What was refused is not tried again, whatever comes of this.
                self.kept = None
                self.kept = self._fetch()
            return self.kept

    def _fetch(self) -> str:
        try:
            said: object = self._source() if callable(self._source) else self._source
        except Exception as error:
            if _is_signed_out(error):
                raise BackendError(
                    f"{self._url}: access_token says that nobody is signed in; sign in again"
                ) from error
            # To get a fresh one takes a network, mostly.
            raise BackendUnavailable(
                f"{self._url}: access_token has failed to return one ({type(error).__name__})"
            ) from error
        token = said.strip() if isinstance(said, str) else ""
        if not token:
            raise BackendError(f"{self._url}: access_token has returned no token; sign in again")
        if not token.isascii() or len(token.split()) != 1:
            raise BackendError(f"{self._url}: what access_token has returned is no token")
        user = _subject(token)
        if None not in (self.owner, user) and user != self.owner:
            raise BackendError(
                f"{self._url}: the access token is of another user than this store was opened for; open one for each"
            )
        self.owner = self.owner or user
        return token


def _is_signed_out(error: Exception) -> bool:
    """Whether a user has to sign in again, rather than a network to come back."""
    if isinstance(error, CheckpointStoreError):
        return not isinstance(error, BackendUnavailable)
    status = getattr(error, "status", 0)  # of errors of Supabase's auth client
    is_refused = isinstance(status, int) and 400 <= status < 500 and status not in _PASSING
    return is_refused or isinstance(error, _NO_SESSION)


def _subject(token: str) -> str | None:
    """The user of a token; the project looks at whether it is a good one."""
    try:
        claims = token.split(".")[1]
        user = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["sub"]
    except (ValueError, LookupError, TypeError):
        return None
    return user if isinstance(user, str) and user else None
