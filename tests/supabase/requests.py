"""Requests as anybody can make them, without the real client, and functions to call."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from tests.supabase.gateway import SERVICE_KEY

if TYPE_CHECKING:
    from tests.supabase.conftest import Project

__all__ = ["FUNCTIONS", "USER", "Reply", "ask"]

USER = "6f1c9e0a-0000-4000-8000-00000000000a"

FUNCTIONS = """
CREATE TABLE notes (id int PRIMARY KEY, owner uuid DEFAULT auth.uid(), text text NOT NULL);
ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON notes TO authenticated USING (owner = auth.uid()) WITH CHECK (owner = auth.uid());
CREATE TABLE locked (id int);
REVOKE ALL ON locked FROM PUBLIC, anon, authenticated, service_role;
CREATE SCHEMA private;
CREATE TABLE private.hidden (id int);

CREATE FUNCTION add(a int, b int DEFAULT 10) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT a + b';
CREATE FUNCTION echo(value jsonb) RETURNS jsonb LANGUAGE sql STABLE AS 'SELECT value';
CREATE FUNCTION echo_text(value text) RETURNS text LANGUAGE sql STABLE AS 'SELECT value';
CREATE FUNCTION whole(json) RETURNS json LANGUAGE sql STABLE AS 'SELECT $1';
CREATE FUNCTION numbers(n int) RETURNS SETOF int LANGUAGE sql STABLE AS 'SELECT generate_series(1, n)';
CREATE FUNCTION pairs(n int) RETURNS TABLE (a int, b int) LANGUAGE sql STABLE AS
    'SELECT i, i * 2 FROM generate_series(1, n) i';
CREATE FUNCTION array_of(n int) RETURNS jsonb LANGUAGE sql STABLE AS
    'SELECT jsonb_agg(i) FROM generate_series(1, n) i';
CREATE FUNCTION one_note(id int) RETURNS notes LANGUAGE sql STABLE AS 'SELECT n FROM notes n WHERE n.id = $1';
CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION nil() RETURNS text LANGUAGE sql STABLE AS 'SELECT NULL::text';
CREATE FUNCTION setting(name text) RETURNS text LANGUAGE sql STABLE AS 'SELECT current_setting(name, true)';
CREATE FUNCTION me() RETURNS jsonb LANGUAGE sql STABLE AS
    $$SELECT jsonb_build_object('user', current_user, 'uid', auth.uid(), 'role', auth.role(), 'jwt', auth.jwt())$$;
CREATE FUNCTION keep(id int, text text) RETURNS void LANGUAGE sql AS 'INSERT INTO notes VALUES (id, auth.uid(), text)';
CREATE FUNCTION keep_stable(id int) RETURNS void LANGUAGE sql STABLE AS $$SELECT keep(id, 'x')$$;
CREATE FUNCTION fail(state text, said text DEFAULT 'said') RETURNS void LANGUAGE plpgsql AS
    $$BEGIN RAISE EXCEPTION '%', said USING ERRCODE = state, DETAIL = 'detail', HINT = 'hint'; END$$;
CREATE FUNCTION keep_and_fail(id int) RETURNS void LANGUAGE plpgsql AS
    $$BEGIN INSERT INTO notes (id, text) VALUES (id, 'x'); RAISE 'no'; END$$;
CREATE FUNCTION nap(seconds float8) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(seconds)';
CREATE FUNCTION nap_long(seconds float8) RETURNS void LANGUAGE sql SET statement_timeout = '20s' AS
    'SELECT pg_sleep(seconds)';
CREATE FUNCTION same(a int) RETURNS int LANGUAGE sql STABLE AS 'SELECT a';
CREATE FUNCTION same(a text) RETURNS text LANGUAGE sql STABLE AS 'SELECT a';
CREATE FUNCTION mine() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1';
REVOKE EXECUTE ON FUNCTION mine FROM PUBLIC, anon, authenticated;
CREATE FUNCTION isolation() RETURNS text LANGUAGE sql AS $$SELECT current_setting('transaction_isolation')$$;
CREATE FUNCTION serializable() RETURNS text LANGUAGE sql SET default_transaction_isolation = 'serializable' AS
    $$SELECT current_setting('transaction_isolation')$$;
NOTIFY pgrst, 'reload schema';
"""


class Reply(NamedTuple):
    status: int
    body: Any
    headers: httpx.Headers

    @property
    def code(self) -> Any:
        return self.body["code"]


def ask(
    project: Project,
    path: str,
    body: Any = None,
    *,
    key: str | None = SERVICE_KEY,
    bearer: str | None = "",
    method: str | None = None,
    **headers: str,
) -> Reply:
    """A request with a body: POST; without: GET. `bearer=""` means the key."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        sent["apikey"] = key
    if bearer is not None and (bearer or key):
        sent["Authorization"] = f"Bearer {bearer or key}"
    content = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    if content is not None:
        sent.setdefault("Content-Type", "application/json")
    method = method or ("GET" if content is None else "POST")
    said = project.http.request(
        method, f"{project.url}/rest/v1/{path}", content=content, headers=sent
    )
    told = said.json() if said.content and "json" in said.headers["Content-Type"] else said.text
    return Reply(said.status_code, told, said.headers)
