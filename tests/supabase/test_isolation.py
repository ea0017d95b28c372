"""Nobody sees or changes what is another's: not by the store's own calls, not by any that can be made."""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from charm_checkpoint.backend import HeadMark, HeadRow, Scan, Seen, ThreadQuery
from charm_checkpoint.errors import BackendError, CheckpointStoreError
from charm_checkpoint.testing.rows import blob, move, pending, put, read, write
from charm_memory_supabase import SupabaseBackend
from tests.supabase.conftest import Project
from tests.supabase.gateway import ANON_KEY, SERVICE_KEY, Call
from tests.supabase.requests import ask
from tests.supabase.support import ALICE, BOB, open_as, open_service, user
from tests.supabase.tokens import claims_of, token

pytestmark = pytest.mark.usefixtures("no_keys_in_logs")

SECRET = "the content of Alice"
THREAD = "the first thread"

HEAD = HeadMark(HeadRow("", "1", "laptop", 1.0), None)

VERBS: dict[str, Callable[[SupabaseBackend, str], Any]] = {
    "put": lambda b, t: b.write([put("2", "1", blob("c", "9"), thread=t)]),
    "put fenced": lambda b, t: b.write([put("2x", "1", fenced=True, thread=t)]),
    "put beside": lambda b, t: b.write([put("2y", "1", on_conflict="beside", thread=t)]),
    "put again": lambda b, t: b.write([put("1", None, blob("c", data=b"mine now"), thread=t)]),
    "put whole": lambda b, t: b.write([put("9", "8", blob("c", "5"), whole=True, thread=t)]),
    "writes": lambda b, t: b.write([pending("1", write(data=b"mine now"), thread=t)]),
    "replacing writes": lambda b, t: b.write([pending("1", write(idx=-3), thread=t)]),
    "move": lambda b, t: b.write([move("1", "2", thread=t)]),
    "read": lambda b, t: b.read(t, "", None),
    "read by id": lambda b, t: b.read(t, "", "1"),
    "pull": lambda b, t: b.pull(t, ()),
    "pull held": lambda b, t: b.pull(t, [HEAD]),
    "scan": lambda b, t: b.scan(Scan(thread_id=t)),
    "scan all": lambda b, t: b.scan(Scan()),
    "scan by run": lambda b, t: b.scan(Scan(run_ids=("run",))),
    "lineage": lambda b, t: b.lineage(t, "", "2", ["c"]),
    "threads": lambda b, t: b.threads(ThreadQuery(limit=10)),
    "one thread": lambda b, t: b.threads(ThreadQuery(limit=1, thread_id=t)),
    "threads by label": lambda b, t: b.threads(ThreadQuery(limit=10, labels={"user": "Alice"})),
    "copy from": lambda b, t: b.copy(t, "a copy", at=1.0),
    "copy over": lambda b, t: b.copy("bob's own", t, at=1.0),
    "prune": lambda b, t: b.prune(t, [("", "1")]),
    "about": lambda b, t: b.about(),
    "delete as seen": lambda b, t: b.delete_if(t, Seen({"": "2"}, 2), at=2.0),
    "delete as not seen": lambda b, t: b.delete_if(t, Seen({}, 0), at=2.0),
    "delete": lambda b, t: b.delete(t, at=2.0),
}


def fill(
    backend: SupabaseBackend, thread: str = THREAD, said: str = SECRET, ids: str = "12"
) -> None:
    """Two steps with values, pending writes, labels and a run."""
    metadata = json.dumps({"user": said.rpartition(" ")[2], "said": said}).encode()
    data, told = said.encode(), {"thread": thread, "metadata": metadata}
    backend.write(
        [
            put(ids[0], None, blob("c", data=data), run="run", **told),
            put(ids[1], ids[0], blob("c", "2", data * 2), **told),
            pending(ids[1], write(channel="__interrupt__", data=data), thread=thread),
        ]
    )


@pytest.fixture
def alice(project: Project) -> SupabaseBackend:
    """Signed in, with a thread."""
    backend = open_as(project, user(ALICE))
    fill(backend)
    return backend


@pytest.fixture
def bob(project: Project) -> SupabaseBackend:
    """Signed in, with a thread of his own."""
    backend = open_as(project, user(BOB))
    fill(backend, "bob's own", "the content of Bob", ids="67")
    return backend


def hers(project: Project) -> dict[str, list[str]]:
    """Every row that names Alice's thread."""
    return {table: [row for row in rows if THREAD in row] for table, rows in project.dump().items()}


def unchanged(before: dict[str, list[str]], after: dict[str, list[str]]) -> bool:
    """Whether every row is still there as it was."""
    return all(set(rows) <= set(after[table]) for table, rows in before.items())


def test_what_the_owner_does_works(alice: SupabaseBackend, bob: SupabaseBackend) -> None:
    """Each verb of the table does something, or finds something."""
    for verb, do in VERBS.items():
        if verb not in ("copy over", "delete as seen", "delete"):
            do(alice, THREAD)
    assert alice.delete(THREAD, at=2.0)


@pytest.mark.parametrize("verb", VERBS)
def test_another_user(
    verb: str, alice: SupabaseBackend, bob: SupabaseBackend, project: Project
) -> None:
    """Who knows the thread's name finds nothing by it, and is told that it is not his."""
    before, seen = project.dump(), alice.pull(THREAD, ())
    try:
        told = VERBS[verb](bob, THREAD)
    except CheckpointStoreError as error:
        told = error
    assert SECRET not in repr(told)
    assert "Alice" not in repr(told)
    assert unchanged(before, project.dump())
    assert alice.pull(THREAD, ()) == seen


def test_names_as_the_database_has_them(
    alice: SupabaseBackend, bob: SupabaseBackend, project: Project
) -> None:
    """A thread id that is made to look like what Alice's is stored under."""
    with project.connect() as admin:
        columns = admin.execute(
            "SELECT table_schema, table_name FROM information_schema.columns "
            "WHERE column_name = 'thread_id' AND table_schema NOT IN ('pg_catalog')"
        ).fetchall()
        names = set()
        for schema, table in columns:
            names |= {
                name for (name,) in admin.execute(f'SELECT thread_id FROM "{schema}"."{table}"')
            }
    forged = names - {"bob's own"}
    forged |= {f"{ALICE}/{THREAD}", f"{ALICE}:{THREAD}", f"{ALICE}{THREAD}", f"../{ALICE}/{THREAD}"}
    seen = alice.pull(THREAD, ())
    for name, do in itertools.product(sorted(forged), VERBS.values()):
        try:
            told = do(bob, name)
        except CheckpointStoreError as error:
            told = error
        assert SECRET not in repr(told)
    assert alice.pull(THREAD, ()) == seen


OUTSIDERS = {
    "anon": (ANON_KEY, ANON_KEY),
    "nobody": (ANON_KEY, None),
    "expired": (ANON_KEY, user(ALICE, exp=1)),
    "forged": (ANON_KEY, token("authenticated", sub=ALICE, secret=b"guessed")),
    "unknown role": (ANON_KEY, token("postgres", sub=ALICE)),
    "no key": (None, user(ALICE)),
}

STRANGERS = {
    "another user": user(BOB),
    "no user": token("authenticated"),
    "an empty user": token("authenticated", sub=""),
    "null": token("authenticated", sub=None),
    "nearly": token("authenticated", sub=ALICE.upper()),
    "a user who says more": token("authenticated", sub=BOB, user=ALICE, owner=ALICE),
}


@pytest.fixture
def calls(alice: SupabaseBackend, project: Project) -> list[Call]:
    """The calls of Alice's device, one of each verb, as they went over the wire."""
    project.gateway.calls.clear()
    alice.setup()
    for do in VERBS.values():
        try:
            do(alice, THREAD)
        except CheckpointStoreError:
            continue
    made = [call for call in project.gateway.calls if call.request.path.startswith("rpc/")]
    fill(alice, "another")
    return made


@pytest.mark.parametrize("who", OUTSIDERS)
def test_the_same_calls_by_others(who: str, calls: list[Call], project: Project) -> None:
    """Recorded and sent again by somebody who may not: refused, each of them."""
    key, bearer = OUTSIDERS[who]
    before = project.dump()
    for call in calls:
        refused = ask(project, call.request.path, call.request.body, key=key, bearer=bearer)
        assert refused.status >= 400, (call.function, refused)
        assert SECRET not in str(refused.body)
    assert project.dump() == before


@pytest.mark.parametrize("who", STRANGERS)
def test_the_same_calls_by_another_user(
    who: str, calls: list[Call], alice: SupabaseBackend, project: Project
) -> None:
    before = project.dump()
    for call in calls:
        for more in ({}, {"owner": ALICE}):
            [asked] = json.loads(call.request.body).values()
            said = ask(
                project,
                call.request.path,
                {"request": {**asked, **more}},
                key=ANON_KEY,
                bearer=STRANGERS[who],
            )
            assert SECRET not in str(said.body)
            assert base64.b64encode(SECRET.encode()).decode()[:-4] not in str(said.body)
    assert unchanged(before, project.dump())


# -- what there is in the database, also what is added later -----------------------------------------------------------


def test_every_function_that_can_be_called_is_tried_above(
    calls: list[Call], project: Project
) -> None:
    with project.connect() as admin:
        reachable = admin.execute(
            "SELECT proname FROM pg_proc WHERE pronamespace::regnamespace::text = ANY (%s) "
            "AND prokind = 'f' AND prorettype <> 'trigger'::regtype AND ("
            "has_function_privilege('authenticated', oid, 'EXECUTE') "
            "OR has_function_privilege('anon', oid, 'EXECUTE'))",
            (list(project.postgrest.schemas),),
        ).fetchall()
    assert {name for (name,) in reachable} <= {call.function for call in calls}


def _ours(project: Project, query: str) -> list[tuple[Any, ...]]:
    with project.connect() as admin:
        return admin.execute(query).fetchall()


_OTHERS = "('pg_catalog', 'information_schema', 'auth', 'extensions')"


def test_no_function_is_anybody_s(project: Project) -> None:
    found = _ours(
        project,
        "SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace "
        f"WHERE n.nspname NOT IN {_OTHERS} AND has_function_privilege('anon', p.oid, 'EXECUTE') "
        "AND has_schema_privilege('anon', n.oid, 'USAGE')",
    )
    assert found == []


def test_no_table_is_anybody_s(project: Project) -> None:
    """Not even if somebody exposes the schema: no right on a table, a column or a sequence."""
    found = _ours(
        project,
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        f"WHERE n.nspname NOT IN {_OTHERS} AND c.relkind IN ('r', 'v', 'm', 'p', 'S') "
        "AND n.nspname !~ '^pg_toast' AND CASE c.relkind WHEN 'S' "
        "THEN has_sequence_privilege('anon', c.oid, 'USAGE, SELECT, UPDATE') "
        "ELSE has_any_column_privilege('anon', c.oid, 'SELECT, INSERT, UPDATE') "
        "OR has_table_privilege('anon', c.oid, 'DELETE, TRUNCATE, TRIGGER') END",
    )
    assert found == []


def test_every_table_has_row_level_security(project: Project) -> None:
    """What Supabase's own adviser warns of, too."""
    found = _ours(
        project,
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        f"WHERE n.nspname NOT IN {_OTHERS} AND c.relkind = 'r' AND NOT c.relrowsecurity",
    )
    assert found == []


def _tables(project: Project) -> list[tuple[str, str]]:
    return _ours(
        project,
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        f"WHERE n.nspname NOT IN {_OTHERS} AND c.relkind IN ('r', 'v', 'm', 'p')",
    )


@pytest.mark.parametrize("who", ["another user", "no user", "null"])
def test_statements_of_another_user(
    who: str, alice: SupabaseBackend, bob: SupabaseBackend, project: Project
) -> None:
    """Each table by itself, as if there were no functions before it and its schema were exposed."""
    before = hers(project)
    claims = json.dumps(claims_of(STRANGERS[who], now=time.time()))
    for schema, table in _tables(project):
        place = f'"{schema}"."{table}"'
        for statement in (
            f"SELECT t::text FROM {place} t",
            f"UPDATE {place} SET thread_id = thread_id RETURNING {table}::text",
            f"UPDATE {place} SET thread_id = '{THREAD}'",
            f"UPDATE {place} SET thread_id = '{THREAD}', owner = '{ALICE}'",
            f"UPDATE {place} SET owner = '{BOB}'",
            f"INSERT INTO {place} (thread_id) VALUES ('{THREAD}')",
            f"DELETE FROM {place} RETURNING {table}::text",
            f"TRUNCATE {place}",
            f"LOCK TABLE {place} IN ACCESS EXCLUSIVE MODE",
            f"CREATE TRIGGER t AFTER INSERT ON {place} EXECUTE FUNCTION tsvector_update_trigger()",
        ):
            with project.connect("authenticator") as connection, suppress(psycopg.Error):
                connection.execute("SELECT set_config('request.jwt.claims', %s, false)", (claims,))
                connection.execute("SET ROLE authenticated")
                told = connection.execute(statement.encode())
                if told.description:
                    assert THREAD not in str(told.fetchall()), statement
        assert hers(project) == before, table


def test_whoever_runs_a_function_as_its_owner_names_its_schemas(project: Project) -> None:
    """A SECURITY DEFINER function without a search_path of its own can be turned by its caller."""
    found = _ours(
        project,
        "SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace "
        f"WHERE n.nspname NOT IN {_OTHERS} AND p.prosecdef "
        "AND NOT coalesce(p.proconfig::text ~ 'search_path=', false)",
    )
    assert found == []


@pytest.mark.parametrize(
    ("key", "bearer"),
    [(ANON_KEY, None), (ANON_KEY, user(ALICE)), (SERVICE_KEY, None)],
    ids=["anon", "user", "service"],
)
def test_tables_cannot_be_read(key: str, bearer: str | None, project: Project) -> None:
    tables = _tables(project)
    assert tables
    for schema, table in tables:
        for profile in ({}, {"Accept_Profile": schema}):
            refused = ask(project, table, key=key, bearer=bearer or key, **profile)
            assert refused.status in (401, 403, 404, 406), (table, refused)


def test_a_device_without_rights_is_told_so(project: Project) -> None:
    backend = open_as(project, ANON_KEY)
    with pytest.raises(BackendError, match="access_token"):
        read(backend, None)


def test_the_service_key_sees_all_threads(alice: SupabaseBackend, project: Project) -> None:
    server = open_service(project)
    fill(server, "the server's")
    assert {row.thread_id for row in server.threads(ThreadQuery())} >= {"the server's"}
    assert [row.thread_id for row in alice.threads(ThreadQuery())] == [THREAD]
