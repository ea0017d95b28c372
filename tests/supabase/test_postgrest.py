"""The stand-in does what PostgREST's reference says that PostgREST does. Each case names the page that says it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.supabase.conftest import Project
from tests.supabase.gateway import ANON_KEY, SERVICE_KEY
from tests.supabase.requests import USER, ask
from tests.supabase.tokens import SKEW, token

# -- "Functions as RPC" ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("rpc/add", {"a": 1, "b": 2}, 3),
        ("rpc/add", {"a": 1}, 11),
        ("rpc/add?a=1&b=2", None, 3),
        ("rpc/add?a=1", None, 11),
        ("rpc/echo", {"value": {"a": [1, "é", None]}}, {"a": [1, "é", None]}),
        ("rpc/echo", {"value": None}, None),
        ("rpc/echo_text", {"value": 'it\'s "quoted" \\ %s'}, 'it\'s "quoted" \\ %s'),
        ("rpc/echo_text?value=a%20b", None, "a b"),
        ("rpc/whole", {"any": 1, "name": 2}, {"any": 1, "name": 2}),
        ("rpc/numbers", {"n": 3}, [1, 2, 3]),
        ("rpc/numbers", {"n": 0}, []),
        ("rpc/pairs", {"n": 2}, [{"a": 1, "b": 2}, {"a": 2, "b": 4}]),
        ("rpc/pairs", {"n": 0}, []),
        ("rpc/nil", {}, None),
        ("rpc/nil", b"", None),
        ("rpc/one_note", {"id": 5}, {"id": None, "owner": None, "text": None}),
    ],
)
def test_calls(path: str, body: Any, answer: Any, api: Project) -> None:
    assert ask(api, path, body)[:2] == (200, answer)


def test_a_function_that_returns_nothing(api: Project) -> None:
    """ "Functions as RPC", "Response Format": 204 for void."""
    assert ask(api, "rpc/nothing", {})[:2] == (204, "")
    assert ask(api, "rpc/add?a=1", method="HEAD")[:2] == (200, "")


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        # "Schema Cache", and "Errors", group 2: found by the exact names of arguments.
        ("rpc/nosuch", {}, 404, "PGRST202"),
        ("rpc/add", {}, 404, "PGRST202"),
        ("rpc/add", {"b": 1}, 404, "PGRST202"),
        ("rpc/add", {"a": 1, "c": 2}, 404, "PGRST202"),
        ("rpc/add", {"A": 1}, 404, "PGRST202"),
        ("rpc/echo", {}, 404, "PGRST202"),
        ("rpc/whole?x=1", None, 404, "PGRST202"),
        ("rpc/same", {"a": 1}, 300, "PGRST203"),
        ("nosuch", None, 404, "PGRST205"),
        ("hidden", None, 404, "PGRST205"),
        ("nosuch", {"id": 1}, 404, "PGRST205"),
        # "Errors", group 1.
        ("rpc/add", b"{", 400, "PGRST102"),
        ("rpc/add", b'{"a": \xff}', 400, "PGRST102"),
        ("rpc/add/more", {}, 404, "PGRST125"),
        # What Postgres makes of values.
        ("rpc/add", {"a": "x"}, 400, "22P02"),
        ("rpc/add", {"a": 1 << 40}, 400, "22003"),
        ("rpc/echo", b'{"value": "a\\u0000b"}', 400, "22P05"),
        ("rpc/echo_text", b'{"value": "a\\u0000b"}', 400, "22P05"),
        ("rpc/echo", b'{"value": "\\ud800"}', 400, "22P02"),
    ],
)
def test_refused_calls(path: str, body: Any, status: int, code: str, api: Project) -> None:
    refused = ask(api, path, body)
    assert (refused.status, refused.code) == (status, code)
    assert set(refused.body) == {"code", "message", "details", "hint"}


def test_other_methods(api: Project) -> None:
    refused = ask(api, "rpc/add", {"a": 1}, method="PUT")
    assert (refused.status, refused.code) == (405, "PGRST101")


def test_schemas_that_are_not_exposed(api: Project) -> None:
    """ "Schemas": by Accept-Profile for GET, by Content-Profile for POST."""
    for reply in (
        ask(api, "hidden", Accept_Profile="private"),
        ask(api, "rpc/add", {"a": 1}, Content_Profile="private"),
        ask(api, "users", Accept_Profile="auth"),
    ):
        assert (reply.status, reply.code) == (406, "PGRST106")
    assert ask(api, "rpc/add", {"a": 1}, Content_Profile="public").status == 200
    assert ask(api, "rpc/add", {"a": 1}, Content_Profile="graphql_public").code == "PGRST202"


def test_what_the_stand_in_does_not_do(api: Project) -> None:
    for path in ("rpc/numbers?n=3&limit=1", "notes?id=eq.1", "notes?limit=1"):
        assert ask(api, path).status == 501
    assert ask(api, "notes", {"id": 1}).status == 501
    assert ask(api, "rpc/add", [{"a": 1}]).status == 501
    assert (
        ask(api, "rpc/add", b"a=1", Content_Type="application/x-www-form-urlencoded").status == 501
    )


# -- "Authentication" --------------------------------------------------------------------------------------------------


def _altered(said: str) -> str:
    head, body, signature = said.split(".")
    return f"{head}.{body}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"


_NOW = int(time.time())


@pytest.mark.parametrize(
    ("said", "code", "message"),
    [
        (token("service_role", exp=_NOW - SKEW - 5), "PGRST303", "JWT expired"),
        (token("service_role", nbf=_NOW + 3600), "PGRST303", "JWT not yet valid"),
        (token("service_role", iat=_NOW + 3600), "PGRST303", "JWT issued at future"),
        (token("service_role", exp="soon"), "PGRST303", "The JWT 'exp' claim must be a number"),
        (_altered(SERVICE_KEY), "PGRST301", "No suitable key or wrong key type"),
        (token("service_role", secret=b"another"), "PGRST301", "No suitable key or wrong key type"),
        (
            token("service_role", alg="none"),
            "PGRST301",
            "Wrong or unsupported encoding algorithm",
        ),
        ("nonsense", "PGRST301", "Expected 3 parts in JWT; got 1"),
        ("a.b.c", "PGRST301", "JWT cryptographic operation failed"),
    ],
)
def test_bad_tokens(said: str, code: str, message: str, api: Project) -> None:
    refused = ask(api, "rpc/me", {}, key=ANON_KEY, bearer=said)
    assert (refused.status, refused.code, refused.body["message"]) == (401, code, message)
    assert "invalid_token" in refused.headers["WWW-Authenticate"]


def test_clocks_may_differ_by_half_a_minute(api: Project) -> None:
    nearly = token("service_role", exp=int(time.time()) - 5)
    assert ask(api, "rpc/me", {}, bearer=nearly).status == 200
    api.postgrest.skew = 60.0
    assert ask(api, "rpc/me", {}, bearer=nearly).code == "PGRST303"


def test_roles(api: Project) -> None:
    """The token's role is who runs the call; without a token it is `anon`."""
    said = token("authenticated", sub=USER, email="a@example.org")
    me = ask(api, "rpc/me", {}, key=ANON_KEY, bearer=said).body
    assert (me["user"], me["uid"], me["role"]) == ("authenticated", USER, "authenticated")
    assert me["jwt"]["email"] == "a@example.org"
    for bearer in ("", None, token(None)):
        me = ask(api, "rpc/me", {}, key=ANON_KEY, bearer=bearer).body
        assert (me["user"], me["uid"], me["role"]) == ("anon", None, "anon")
    assert ask(api, "rpc/me", {}).body["user"] == "service_role"
    assert ask(api, "rpc/me", {}, bearer=token("nosuch")).status == 401
    refused = ask(api, "rpc/me", {}, bearer=token("postgres"))
    assert (refused.status, refused.code) == (403, "42501")


def test_rights_are_postgres_s(api: Project) -> None:
    """ "Errors": 42501 is 401 for `anon`, 403 for others."""
    user = token("authenticated", sub=USER)
    for path, body in (("rpc/mine", {}), ("locked", None)):
        refused = ask(api, path, body, key=ANON_KEY)
        assert (refused.status, refused.code) == (401, "42501")
        refused = ask(api, path, body, key=ANON_KEY, bearer=user)
        assert (refused.status, refused.code) == (403, "42501")
    assert ask(api, "rpc/mine", {}).body == 1


def test_row_level_security(api: Project) -> None:
    user, other = token("authenticated", sub=USER), token("authenticated", sub=USER[:-1] + "b")
    ask(api, "rpc/keep", {"id": 1, "text": "mine"}, key=ANON_KEY, bearer=user)
    assert ask(api, "notes", key=ANON_KEY, bearer=user).body[0]["text"] == "mine"
    assert ask(api, "notes?select=*", key=ANON_KEY, bearer=other).body == []
    assert ask(api, "notes", key=ANON_KEY).body == []
    assert len(ask(api, "notes").body) == 1  # service_role bypasses it
    refused = ask(api, "rpc/keep", {"id": 2, "text": "x"}, key=ANON_KEY)
    assert (refused.status, refused.code) == (401, "42501")


# -- "Transactions" ----------------------------------------------------------------------------------------------------


def test_access_modes(api: Project) -> None:
    """READ ONLY for GET, and for POST of what is not volatile."""
    assert ask(api, "rpc/keep", {"id": 1, "text": "x"}).status == 204
    for path, body in (("rpc/keep?id=2&text=x", None), ("rpc/keep_stable", {"id": 3})):
        refused = ask(api, path, body)
        assert (refused.status, refused.code) == (405, "25006")


def test_one_transaction_a_call(api: Project) -> None:
    assert ask(api, "rpc/keep_and_fail", {"id": 1}).status == 400
    assert ask(api, "notes").body == []
    assert ask(api, "rpc/keep", {"id": 1, "text": "x"}).status == 204
    assert ask(api, "rpc/keep", {"id": 1, "text": "y"})[0] == 409
    assert [note["text"] for note in ask(api, "notes").body] == ["x"]


def test_isolation_levels(api: Project) -> None:
    assert ask(api, "rpc/isolation", {}).body == "read committed"
    assert ask(api, "rpc/serializable", {}).body == "serializable"


def test_settings_of_the_transaction(api: Project) -> None:
    def setting(name: str, **headers: str) -> Any:
        return ask(api, "rpc/setting", {"name": name}, **headers).body

    assert json.loads(setting("request.headers", X_Thing="1"))["x-thing"] == "1"
    assert json.loads(setting("request.jwt.claims"))["role"] == "service_role"
    assert setting("request.method") == "POST"
    assert setting("request.path") == "/rpc/setting"
    assert setting("search_path") == '"public", "public", "extensions"'
    assert setting("role") == "service_role"


def test_settings_are_empty_afterwards_not_null(api: Project) -> None:
    """ "Settings don't become NULL after the transaction is committed"."""
    assert ask(api, "rpc/nothing", {}).status == 204
    with api.postgrest._connection() as used:
        assert used.execute("SELECT current_setting('request.method', true)").fetchone() == ("",)
        assert used.execute("SELECT current_user").fetchone() == ("authenticator",)


@pytest.mark.parametrize(
    ("key", "bearer", "limit"),
    [
        (ANON_KEY, "", "3s"),
        (ANON_KEY, token("authenticated", sub=USER), "8s"),
        (SERVICE_KEY, "", "8s"),
    ],
)
def test_supabase_s_time_limits(key: str, bearer: str, limit: str, api: Project) -> None:
    """Supabase's docs, "Timeouts"; "Impersonated Role Settings"."""
    told = ask(api, "rpc/setting", {"name": "statement_timeout"}, key=key, bearer=bearer).body
    assert told == limit


def test_a_call_that_takes_too_long(api: Project) -> None:
    api.postgrest.cache.role_settings["anon"]["statement_timeout"] = "50ms"
    refused = ask(api, "rpc/nap", {"seconds": 30}, key=ANON_KEY)
    assert (refused.status, refused.code) == (500, "57014")
    # "Hoisted Function Settings": a function's own limit goes before its role's.
    assert ask(api, "rpc/nap_long", {"seconds": 0.2}, key=ANON_KEY).status == 204


# -- "Errors" ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("08006", 503),
        ("22023", 400),
        ("22P05", 400),
        ("23505", 409),
        ("23514", 400),
        ("25006", 405),
        ("25P02", 500),
        ("40001", 500),
        ("40P01", 500),
        ("42501", 403),
        ("42883", 404),
        ("42P01", 404),
        ("42703", 400),
        ("53100", 503),
        ("53400", 500),
        ("54000", 500),
        ("55P03", 500),
        ("57014", 500),
        ("57P01", 503),
        ("58030", 500),
        ("CH001", 400),
        ("P0001", 400),
        ("P0002", 500),
        ("PT402", 402),
        ("PT429", 429),
        ("XX001", 500),
    ],
)
def test_statuses_of_sqlstates(state: str, status: int, api: Project) -> None:
    refused = ask(api, "rpc/fail", {"state": state})
    told = {"code": state, "message": "said", "details": "detail", "hint": "hint"}
    assert refused[:2] == (status, told)
    assert ask(api, "rpc/fail", {"state": state}, key=ANON_KEY).status == (
        401 if state == "42501" else status
    )


def test_a_lost_database(api: Project) -> None:
    """ "Errors", group 0; and it is connected to again."""
    assert ask(api, "rpc/nothing", {}).status == 204
    with api.connect() as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'authenticator' "
            "AND query <> 'LISTEN pgrst' AND query <> '' AND datname = current_database()"
        )
    lost = ask(api, "rpc/nothing", {})
    assert (lost.status, lost.headers["Retry-After"]) == (503, "1")
    assert lost.code in ("57P01", "PGRST001")
    assert ask(api, "rpc/nothing", {}).status == 204


def test_no_connection_left(api: Project) -> None:
    """ "Connection Pool": 504 after the time to wait."""
    held = [api.postgrest._pool.get() for _ in range(10)]
    api.postgrest.pool_timeout = 0.01
    try:
        refused = ask(api, "rpc/nothing", {})
        assert (refused.status, refused.code) == (504, "PGRST003")
    finally:
        api.postgrest.pool_timeout = 10.0
        for each in held:
            api.postgrest._pool.put(each)


# -- "Configuration": db-max-rows; "Schema Cache" ----------------------------------------------------------------------


def test_rows_are_cut_and_scalars_are_not(api: Project) -> None:
    for function in ("numbers", "pairs"):
        assert len(ask(api, f"rpc/{function}", {"n": 5000}).body) == 1000
    assert len(ask(api, "rpc/array_of", {"n": 5000}).body) == 5000
    api.postgrest.max_rows = 2
    assert ask(api, "rpc/numbers", {"n": 5000}).body == [1, 2]
    for id in range(3):
        ask(api, "rpc/keep", {"id": id, "text": "x"})
    assert len(ask(api, "notes").body) == 2


def test_a_new_function_is_not_found_until_a_notice(bare_project: Project) -> None:
    bare_project.apply("CREATE FUNCTION late() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    assert ask(bare_project, "rpc/late", {}).code == "PGRST202"
    bare_project.apply("NOTIFY pgrst, 'reload schema'")
    assert ask(bare_project, "rpc/late", {}).body == 1
    bare_project.apply("DROP FUNCTION late()")
    refused = ask(bare_project, "rpc/late", {})
    assert (refused.status, refused.code) == (404, "42883")


# -- Supabase's database -----------------------------------------------------------------------------------------------


def test_whatever_is_made_in_public_is_everybody_s(bare_project: Project) -> None:
    """Supabase's docs, "Hardening the Data API"; supabase/postgres, migrations/db/init-scripts."""
    bare_project.apply(
        "CREATE TABLE open (id int); CREATE FUNCTION open_f() RETURNS int LANGUAGE sql AS 'SELECT 1';"
        "CREATE SCHEMA own; CREATE TABLE own.t (id int); NOTIFY pgrst"
    )
    assert ask(bare_project, "open", key=ANON_KEY)[:2] == (200, [])
    assert ask(bare_project, "rpc/open_f", {}, key=ANON_KEY).body == 1
    with bare_project.connect("authenticator") as connection:
        connection.execute("SET ROLE service_role")
        with pytest.raises(Exception, match="permission denied for schema own"):
            connection.execute("TABLE own.t")


def test_who_runs_migrations_is_no_superuser(bare_project: Project) -> None:
    with bare_project.connect("postgres") as owner:
        asked = "SELECT rolsuper, rolbypassrls, rolcreaterole FROM pg_roles WHERE rolname = current_user"
        assert owner.execute(asked).fetchone() == (False, True, True)
