"""LangGraph's PostgresSaver and this project's at one moment: one of them waits, and then knows what the other did."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.postgres import PostgresSaver
from psycopg.rows import dict_row

from charm_checkpoint.backend import ThreadQuery
from charm_checkpoint.testing.colours import place
from charm_checkpoint.testing.rows import chain, head, ids, put, read
from charm_memory_postgres import PostgresBackend
from charm_memory_postgres.wire import encode


@pytest.fixture
def ours(database: str) -> Iterator[PostgresBackend]:
    backend = PostgresBackend(database)
    chain(backend, "1")
    yield backend
    backend.close()


@pytest.fixture
def open_transaction(database: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection in a transaction, which the test ends."""
    with psycopg.connect(database, row_factory=dict_row) as connection:
        yield connection


@pytest.fixture
def meanwhile(
    shared_database: psycopg.Connection,
) -> Iterator[Callable[[Callable[[], Any]], Future[Any]]]:
    """Runs something on another thread; returns when it waits for a lock, as it must."""
    with ThreadPoolExecutor(1) as pool:

        def run(action: Callable[[], Any]) -> Future[Any]:
            running = pool.submit(action)
            waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            while not shared_database.execute(waiting).fetchone():
                assert not running.done(), running.result()
                time.sleep(0.005)
            return running

        yield run


def _foreign(id: str) -> Any:
    return {
        "v": 4,
        "id": id,
        "ts": "2026-01-01T00:00:00+00:00",
        "channel_values": {},
        "channel_versions": {},
        "versions_seen": {},
    }


def test_a_step_beside_a_foreign_step(
    ours: PostgresBackend, open_transaction: psycopg.Connection[Any], meanwhile: Any
) -> None:
    """It is told of the conflict, though its database call began while the head was still its parent."""
    PostgresSaver(open_transaction).put(place("thread", "1"), _foreign("3"), {}, {})
    writing = meanwhile(lambda: ours.write([put("2", "1", fenced=True)]))
    open_transaction.commit()
    [outcome] = writing.result()
    assert (outcome.status, outcome.head.checkpoint_id) == ("conflict", "3")
    assert head(ours) == "3"


def test_a_step_beside_a_foreign_deletion(
    ours: PostgresBackend, open_transaction: psycopg.Connection[Any], meanwhile: Any
) -> None:
    PostgresSaver(open_transaction).delete_thread("thread")
    writing = meanwhile(lambda: ours.write([put("2", "1", fenced=True)]))
    open_transaction.commit()
    [outcome] = writing.result()
    assert outcome.status == "deleted"
    assert ids(ours) == []
    assert read(ours, None).deleted_through == "1"


def test_a_foreign_step_beside_a_step(
    database: str,
    ours: PostgresBackend,
    open_transaction: psycopg.Connection[Any],
    meanwhile: Any,
) -> None:
    """It knows of no fencing and is stored, but does not take the head from the step that was first."""
    message = encode([put("3", "1", fenced=True)], None)
    open_transaction.execute("SELECT charm_write_v1(%s::jsonb, %b)", message)
    with psycopg.connect(database, autocommit=True, row_factory=dict_row) as connection:
        official = PostgresSaver(connection)
        writing = meanwhile(lambda: official.put(place("thread", "1"), _foreign("2"), {}, {}))
        open_transaction.commit()
        writing.result()
    assert ids(ours) == ["3", "2", "1"]
    assert head(ours) == "3"


def test_a_step_beside_a_foreign_question_to_it(
    ours: PostgresBackend, open_transaction: psycopg.Connection[Any], meanwhile: Any
) -> None:
    """Neither sees the other's rows as they begin, and the thread is still found to wait."""
    writes = [("__interrupt__", "one or two?")]
    PostgresSaver(open_transaction).put_writes(place("thread", "2"), writes, "task")
    writing = meanwhile(lambda: ours.write([put("2", "1", fenced=True)]))
    open_transaction.commit()
    assert [outcome.status for outcome in writing.result()] == ["stored"]
    assert [row.thread_id for row in ours.threads(ThreadQuery(status="interrupted"))] == ["thread"]


def test_a_foreign_question_to_a_step_beside_it(
    database: str, ours: PostgresBackend, open_transaction: psycopg.Connection[Any], meanwhile: Any
) -> None:
    message = encode([put("2", "1", fenced=True)], None)
    open_transaction.execute("SELECT charm_write_v1(%s::jsonb, %b)", message)
    with psycopg.connect(database, autocommit=True, row_factory=dict_row) as connection:
        official = PostgresSaver(connection)
        writes = [("__interrupt__", "one or two?")]
        writing = meanwhile(lambda: official.put_writes(place("thread", "2"), writes, "task"))
        open_transaction.commit()
        writing.result()
    assert [row.thread_id for row in ours.threads(ThreadQuery(status="interrupted"))] == ["thread"]
