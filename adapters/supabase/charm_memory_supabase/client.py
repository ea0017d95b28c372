"""Calls of a project's functions over HTTPS, through the `supabase` client."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

import httpx
from postgrest.exceptions import APIError
from supabase import Client, ClientOptions, create_client

from charm_checkpoint.config import mask
from charm_checkpoint.errors import (
    BackendError,
    BackendUnavailable,
    CheckpointStoreError,
    ConfigError,
)
from charm_checkpoint.forks import ForkAware
from charm_memory_supabase.errors import Refusal, is_expired, translate

__all__ = ["Project", "Token"]

Token = str | Callable[[], str]
"""Who asks: a user's access token, or what returns a fresh one."""

# Seconds that an idle connection is kept: less than what stands before a project keeps it.
_KEEP = 50.0
# Seconds for which `Retry-After` is heeded.
_LONGEST_PAUSE = 300.0

# What a forked child inherited. The sockets are the parent's, so nothing may be said on them, not even good-bye.
_inherited: list[httpx.Client] = []


class Project(ForkAware):
    """A project's REST interface. Usable from any thread; connects when asked.

    Args:
        url: Where it is, `https://…`.
        key: The project's.
        token: Who asks; `None` for whom the key stands for.
        owner: With a token: the user it has to be of. With the service key alone: the user to act as.
        timeout: Seconds to wait for an answer.
        size: Connections at most.
    """

    def __init__(
        self,
        url: str,
        key: str,
        token: Token | None,
        *,
        owner: str | None,
        timeout: float,
        size: int,
    ) -> None:
        super().__init__()
        self.url = url.rstrip("/")
        self._key = key
        self._token = token
        self._timeout = timeout
        self._size = size
        self._used: str | None = None
        self._owner = owner
        self._acts_for = owner if token is None else None
        self._http: httpx.Client | None = None
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._answer = threading.local()
        self._client: Client | None = None

    def after_fork_in_child(self) -> None:
        if self._http is not None:
            self._closer.detach()
            _inherited.append(self._http)
            self._http = None
        self._reset()

    @property
    def user(self) -> str | None:
        """Whose threads are meant, as far as that is known; `None` for a key that sees all."""
        if self._owner is None and self._token is not None:
            with self._lock:
                self._take_token()
        return self._owner

    def close(self) -> None:
        """Close what is open; the next call opens anew."""
        with self._lock:
            http, self._http, self._client = self._http, None, None
        if http is not None:
            self._closer.detach()
            http.close()

    def call(self, function: str, request: dict[str, Any]) -> Any:
        """Call a function with its one argument, and return what it answers.

        Raises:
            BackendUnavailable: There was no answer; the function may have run.
            BackendError: It did not answer that, as `translate` says; or there is no token to be had.
        """
        if self._acts_for is not None:
            request = {**request, "owner": self._acts_for}
        client, used = self._opened()
        try:
            return self._ask(client, function, request)
        except APIError as error:
            refusal = self._refusal(error)
            if not is_expired(refusal) or not callable(self._token):
                raise translate(refusal, self.url) from error
        self._refresh(client, used)
        try:
            return self._ask(client, function, request)
        except APIError as error:
            raise translate(self._refusal(error), self.url) from error

    def exposed(self, tables: dict[str, tuple[str, ...]]) -> Iterator[str]:
        """Tell which of some tables, by schema, the REST interface reads for whoever asks."""
        client, _ = self._opened()
        assert self._http is not None
        for schema, names in tables.items():
            headers = {**client.postgrest.headers, "Accept-Profile": schema}
            for name in names:
                try:
                    answer = self._http.head(f"{self.url}/rest/v1/{name}", headers=headers)
                except httpx.HTTPError as error:
                    raise self._lost(error) from error
                if answer.is_success:
                    yield f"{schema}.{name}"

    def _ask(self, client: Client, function: str, request: dict[str, Any]) -> Any:
        try:
            answered = client.rpc(function, {"request": request}).execute().data
        except httpx.HTTPError as error:
            raise self._lost(error) from error
        except UnicodeError as error:
            raise BackendError(
                f"{self.url}: an id is no text that can be sent ({error})"
            ) from error
        except RuntimeError as error:
            if not client.postgrest.session.is_closed:
                raise
            raise BackendUnavailable(f"{self.url}: the store was closed meanwhile") from error
        if not self._answer.is_json:
            # Something on the way, such as a hotel's sign-in page, answered in the project's place.
            raise BackendUnavailable(f"{self.url}: what answered is not the project")
        return answered

    def _lost(self, error: httpx.HTTPError) -> BackendError:
        told = f"{type(error).__name__} {self._masked(str(error))}".strip()
        if isinstance(error.__context__, ssl.SSLCertVerificationError) or "CERTIFICATE" in told:
            return BackendError(f"{self.url} is not who it says it is ({told})")
        return BackendUnavailable(f"{self.url} cannot be reached ({told})")

    def _refusal(self, error: APIError) -> Refusal:
        answer = self._answer
        code = str(error.code or "")
        # The client makes up a code and a text where the answer was none of PostgREST's, and its details are a page.
        message = str(error.message or "") or (str(error.details or "") if code else "")
        code = "" if code == str(answer.status) else code
        return Refusal(answer.status, code, self._masked(message), answer.retry_after)

    def _masked(self, text: str) -> str:
        return str(mask(text, {"key": self._key, "access_token": self._used}))

    # -- opening ---------------------------------------------------------------------------------------------------

    def _opened(self) -> tuple[Client, str | None]:
        """The client, and the token that it shows."""
        with self._lock:
            if self._client is None:
                self._take_token()
                self._client = self._open()
            return self._client, self._used

    def _open(self) -> Client:
        limits = httpx.Limits(
            max_connections=self._size,
            max_keepalive_connections=self._size,
            keepalive_expiry=_KEEP,
        )
        http = httpx.Client(
            timeout=self._timeout,
            limits=limits,
            verify=_trusted(),
            event_hooks={"response": [self._note]},
        )
        options = ClientOptions(httpx_client=http, auto_refresh_token=False, persist_session=False)
        try:
            client = create_client(self.url, self._key, options)
        except Exception as error:  # noqa: BLE001 - of its own kinds, and the text may hold what it was given
            http.close()
            told = self._masked(str(error)).replace(self._key, "***")
            raise ConfigError(
                f"{self.url}: the client refused the URL or the key ({told})"
            ) from None
        if self._used is not None:
            client.postgrest.auth(self._used)
        self._http = http
        # Whoever forgets to close leaves no open sockets behind. At exit others may still have to write.
        self._closer = weakref.finalize(self, http.close)
        self._closer.atexit = False
        return client

    def _refresh(self, client: Client, used: str | None) -> None:
        """Take another token, unless another thread just did."""
        with self._lock:
            if self._used == used:
                self._used = None
                self._take_token()
                assert self._used is not None
                client.postgrest.auth(self._used)

    def _take_token(self) -> None:
        """Have a token, if there is to be one. Holds the lock."""
        if self._used is not None or self._token is None:
            return
        try:
            token: object = self._token() if callable(self._token) else self._token
        except Exception as error:
            # To get a fresh one takes a network, mostly. Who is signed out says so by an error of this project's.
            kind = BackendError if isinstance(error, CheckpointStoreError) else BackendUnavailable
            raise kind(f"{self.url}: access_token has failed to return one") from error
        token = token.strip() if isinstance(token, str) else ""
        if not token.isascii() or len(token.split()) != 1:
            raise BackendError(f"{self.url}: access_token is to return a token")
        user = _subject(token)
        if self._owner is not None and user is not None and user != self._owner:
            raise BackendError(
                f"{self.url}: the access token is of another user than this store was opened for; open one for each"
            )
        if self._owner is None:
            self._owner = user
        self._used = token

    def _note(self, response: httpx.Response) -> None:
        """Remember for this thread what the client does not hand on."""
        headers = response.headers
        self._answer.status = response.status_code
        self._answer.is_json = "json" in headers.get("content-type", "")
        self._answer.retry_after = _seconds(headers.get("retry-after", ""))


@cache
def _trusted() -> ssl.SSLContext:
    """Whom this machine trusts: 25 ms to read, so once for all stores of a process."""
    return httpx.create_ssl_context()


def _subject(token: str) -> str | None:
    """The user of a token; the project looks at whether it is a good one."""
    try:
        claims = token.split(".")[1]
        said = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        return str(said["sub"])
    except (ValueError, LookupError, TypeError):
        return None


def _seconds(retry_after: str) -> float:
    """What `Retry-After` says, a number or a date; 0 if nothing."""
    try:
        return _bounded(float(retry_after))
    except ValueError:
        pass
    try:
        return _bounded(parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _bounded(seconds: float) -> float:
    return min(seconds, _LONGEST_PAUSE) if seconds > 0 else 0.0
