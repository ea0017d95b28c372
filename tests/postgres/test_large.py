"""What a call costs does not grow with what else is stored: counted in rows and blocks that the server touches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from charm_checkpoint.testing.rows import blob, pending, put
from charm_memory_postgres import PostgresBackend
from charm_memory_postgres.schema import VERSION
from charm_memory_postgres.wire import encode

THREADS = 100_000
STEPS = 2
"""Checkpoints of each thread."""
PAGE = 50


@pytest.fixture(scope="module")
def large(admin_url: str) -> Iterator[psycopg.Connection]:
    """A connection to a database with many threads: every tenth waits at an interrupt, one failed.

    All have the label "app", each its own "user", every second thread of the older half "half", the last "rare".
    """
    name = "charm_large"
    with psycopg.connect(admin_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        url = psycopg.conninfo.make_conninfo(admin_url, dbname=name)
        backend = PostgresBackend(url)
        backend.setup()
        backend.close()
        with psycopg.connect(url, autocommit=True) as connection:
            _fill(connection)
            # As threads from before there was such a thing, they get their status and labels by an upgrade.
            connection.execute("UPDATE charm_migrations SET v = %s", (VERSION - 1,))
            backend.setup()
            backend.close()
            connection.execute("ANALYZE")
            yield connection
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _fill(connection: psycopg.Connection) -> None:
    steps = f"generate_series(1, {THREADS}) t, generate_series(1, {STEPS}) s"
    for statement in (
        "SET session_replication_role = replica",  # no triggers
        f"""INSERT INTO charm_checkpoints
            SELECT 'thread-' || t, '', s || '-' || t, 'run-' || t, NULL, 'laptop', t + s FROM {steps}""",
        f"""INSERT INTO checkpoints
            SELECT 'thread-' || t, '', s || '-' || t, CASE WHEN s > 1 THEN s - 1 || '-' || t END, NULL,
                jsonb_build_object('v', 4, 'id', s || '-' || t, 'channel_versions', jsonb_build_object('a', s::text)),
                jsonb_strip_nulls(jsonb_build_object(
                    'step', s, 'app', 'chat', 'user', t,
                    'half', CASE WHEN t % 2 = 0 AND t < {THREADS} / 2 THEN true END,
                    'rare', CASE WHEN t = 1 THEN 'yes' END
                )) FROM {steps}""",
        f"INSERT INTO checkpoint_blobs SELECT 'thread-' || t, '', 'a', s::text, 'bytes', 'x' FROM {steps}",
        f"""INSERT INTO charm_heads
            SELECT 'thread-' || t, '', '{STEPS}-' || t, 'laptop', t + {STEPS} FROM generate_series(1, {THREADS}) t""",
        f"""INSERT INTO charm_threads (thread_id, created_at, updated_at)
            SELECT 'thread-' || t, t, t + {STEPS} FROM generate_series(1, {THREADS}) t""",
        f"""INSERT INTO checkpoint_writes
            SELECT 'thread-' || t, '', '{STEPS}-' || t, 'task', 0, '__interrupt__', 'bytes', 'x'
            FROM generate_series(10, {THREADS}, 10) t""",
        f"""INSERT INTO checkpoint_writes
            VALUES ('thread-7', '', '{STEPS}-7', 'task', -1, '__error__', 'bytes', 'x')""",
        "RESET session_replication_role",
    ):
        connection.execute(statement)


def _touched(connection: psycopg.Connection, call: str, *arguments: Any) -> tuple[Any, int]:
    """The answer of a function, and how many rows of tables the server looked at for it."""
    with connection.transaction():
        before = _rows_so_far(connection)
        answer = connection.execute(f"SELECT * FROM {call}", arguments).fetchone()
        touched = _rows_so_far(connection) - before
    assert answer is not None
    return answer[0], touched


def _rows_so_far(connection: psycopg.Connection) -> int:
    row = connection.execute(
        "SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables "
        "WHERE relname ~ '^ch'"
    ).fetchone()
    assert row is not None
    return int(row[0])


def _page(
    connection: psycopg.Connection, after: tuple[float, str] | None = None, **query: Any
) -> tuple[list[Any], int]:
    """A page of threads, and how many blocks the server looked at for it."""
    asked = json.dumps({"limit": PAGE, **query, **({"after": after} if after else {})})
    call = "SELECT charm_threads_v1(%s::jsonb)"
    told = connection.execute(call, (asked,)).fetchone()
    explained = connection.execute(
        f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {call}", (asked,)
    ).fetchone()
    assert told is not None
    assert explained is not None
    plan = explained[0][0]["Plan"]
    return told[0] or [], plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


@pytest.mark.parametrize(
    ("query", "first", "second"),
    [
        ({}, 100_000, 99_950),
        ({"status": "interrupted"}, 100_000, 99_500),
        ({"status": "idle"}, 99_999, 99_944),
        ({"status": "failed"}, 7, None),
        ({"labels": {"app": "chat"}}, 100_000, 99_950),
        ({"labels": {"half": True}}, 49_998, 49_898),
        ({"labels": {"user": 77}}, 77, None),
        ({"labels": {"app": "chat", "user": 77}}, 77, None),
        ({"labels": {"user": 77, "app": "chat"}}, 77, None),
        ({"labels": {"app": "chat", "half": True}}, 49_998, 49_898),
        ({"labels": {"app": "chat", "rare": "yes"}}, 1, None),
        ({"labels": {"app": "chat"}, "status": "failed"}, 7, None),
        ({"labels": {"half": True}, "status": "interrupted"}, 49_990, 49_490),
        ({"labels": {"app": "another"}}, None, None),
        ({"thread": "thread-77", "labels": {"user": 77}}, 77, None),
    ],
    ids=str,
)
def test_a_page_of_threads(
    large: psycopg.Connection, query: dict[str, Any], first: int | None, second: int | None
) -> None:
    after = None
    for begins in (first, second):
        for _ in range(7):  # after five, Postgres may plan once for all
            page, blocks = _page(large, after, **query)
            assert [row["thread"] for row in page[:1]] == ([f"thread-{begins}"] if begins else [])
            # A walk down an index is four blocks; a row is looked up in three tables.
            assert blocks <= 30 * PAGE
        if page:
            after = (page[-1]["updated_at"], page[-1]["thread"])
    middle, blocks = _page(large, (THREADS / 2, "z"), **query)
    assert all(row["updated_at"] <= THREADS / 2 for row in middle)
    assert blocks <= 30 * PAGE


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"after": ["2-5", "thread-5", ""]},
        {"thread": "thread-500"},
        {"thread": "thread-500", "ns": "", "before": "2"},
        {"id": "1-70"},
        {"runs": ["run-3", "run-99999"]},
    ],
    ids=str,
)
def test_a_page_of_checkpoints(large: psycopg.Connection, query: dict[str, Any]) -> None:
    for values in (True, False):
        for _ in range(7):
            asked = {"limit": PAGE, "values": values, "max_bytes": 1 << 25, **query}
            answer, touched = _touched(large, "charm_scan_v1(%s)", psycopg.types.json.Jsonb(asked))
            assert answer == "info"
            assert touched <= 20 * PAGE


def test_a_step(large: psycopg.Connection) -> None:
    for n in range(7):
        thread = f"thread-{2000 + n}"
        batch = [
            put(
                "3",
                f"{STEPS}-{2000 + n}",
                blob("b"),
                versions={"a": "1"},
                thread=thread,
                fenced=True,
            ),
            pending("3", thread=thread),
            put("3", None, blob("b"), thread=f"new {n}"),
        ]
        message = encode(batch, None)
        told, touched = _touched(large, "charm_write_v1(%s::jsonb, %b)", *message)
        assert [outcome["status"] for outcome in told] == ["stored"] * 3
        assert touched <= 60


def test_one_thread(large: psycopg.Connection) -> None:
    for n in range(7):
        thread = f"thread-{1000 + n}"
        for call in (
            "charm_read_v1(%s, '', NULL)",
            "charm_lineage_v1(%s, '', NULL, '{a}')",
            "charm_copy_v1(%s, 'copy', 1.0)",
            "charm_delete_v1('copy', 1.0)",
            """charm_prune_v1(%s, '{"": ["1-1000"]}')""",
            "charm_delete_v1(%s, 1.0)",
        ):
            _, touched = _touched(large, call, *([thread] if "%s" in call else []))
            assert touched <= 60, call


def test_a_long_thread_in_fresh_tables(empty_database: str) -> None:
    """Before they are analyzed, Postgres knows nothing of their sizes, and plans for what is still empty."""
    backend = PostgresBackend(empty_database)
    backend.setup()
    backend.close()
    with psycopg.connect(empty_database, autocommit=True) as connection:
        for n in range(100):
            step = put(f"{n:03}", f"{n - 1:03}" if n else None, blob("a", f"{n}"), fenced=True)
            message = encode([step, pending(f"{n:03}"), pending(f"{n:03}")], None)
            for call, arguments in (
                ("charm_write_v1(%s::jsonb, %b)", message),
                ("charm_read_v1('thread', '', NULL)", ()),
                ("charm_pull_v1('thread', '{}')", ()),
                ("charm_lineage_v1('thread', '', NULL, '{a}')", ()),
            ):
                _, touched = _touched(connection, call, *arguments)
                assert touched <= 30, (n, call)
