"""Status and labels of threads stay right whoever writes, and are there for threads that were stored before them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from charm_checkpoint.backend import ThreadQuery, Unit
from charm_checkpoint.rules import labels_of, status_of
from charm_checkpoint.testing.rows import chain, move, pending, put, read, store, write
from charm_memory_postgres import PostgresBackend
from charm_memory_postgres.schema import VERSION
from tests.postgres.test_setup import objects

SEED = 3
IDS = "1234"
CHANNELS = ("__interrupt__", "__error__", "__resume__", "messages")
METADATA: tuple[dict[str, Any], ...] = (
    {},
    {"step": 1},
    {"user": "u1"},
    {"user": "u2", "n": 1},
    {"n": 1.0, "user": True},
    {"n": 1e17, "user": "\ufffd"},
)
OF_OURS_ONLY: tuple[dict[str, Any], ...] = (
    {"user": "\x00", "n": 1e17},
    {"\ud800": 1, "user": "u1"},
)


@pytest.fixture
def ours(database: str) -> Iterator[PostgresBackend]:
    backend = PostgresBackend(database)
    backend.setup()
    yield backend
    backend.close()


def check(ours: PostgresBackend, connection: psycopg.Connection) -> None:
    """Compare what threads are listed by with what their rows say."""
    labelled = 0
    for row in ours.threads(ThreadQuery()):
        root = read(ours, None, row.thread_id)
        metadata = root.checkpoint.metadata if root.checkpoint else b"{}"
        assert row.status == status_of(w.channel for w in root.writes), row
        assert row.labels == labels_of(metadata), row
        for name, value in row.labels.items():
            assert row in ours.threads(ThreadQuery(labels={name: value}, status=row.status))
        labelled += len(row.labels)
    told = connection.execute("SELECT count(*) FROM charm_labels").fetchone()
    assert told == (labelled,)


def _copied(backend: PostgresBackend, thread: str, at: float) -> None:
    backend.delete("copy", at=at)
    if backend.threads(ThreadQuery(thread_id=thread)):
        backend.copy(thread, "copy", at=at)


def _of_ours(rng: random.Random, thread: str) -> Any:
    id, other, at = rng.choice(IDS), rng.choice([*IDS, None]), rng.randrange(9) + 0.5
    metadata = json.dumps(rng.choice(METADATA + 3 * OF_OURS_ONLY)).encode()
    units: list[Unit] = [
        put(id, other, thread=thread, at=at, metadata=metadata, whole=True),
        put(id, other, thread=thread, at=at, metadata=metadata, namespace="sub"),
        put(
            id, thread=thread, fenced=True, on_conflict=rng.choice(["raise", "branch", "overwrite"])
        ),
        pending(id, write("task", -1, rng.choice(CHANNELS)), thread=thread),
        pending(id, write("task", rng.randrange(3), rng.choice(CHANNELS)), thread=thread),
        pending(id, write(channel="__interrupt__"), thread=thread, namespace="sub"),
        move(id, rng.choice(IDS), thread=thread),
    ]
    unit = rng.choice(units)
    verbs: list[Any] = [
        *[lambda backend: backend.write([unit])] * 16,
        lambda backend: backend.prune(thread, [("", id), ("sub", id)]),
        lambda backend: backend.delete(thread, at=at),
        *[lambda backend: _copied(backend, thread, at)] * 2,
    ]
    return rng.choice(verbs)


def _of_another(rng: random.Random, thread: str) -> tuple[str, list[Any]]:
    """What a saver that knows only LangGraph's tables may do."""
    id, at = rng.choice(IDS), [thread, rng.choice(["", "sub"]), rng.choice(IDS)]
    channel, metadata = rng.choice(CHANNELS), Jsonb(rng.choice(METADATA))
    insert = "INSERT INTO checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, blob) "
    checkpoint = Jsonb({"v": 4, "id": id, "ts": "1970-01-01T00:00:05Z", "channel_versions": {}})
    return rng.choice(
        [
            (
                f"{insert} VALUES (%s, %s, %s, 'task', -1, %s, '') ON CONFLICT DO NOTHING",
                [*at, channel],
            ),
            (
                f"{insert} VALUES (%s, %s, %s, 'task', -1, %s, '') ON CONFLICT "
                "(thread_id, checkpoint_ns, checkpoint_id, task_id, idx) DO UPDATE SET channel = excluded.channel",
                [*at, channel],
            ),
            ("UPDATE checkpoint_writes SET channel = %s WHERE thread_id = %s", [channel, thread]),
            (
                "DELETE FROM checkpoint_writes WHERE thread_id = %s AND channel = %s",
                [thread, channel],
            ),
            *[
                (
                    "INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata) "
                    "VALUES (%s, %s, %s, %s, %s) ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id) "
                    "DO UPDATE SET metadata = excluded.metadata",
                    [*at, checkpoint, metadata],
                )
            ]
            * 3,
            ("DELETE FROM checkpoints WHERE thread_id = %s AND checkpoint_id = %s", [thread, id]),
            ("DELETE FROM checkpoints WHERE thread_id = %s", [thread]),
            (rng.choice(["TRUNCATE checkpoint_writes", "TRUNCATE checkpoints", "SELECT"]), []),
        ]
    )


def test_random_histories(ours: PostgresBackend, shared_database: psycopg.Connection) -> None:
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    seen = set()
    for _ in range(1000):
        thread = rng.choice(("a", "a", "b", "copy"))
        if thread != "copy" and rng.random() < 0.8:
            _of_ours(rng, thread)(ours)
        else:
            shared_database.execute(*_of_another(rng, thread))
        check(ours, shared_database)
        seen |= {(row.status, bool(row.labels)) for row in ours.threads(ThreadQuery())}
    assert len(seen) == 6, "the histories went to too few places"


def test_metadata_that_jsonb_would_change(
    ours: PostgresBackend, shared_database: psycopg.Connection
) -> None:
    """What JSONB makes of it does not count, also when an old checkpoint becomes the head again."""
    metadata = json.dumps({"nul": "\x00", "\x00": 1, "float": 1e17, "user": "u1"}).encode()
    store(ours, put("1", metadata=metadata), put("2", "1", metadata=b'{"user": "u2"}'))
    ours.copy("thread", "copy", at=1.0)
    store(ours, move("1", "2"))
    ours.prune("copy", [("", "2")])
    for row in ours.threads(ThreadQuery()):
        assert row.labels == {"user": "u1"}
    shared_database.execute(
        "UPDATE checkpoints SET metadata = '{\"nul\": \"\ufffd\"}' WHERE checkpoint_id = '1'"
    )
    store(ours, move("2", "1"), move("1", "2"))
    for row in ours.threads(ThreadQuery()):
        assert row.labels == {"nul": "\ufffd"}


def test_many_questions_at_once(ours: PostgresBackend, shared_database: psycopg.Connection) -> None:
    rows = [write(f"task {n}", -3, "__interrupt__") for n in range(200)]
    store(ours, put("1"), pending("1", *rows))
    check(ours, shared_database)
    shared_database.execute("DELETE FROM checkpoint_writes WHERE task_id <> 'task 77'")
    [row] = ours.threads(ThreadQuery(status="interrupted"))
    assert row.thread_id == "thread"


def test_an_earlier_database_is_listed_after_an_upgrade(empty_database: str) -> None:
    backend = PostgresBackend(empty_database)
    backend.setup()
    newest = objects(empty_database)
    chain(backend, "1", "2")
    store(
        backend,
        pending("2", write(channel="__interrupt__")),
        put("1", thread="fails", metadata=b'{"user": "u1", "step": 1}'),
        pending("1", write(channel="__error__"), thread="fails"),
        put("1", thread="sub only", namespace="sub", metadata=b'{"user": "u1"}'),
        put("1", thread="deleted", metadata=b'{"user": "u1"}'),
    )
    backend.delete("deleted", at=5.0)
    before = backend.threads(ThreadQuery())
    with psycopg.connect(empty_database, autocommit=True) as owner:
        owner.execute(
            """
            DROP FUNCTION charm_thread_labelled, charm_status_changed, charm_writes_truncated CASCADE;
            DROP FUNCTION charm_threads_v1, charm_move_head_v1, charm_status_v1, charm_labels_of_v1, charm_labels_at_v1,
                charm_label_v1;
            DROP TABLE charm_labels;
            ALTER TABLE charm_checkpoints DROP COLUMN labels;
            ALTER TABLE charm_threads DROP COLUMN labels, DROP COLUMN status;
            CREATE INDEX charm_threads_by_recency ON charm_threads (updated_at, thread_id);
            """
        )
        owner.execute("UPDATE charm_migrations SET v = %s", (VERSION - 1,))
        backend.setup()
        assert sorted(objects(empty_database)) == sorted(newest)
        assert backend.threads(ThreadQuery()) == before
        assert {row.status for row in before} == {"interrupted", "failed", "idle"}
        check(backend, owner)
    [found] = backend.threads(ThreadQuery(labels={"user": "u1"}, status="failed"))
    assert found.thread_id == "fails"
    backend.close()
