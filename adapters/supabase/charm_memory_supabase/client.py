"""Calls of a project's functions over HTTPS, through the `supabase` client."""

from __future__ import annotations

import ssl
import threading
import time
import weakref
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

import httpx
from postgrest.exceptions import APIError
from supabase import Client, ClientOptions, create_client

from charm_checkpoint.config import mask
from charm_checkpoint.errors import BackendError, BackendUnavailable, ConfigError
from charm_checkpoint.forks import ForkAware
from charm_memory_supabase.bearer import Bearer
from charm_memory_supabase.errors import Refusal, is_expired, translate

__all__ = ["Project"]

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
        bearer: Whose tokens are shown beside the key.
        acts_for: With the service key: the user to act as.
        timeout: Seconds to wait for an answer.
        size: Connections at most.
    """

    def __init__(
        self,
        url: str,
        key: str,
        bearer: Bearer,
        *,
        acts_for: str | None,
        timeout: float,
        size: int,
    ) -> None:
        super().__init__()
        self.url = url
        self._key = key
        self._bearer = bearer
        self._acts_for = acts_for
        self._timeout = timeout
        self._size = size
        self._closings = 0
        self._http: httpx.Client | None = None
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._answer = threading.local()
        self._request = threading.local()
        self._client: Client | None = None

    def after_fork_in_child(self) -> None:
        if self._http is not None:
            self._closer.detach()
            _inherited.append(self._http)
            self._http = None
        self._reset()

    def close(self) -> None:
        """Close what is open, and end calls that are under way; the next call opens anew."""
        with self._lock:
            self._closings += 1
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
        closings = self._closings
        token = self._bearer.token()
        try:
            return self._ask(closings, token, function, request)
        except APIError as error:
            refusal = self._refusal(error)
            another = self._bearer.token(refused=token) if is_expired(refusal) else token
            if another == token:
                raise translate(refusal, self.url) from error
        try:
            return self._ask(closings, another, function, request)
        except APIError as error:
            raise translate(self._refusal(error), self.url) from error

    def exposed(self, tables: dict[str, tuple[str, ...]]) -> Iterator[str]:
        """Tell which of some tables, by schema, the REST interface reads for whoever asks."""
        token = self._bearer.token()
        client = self._opened(self._closings)
        assert self._http is not None
        for schema, names in tables.items():
            headers = {**client.postgrest.headers, "Accept-Profile": schema}
            for name in names:
                self._request.token = token
                try:
                    answer = self._http.head(f"{self.url}/rest/v1/{name}", headers=headers)
                except httpx.HTTPError as error:
                    raise self._lost(error) from error
                if answer.is_success and self._answer.is_json:
                    yield f"{schema}.{name}"

    def _ask(self, closings: int, token: str | None, function: str, request: dict[str, Any]) -> Any:
        client = self._opened(closings)
        self._request.token = token
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
            raise self._closed() from error
        if not self._answer.is_json:
            raise translate(Refusal(self._answer.status, "", "", is_json=False), self.url)
        return answered

    def _lost(self, error: httpx.HTTPError) -> BackendUnavailable:
        told = f"{type(error).__name__} {self._masked(str(error))}".strip()
        if "CERTIFICATE_VERIFY" in told:
            # Final for a project, and passing where a sign-in page stands in its place: who works offline goes on.
            return BackendUnavailable(
                f"{self.url}: what answered has no certificate of the project that this device trusts; nothing was "
                f"sent ({told}). Does this network want somebody to sign in first? Is this device's clock right? The "
                "certificates of a proxy or a project of your own are taken from $SSL_CERT_FILE"
            )
        return BackendUnavailable(f"{self.url} cannot be reached ({told})")

    def _refusal(self, error: APIError) -> Refusal:
        answer = self._answer
        code = str(error.code or "")
        # The client makes up a code and a text where the answer was none of PostgREST's, and its details are a page.
        message = str(error.message or "") or (str(error.details or "") if code else "")
        code = "" if code == str(answer.status) else code
        return Refusal(
            answer.status, code, self._masked(message), answer.retry_after, answer.is_json
        )

    def _masked(self, text: str) -> str:
        return str(mask(text, {"key": self._key, "access_token": self._bearer.kept}))

    def _closed(self) -> BackendUnavailable:
        return BackendUnavailable(f"{self.url}: the store was closed meanwhile")

    # -- opening ---------------------------------------------------------------------------------------------------

    def _opened(self, closings: int) -> Client:
        """The client, for a call that began after so many closings."""
        with self._lock:
            if closings != self._closings:
                raise self._closed()
            if self._client is None:
                self._client = self._open()
            return self._client

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
            event_hooks={"request": [self._show], "response": [self._note]},
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
        self._http = http
        # Whoever forgets to close leaves no open sockets behind. At exit others may still have to write.
        self._closer = weakref.finalize(self, http.close)
        self._closer.atexit = False
        return client

    def _show(self, request: httpx.Request) -> None:
        """Show this thread's token: what the client itself can be told to show is all threads'."""
        token = self._request.token
        if token is not None:
            request.headers["Authorization"] = f"Bearer {token}"

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
