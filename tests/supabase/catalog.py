"""PostgREST's view of a database: what can be called, with which SQL, and which status an error gets."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import psycopg

__all__ = ["Cache", "Routine", "call_sql", "read_cache", "refusal", "status_of", "table_sql"]


class Argument(NamedTuple):
    name: str
    type: str
    required: bool


class Routine(NamedTuple):
    """A function that can be called."""

    schema: str
    name: str
    arguments: tuple[Argument, ...]
    volatility: str
    """`v`, `s` or `i`."""
    is_set: bool
    is_composite: bool
    is_void: bool
    settings: tuple[tuple[str, str], ...]
    """Its own settings that hold for the whole transaction."""

    def fits(self, names: frozenset[str]) -> bool:
        """Whether a call with arguments of these names means this function."""
        required = {each.name for each in self.arguments if each.required}
        return required <= names <= {each.name for each in self.arguments}

    def takes_body(self) -> bool:
        """Whether its one argument has no name, and is the whole body."""
        return [(a.name, a.type in ("json", "jsonb")) for a in self.arguments] == [("", True)]


class Cache(NamedTuple):
    """PostgREST's schema cache, and the settings of roles."""

    routines: dict[tuple[str, str], list[Routine]]
    tables: frozenset[tuple[str, str]]
    role_settings: dict[str, dict[str, str]]

    def find(self, schema: str, name: str, names: frozenset[str], *, post: bool) -> list[Routine]:
        """The functions that a call can mean: one, if all is well."""
        overloads = self.routines.get((schema, name), [])
        named = [each for each in overloads if each.fits(names)]
        return named or [each for each in overloads if post and each.takes_body()]


def read_cache(connection: psycopg.Connection, schemas: Iterable[str]) -> Cache:
    """Read the catalog as PostgREST does at its start, and when it is told to."""
    routines: dict[tuple[str, str], list[Routine]] = {}
    asked = {"schemas": list(schemas)}
    for schema, name, arguments, *rest, settings in connection.execute(_ROUTINES, asked):
        hoisted = tuple(tuple(each.split("=", 1)) for each in settings)
        routine = Routine(schema, name, tuple(Argument(*a) for a in arguments), *rest, hoisted)
        routines.setdefault((schema, name), []).append(routine)
    tables = frozenset((schema, name) for schema, name in connection.execute(_TABLES, asked))
    roles: dict[str, dict[str, str]] = {}
    for role, setting in connection.execute(_ROLE_SETTINGS):
        key, _, value = setting.partition("=")
        roles.setdefault(role, {})[key] = value
    return Cache(routines, tables, roles)


# Not trigger functions, and none with several arguments without names.
_ROUTINES = """
SELECT n.nspname, p.proname, a.arguments, p.provolatile::text, p.proretset,
    t.typtype = 'c' OR coalesce(p.proargmodes::text[] && '{t,b,o}', false),
    p.prorettype = 'void'::regtype,
    ARRAY(
        SELECT s FROM unnest(p.proconfig) s
        WHERE s ~ '^(statement_timeout|default_transaction_isolation)='
    )
FROM pg_proc p
JOIN pg_namespace n ON n.oid = p.pronamespace
JOIN pg_type t ON t.oid = p.prorettype
CROSS JOIN LATERAL (
    SELECT coalesce(json_agg(json_build_array(
        coalesce(p.proargnames[i], ''), p.proargtypes[i - 1]::regtype::text,
        i <= p.pronargs - p.pronargdefaults
    ) ORDER BY i), '[]') AS arguments,
    count(*) FILTER (WHERE coalesce(p.proargnames[i], '') = '') AS unnamed
    FROM generate_series(1, p.pronargs) i
) a
WHERE n.nspname = ANY (%(schemas)s) AND p.prokind = 'f' AND p.prorettype <> 'trigger'::regtype
AND a.unnamed <= 1
"""

_TABLES = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = ANY (%(schemas)s) AND c.relkind IN ('r', 'v', 'm', 'f', 'p')
"""

_ROLE_SETTINGS = """
SELECT r.rolname, s FROM pg_roles r CROSS JOIN unnest(r.rolconfig) s
WHERE pg_has_role(current_user, r.oid, 'MEMBER') AND r.rolname <> current_user
"""


@lru_cache(maxsize=1000)
def call_sql(routine: Routine, names: frozenset[str], *, post: bool) -> str:
    """The statement of a call; takes `body` (POST), or each argument (GET), and `limit`."""
    place = f"{_quoted(routine.schema)}.{_quoted(routine.name)}"
    given = [each for each in routine.arguments if each.name in names]
    if post and routine.takes_body():
        source, passed = "", f"%(body)s::text::{routine.arguments[0].type}"
    elif post and given:
        columns = ", ".join(f"{_quoted(a.name)} {a.type}" for a in given)
        source = f"json_to_record(%(body)s::text::json) AS pgrst_body({columns}), LATERAL "
        passed = ", ".join(f"{_quoted(a.name)} := pgrst_body.{_quoted(a.name)}" for a in given)
    else:
        source = ""
        passed = ", ".join(f"{_quoted(a.name)} := %({a.name})s::{a.type}" for a in given)
    if routine.is_composite:
        call = f"SELECT pgrst_call.* FROM {source}{place}({passed}) pgrst_call"
    else:
        call = f"SELECT pgrst_call.pgrst_scalar FROM {source}(SELECT {place}({passed}) pgrst_scalar) pgrst_call"
    what = "json_agg(t)" if routine.is_composite else "json_agg(t.pgrst_scalar)"
    body = (
        f"coalesce({what}, '[]')::text"
        if routine.is_set
        else f"coalesce(({what} -> 0)::text, 'null')"
    )
    return f"WITH pgrst_source AS ({call}) SELECT {body} FROM (SELECT * FROM pgrst_source LIMIT %(limit)s) t"


def table_sql(schema: str, name: str) -> str:
    """The statement that reads a table; takes `limit`."""
    place = f"{_quoted(schema)}.{_quoted(name)}"
    return (
        f"SELECT coalesce(json_agg(t), '[]')::text FROM (SELECT * FROM {place} LIMIT %(limit)s) t"
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""').replace("%", "%%") + '"'


# From PostgREST's page "Errors", in its order: the first prefix that fits counts.
_STATUSES = {
    "08": 503,
    "09": 500,
    "0L": 403,
    "0P": 403,
    "23503": 409,
    "23505": 409,
    "25006": 405,
    "21000": 500,
    "25": 500,
    "28": 403,
    "2D": 500,
    "38": 500,
    "39": 500,
    "3B": 500,
    "40": 500,
    "53400": 500,
    "53": 503,
    "54": 500,
    "55": 500,
    "57P01": 503,
    "57": 500,
    "58": 500,
    "F0": 500,
    "HV": 500,
    "P0001": 400,
    "P0": 500,
    "XX": 500,
    "42883": 404,
    "42P01": 404,
    "42P17": 500,
}


def status_of(code: str, message: str, *, anonymous: bool) -> int:
    """The HTTP status of an SQLSTATE."""
    if code == "42501":
        return 401 if anonymous else 403
    if code == "22023" and message.startswith("role") and message.endswith("does not exist"):
        return 401
    if code.startswith("PT"):
        return int(code[2:]) if code[2:].isdecimal() else 500
    return next((status for prefix, status in _STATUSES.items() if code.startswith(prefix)), 400)


def refusal(code: str, message: str, details: Any = None, hint: Any = None) -> dict[str, Any]:
    """The body of an error."""
    return {"code": code, "message": message, "details": details, "hint": hint}
