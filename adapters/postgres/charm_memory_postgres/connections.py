"""Postgres connections: opened when needed, looked at before each use, never shared across a fork.

psycopg's own pool connects on threads of its own, which do not live on in a forked child, and keeps the reason to
itself when connecting fails; its check costs a round trip. Here a caller connects itself and looks at the socket only.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from charm_checkpoint.config import mask
from charm_checkpoint.errors import BackendUnavailable, ConfigError
from charm_checkpoint.forks import ForkAware
from charm_memory_postgres.errors import connect_error, translate

if TYPE_CHECKING:
    from psycopg.abc import PQGen

__all__ = ["Connections"]

T = TypeVar("T")

_DEFAULTS: dict[str, Any] = {
    "application_name": "charm-checkpoint",
    # A peer that vanished without a word is noticed within about a minute.
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}

# What a forked child inherited. The sockets are the parent's, so nothing may be said on them, not even good-bye.
_inherited: list[psycopg.Connection[Any]] = []


class _SilentError(psycopg.OperationalError):
    """The server was asked something and says nothing."""


class _Connection(psycopg.Connection[Any]):
    """Gives up on a server that hangs. Its machine goes on taking bytes, so that no TCP timeout notices."""

    patience: float | None = None
    """Seconds without a byte either way while an answer is due; `None`: for ever."""

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        return super().wait(
            _impatient(gen, self.patience) if self.patience else gen, *args, **kwargs
        )


def _impatient(gen: PQGen[T], patience: float) -> PQGen[T]:
    """Stands between psycopg and what it waits for. Nothing is ready only after a tenth of a second of silence."""
    silent_since = 0.0
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if ready:
                silent_since = 0.0
            elif not silent_since:
                silent_since = time.monotonic()
            elif time.monotonic() - silent_since > patience:
                raise _SilentError(f"nothing was heard for {patience:g} s")
            wanted = gen.send(ready)
    except StopIteration as ended:
        return ended.value  # type: ignore[no-any-return]


class Connections(ForkAware):
    """Lends connections in autocommit mode, without prepared statements, at most `size` at a time.

    Args:
        url: A URL or keywords, as libpq takes them.
        size: How many may be open.
        timeout: Seconds to wait for the server to take a connection, or for one that others use.
        patience: Seconds without a byte from the server after which it is taken to hang.

    Raises:
        ConfigError: `url` is not valid.
    """

    def __init__(self, url: str, *, size: int, timeout: float, patience: float = 60.0) -> None:
        super().__init__()
        try:
            given = conninfo_to_dict(url)
        except psycopg.Error as error:
            raise ConfigError(
                f"url {mask(url)!r} is not valid: {mask(str(error).strip(), {'url': url})}"
            ) from error
        milliseconds = str(int(timeout * 1000))
        self._parameters = {
            **_DEFAULTS,
            "connect_timeout": str(max(2, round(timeout))),  # libpq takes no less
            "tcp_user_timeout": milliseconds,
            **given,
            "client_encoding": "UTF8",
        }
        self.name = _name(given)
        self._size = size
        self._timeout = timeout
        self._patience = patience
        self._idle: list[_Connection] = []
        self._reset()

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._idle = []
        self._open = 0

    def after_fork_in_child(self) -> None:
        _inherited.extend(self._idle)
        self._reset()

    @contextmanager
    def lend(self, *, patient: bool = False) -> Iterator[psycopg.Connection[Any]]:
        """A connection that was alive a moment ago, with errors made this project's.

        Args:
            patient: For work that may take any time: wait for ever.

        Raises:
            BackendUnavailable: The server cannot be reached, or says nothing for `patience` seconds, or all connections
                were in use for `timeout` seconds.
            BackendError: The server refused, or as `translate` says.
        """
        connection = self._take()
        connection.patience = None if patient else self._patience
        try:
            yield connection
        except psycopg.Error as error:
            if isinstance(error, _SilentError):
                self.close()  # the others would only be waited for as long
            raise translate(error, self.name) from error
        finally:
            self._give_back(connection)

    def close(self) -> None:
        """Close what is idle; the next use opens anew."""
        with self._changed:
            idle, self._idle = self._idle, []
            self._open -= len(idle)
        for connection in idle:
            connection.close()

    def _take(self) -> _Connection:
        deadline = time.monotonic() + self._timeout
        with self._changed:
            while True:
                if self._idle:
                    connection = self._idle.pop()
                    if _is_alive(connection):
                        return connection
                    connection.close()
                    self._open -= 1
                elif self._open < self._size:
                    self._open += 1
                    break
                elif not self._changed.wait(deadline - time.monotonic()):
                    raise BackendUnavailable(
                        f"{self.name}: all {self._size} connections were in use for {self._timeout:g} s; raise "
                        "pool_size"
                    )
        try:
            return _Connection.connect(autocommit=True, prepare_threshold=None, **self._parameters)
        except BaseException as error:
            self._forget()
            if isinstance(error, psycopg.Error):
                raise connect_error(error, self.name) from error
            raise

    def _give_back(self, connection: _Connection) -> None:
        if connection.info.transaction_status == pq.TransactionStatus.IDLE:
            with self._changed:
                self._idle.append(connection)
                self._changed.notify()
        else:
            connection.close()
            self._forget()

    def _forget(self) -> None:
        with self._changed:
            self._open -= 1
            self._changed.notify()


def _is_alive(connection: psycopg.Connection[Any]) -> bool:
    """Whether nothing says that the server went away. What it had to say before that is read; no round trip."""
    try:
        while _has_news(connection.pgconn.socket):
            connection.pgconn.consume_input()
    except psycopg.Error:
        return False
    return connection.pgconn.status == pq.ConnStatus.OK


def _has_news(socket: int) -> bool:
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(socket, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([socket], [], [], 0)[0])


def _name(given: dict[str, Any]) -> str:
    """Where the database is, for people."""
    host = given.get("host") or given.get("hostaddr") or "localhost"
    port = f":{given['port']}" if given.get("port") else ""
    return f"postgresql://{host}{port}/{given.get('dbname') or ''}"
