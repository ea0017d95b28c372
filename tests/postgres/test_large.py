"""What a call costs does not grow with what else is stored: counted in rows that the server touches, not in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from charm_checkpoint.testing.rows import blob, pending, put
from charm_memory_postgres import PostgresBackend
from charm_memory_postgres.wire import encode

THREADS = 100_000
STEPS = 2
"""Checkpoints of each thread."""
PAGE = 50


@pytest.fixture(scope="module")
def large(admin_url: str) -> Iterator[psycopg.Connection]:
    """A connection to a database with many threads, of which every tenth waits at an interrupt."""
    name = "charm_large"
    with psycopg.connect(admin_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        url = psycopg.conninfo.make_conninfo(admin_url, dbname=name)
        backend = PostgresBackend(url)
        backend.setup()
        backend.close()
        with psycopg.connect(url, autocommit=True) as connection:
            _fill(connection)
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
                '{{}}' FROM {steps}""",
        f"INSERT INTO checkpoint_blobs SELECT 'thread-' || t, '', 'a', s::text, 'bytes', 'x' FROM {steps}",
        f"""INSERT INTO charm_heads
            SELECT 'thread-' || t, '', '{STEPS}-' || t, 'laptop', t + {STEPS} FROM generate_series(1, {THREADS}) t""",
        f"""INSERT INTO charm_threads (thread_id, created_at, updated_at)
            SELECT 'thread-' || t, t, t + {STEPS} FROM generate_series(1, {THREADS}) t""",
        f"""INSERT INTO checkpoint_writes
            SELECT 'thread-' || t, '', '{STEPS}-' || t, 'task', 0, '__interrupt__', 'bytes', 'x'
            FROM generate_series(10, {THREADS}, 10) t""",
        "RESET session_replication_role",
        "ANALYZE",
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


def test_a_page_of_threads(large: psycopg.Connection) -> None:
    after: tuple[Any, Any] = (None, None)
    for _ in range(8):  # after five, Postgres may plan once for all
        page, touched = _touched(large, f"charm_threads_v1({PAGE}, %s, %s, NULL)", *after)
        assert len(page) == PAGE
        assert touched <= 8 * PAGE
        after = (page[-1]["updated_at"], page[-1]["thread"])
    middle = (THREADS / 2, "z")
    page, touched = _touched(large, f"charm_threads_v1({PAGE}, %s, %s, NULL)", *middle)
    assert page[0]["updated_at"] == THREADS / 2
    assert [bool(row["pending"]) for row in page].count(True) == PAGE // 10
    assert touched <= 8 * PAGE
    page, touched = _touched(large, "charm_threads_v1(1, NULL, NULL, 'thread-77')")
    assert [row["thread"] for row in page] == ["thread-77"]
    assert touched <= 8


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
