"""A stand-in for PostgREST, a Supabase project's REST interface: its rules over a real Postgres.

It is not PostgREST, which no package registry has. It does `GET` and `POST` of `/rest/v1/rpc/<function>`, and `GET` of
`/rest/v1/<table>` as far as is needed to show what cannot be read; everything else that PostgREST can do is answered
with 501. The rules are those of PostgREST's reference (pages "Functions as RPC", "Transactions", "Errors",
"Authentication", "Schema Cache", "Configuration") and are tested against them in `test_postgrest`; nothing here knows
who its client is, and who may do what is Postgres's affair alone. Where Supabase is kinder, this is strict: the schema
cache is only read again when a `NOTIFY pgrst` says so, which a project's event triggers otherwise do.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import psycopg
from psycopg import pq

from tests.supabase.catalog import (
    Cache,
    Routine,
    call_sql,
    read_cache,
    refusal,
    status_of,
    table_sql,
)
from tests.supabase.faults import JSON, Answer
from tests.supabase.tokens import SECRET, TokenError, claims_of

__all__ = ["PostgREST", "Request"]

_NOT_DONE = ("select", "columns", "order", "limit", "offset", "and", "or", "on_conflict")


class _Refused(Exception):
    """An answer of PostgREST's own."""

    def __init__(self, status: int, body: dict[str, Any], **headers: str) -> None:
        super().__init__(status, body)
        self.answer = Answer(status, json.dumps(body).encode(), {**JSON, **headers})


class Request(NamedTuple):
    method: str
    path: str
    """Behind `/rest/v1/`, without the query."""
    query: list[tuple[str, str]]
    headers: dict[str, str]
    """By names in lower case."""
    body: bytes


class PostgREST:
    """Answers requests. Use as a context manager.

    Args:
        database: A URL of the database, for the role `authenticator`.
        schemas: Those that can be reached, the default first.
        max_rows: How many rows a set is cut to.
        pool_size: Connections at most.
    """

    def __init__(
        self,
        database: str,
        *,
        schemas: tuple[str, ...] = ("public", "graphql_public"),
        max_rows: int = 1000,
        pool_size: int = 10,
    ) -> None:
        self._database = database
        self.schemas = schemas
        self.max_rows = max_rows
        self.pool_timeout = 10.0
        self.skew = 0.0
        """Seconds that this server's clock is ahead."""
        self.secret = SECRET
        """What tokens are signed with."""
        self._pool: queue.LifoQueue[psycopg.Connection | None] = queue.LifoQueue()
        for _ in range(pool_size):
            self._pool.put(None)
        self._stale = threading.Event()
        self._cache_lock = threading.Lock()

    def __enter__(self) -> PostgREST:
        self._listener = psycopg.connect(self._database, autocommit=True)
        self._listener.add_notify_handler(self._notified)
        self._listener.execute("LISTEN pgrst")
        self.cache: Cache = read_cache(self._listener, self.schemas)
        return self

    def __exit__(self, *_: object) -> None:
        while not self._pool.empty():
            connection = self._pool.get()
            if connection is not None:
                connection.close()
        self._listener.close()

    def reset(self) -> None:
        """Undo what a test has set."""
        self.max_rows, self.skew, self.secret = 1000, 0.0, SECRET
        with self._cache_lock:
            self.cache = read_cache(self._listener, self.schemas)

    def reconnect(self) -> None:
        """Leave the connections that nobody uses to what they are, and open others when needed."""
        for connection in [self._pool.get() for _ in range(self._pool.qsize())]:
            if connection is not None:
                connection.close()
            self._pool.put(None)

    # -- a request -------------------------------------------------------------------------------------------------

    def answer(self, request: Request) -> Answer:
        """What PostgREST has to say to a request."""
        try:
            claims = self._claims(request)
            role = str(claims.get("role") or "anon")
            schema = self._schema(request)
            kind, _, name = request.path.rpartition("/")
            if kind == "rpc":
                return self._rpc(request, {**claims, "role": role}, schema, name)
            if kind or not name:
                raise _Refused(404, refusal("PGRST125", "Invalid path specified in request URL"))
            return self._table(request, {**claims, "role": role}, schema, name)
        except _Refused as refused:
            return refused.answer

    def _claims(self, request: Request) -> dict[str, Any]:
        scheme, _, said = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return {}
        try:
            return claims_of(said.strip(), now=time.time() + self.skew, secret=self.secret)
        except TokenError as error:
            code, message = error.args
            told = f'Bearer error="invalid_token", error_description="{message}"'
            raise _Refused(401, refusal(code, message), **{"WWW-Authenticate": told}) from None

    def _schema(self, request: Request) -> str:
        header = "accept-profile" if request.method in ("GET", "HEAD") else "content-profile"
        schema = request.headers.get(header, self.schemas[0])
        if schema not in self.schemas:
            hint = f"Only the following schemas are exposed: {', '.join(self.schemas)}"
            raise _Refused(406, refusal("PGRST106", f"Invalid schema: {schema}", hint=hint))
        return schema

    def _rpc(self, request: Request, claims: dict[str, Any], schema: str, name: str) -> Answer:
        if request.method not in ("GET", "HEAD", "POST"):
            message = f"Cannot use the {request.method} method on RPC"
            raise _Refused(405, refusal("PGRST101", message))
        post = request.method == "POST"
        arguments = _body(request) if post else _query(request)
        names = frozenset(arguments)
        found = self._fresh_cache().find(schema, name, names, post=post)
        if len(found) != 1:
            raise _not_one(found, schema, name, names)
        [routine] = found
        values = {"body": request.body.decode() or "{}"} if post else arguments
        mode = "READ WRITE" if post and routine.volatility == "v" else "READ ONLY"
        statement = call_sql(routine, names, post=post)
        text = self._run(request, claims, schema, mode, routine.settings, statement, values)
        if routine.is_void:
            return Answer(204, b"")
        return Answer(200, text.encode(), JSON)

    def _table(self, request: Request, claims: dict[str, Any], schema: str, name: str) -> Answer:
        if (schema, name) not in self._fresh_cache().tables:
            message = f"Could not find the table '{schema}.{name}' in the schema cache"
            raise _Refused(404, refusal("PGRST205", message))
        if request.method not in ("GET", "HEAD"):
            raise _Refused(501, {"message": "the stand-in only reads tables"})
        if any(asked != ("select", "*") for asked in request.query):
            raise _Refused(501, {"message": "the stand-in only reads whole tables"})
        text = self._run(request, claims, schema, "READ ONLY", (), table_sql(schema, name), {})
        return Answer(200, text.encode(), JSON)

    # -- the database ----------------------------------------------------------------------------------------------

    def _run(
        self,
        request: Request,
        claims: dict[str, Any],
        schema: str,
        mode: str,
        settings: tuple[tuple[str, str], ...],
        statement: str,
        values: dict[str, Any],
    ) -> str:
        """Run a statement in a transaction of its own, as the role that the claims name."""
        role = claims["role"]
        path = ", ".join(f'"{each}"' for each in (schema, "public", "extensions"))
        local = [
            ("search_path", path),
            *self.cache.role_settings.get(role, {}).items(),
            ("role", role),
            ("request.jwt.claims", json.dumps(claims)),
            ("request.method", request.method),
            ("request.path", f"/{request.path}"),
            ("request.headers", json.dumps(request.headers)),
            ("request.cookies", "{}"),
            *settings,
        ]
        isolation = dict(settings).get("default_transaction_isolation", "read committed")
        configured = ", ".join("set_config(%s, %s, true)" for _ in local)
        begin = f"BEGIN ISOLATION LEVEL {isolation} {mode}; SELECT {configured}"
        with self._connection() as connection:
            try:
                flat = [text for pair in local for text in pair]
                psycopg.ClientCursor(connection).execute(begin.encode(), flat)
                values = {**values, "limit": self.max_rows}
                row = connection.execute(statement.encode(), values, prepare=True).fetchone()
                connection.execute("COMMIT")
            except psycopg.Error as error:
                with suppress(psycopg.Error):
                    connection.execute("ROLLBACK")
                raise _failed(error, anonymous=role == "anon") from error
        assert row is not None
        return str(row[0])

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection]:
        try:
            connection = self._pool.get(timeout=self.pool_timeout)
        except queue.Empty:
            message = "Timed out acquiring connection from connection pool."
            raise _Refused(504, refusal("PGRST003", message)) from None
        try:
            if connection is None:
                connection = psycopg.connect(self._database, autocommit=True)
            yield connection
        except psycopg.OperationalError as error:
            raise _failed(error, anonymous=False) from error
        finally:
            if (
                connection is not None
                and connection.info.transaction_status != pq.TransactionStatus.IDLE
            ):
                connection.close()
                connection = None
            self._pool.put(connection)

    def _notified(self, notice: psycopg.Notify) -> None:
        if notice.payload in ("", "reload schema", "reload config"):
            self._stale.set()

    def _fresh_cache(self) -> Cache:
        """The schema cache, after all notices that were sent before this request."""
        with self._cache_lock:
            self._listener.execute("")  # what there is to hear comes with the answer
            if self._stale.is_set():
                self._stale.clear()
                self.cache = read_cache(self._listener, self.schemas)
            return self.cache


def _body(request: Request) -> dict[str, Any]:
    """What a POST passes, by name."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0]
    if kind != "application/json":
        raise _Refused(501, {"message": "the stand-in takes JSON only"})
    try:
        said = json.loads(request.body or b"{}")
    except ValueError:
        raise _Refused(400, refusal("PGRST102", "Empty or invalid json")) from None
    if not isinstance(said, dict):
        raise _Refused(501, {"message": "the stand-in takes an object of arguments only"})
    return said


def _query(request: Request) -> dict[str, Any]:
    """What a GET passes, by name."""
    passed = dict(request.query)
    if any(name in passed for name in _NOT_DONE):
        raise _Refused(501, {"message": "the stand-in does not filter results"})
    return passed


def _not_one(found: list[Routine], schema: str, name: str, names: frozenset[str]) -> _Refused:
    place = f"{schema}.{name}"
    if found:
        message = f"Could not choose the best candidate function between: {place}"
        return _Refused(300, refusal("PGRST203", message))
    given = f"({', '.join(sorted(names))})" if names else " without parameters"
    message = f"Could not find the function {place}{given} in the schema cache"
    return _Refused(404, refusal("PGRST202", message, "Searched for the function " + place))


def _failed(error: psycopg.Error, *, anonymous: bool) -> _Refused:
    """A database error as PostgREST tells it."""
    code, message = error.sqlstate, error.diag.message_primary
    if code is None or message is None:  # the connection, not a statement
        told = refusal("PGRST001", "Database client error. Retrying the connection.", str(error))
        return _Refused(503, told, **{"Retry-After": "1"})
    status = status_of(code, message, anonymous=anonymous)
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(status, {})
    told = refusal(code, message, error.diag.message_detail, error.diag.message_hint)
    return _Refused(status, told, **headers)
