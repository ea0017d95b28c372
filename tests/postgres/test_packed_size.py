"""What a chat takes in Postgres once it is packed, beside what LangGraph's own saver needs for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres import PostgresSaver
from psycopg import sql
from psycopg.rows import dict_row

from bench.graphs import chat_graph, prose
from charm_checkpoint.cli import main
from charm_checkpoint.saver import CheckpointSaver
from charm_memory_postgres import PostgresBackend, PostgresMemory
from tests.core.support import place
from tests.postgres.conftest import OUR_TABLES
from tests.postgres.packed import Talk

TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")


@pytest.fixture
def theirs(empty_database: str) -> Iterator[psycopg.Connection[Any]]:
    """A database of PostgresSaver's own."""
    with psycopg.connect(
        empty_database, autocommit=True, prepare_threshold=0, row_factory=dict_row
    ) as connection:
        PostgresSaver(connection).setup()
        yield connection


def talk(saver: BaseCheckpointSaver[Any], turns: int) -> None:
    graph = chat_graph("sync").compile(checkpointer=saver)
    for n in range(turns):
        graph.invoke({"messages": [HumanMessage(prose(2 * n))]}, place("chat"))


def values(connection: psycopg.Connection[Any]) -> int:
    """The bytes of all values, as they are stored."""
    tables = {"checkpoint_blobs": "blob", "charm_packed": "data"}
    return sum(
        connection.cursor(row_factory=psycopg.rows.tuple_row)
        .execute(f"SELECT coalesce(sum(pg_column_size({column})), 0) FROM {table}".encode())
        .fetchone()[0]  # type: ignore[index]
        for table, column in tables.items()
        if connection.execute("SELECT 1 FROM pg_class WHERE relname = %s", (table,)).fetchone()
    )


def room(connection: psycopg.Connection[Any], tables: tuple[str, ...]) -> int:
    """The bytes that tables take with nothing free in them, their indexes included."""
    found = 0
    for table in tables:
        connection.execute(sql.SQL("VACUUM FULL {}").format(sql.Identifier(table)))
        cursor = connection.cursor(row_factory=psycopg.rows.tuple_row)
        row = cursor.execute("SELECT pg_total_relation_size(%s::regclass)", (table,)).fetchone()
        found += row[0] if row else 0
    return found


def test_a_tenth(
    database: str, shared_database: psycopg.Connection, theirs: psycopg.Connection[Any]
) -> None:
    """Of the values, where few stay whole."""
    talk(PostgresSaver(theirs), 60)
    with closing(PostgresBackend(database, pack_after=4)) as backend:
        talk(CheckpointSaver(backend), 60)
        backend.compact()
    assert values(shared_database) < values(theirs) / 10


@pytest.mark.slow
def test_a_tenth_of_a_long_chat(
    database: str, shared_database: psycopg.Connection, theirs: psycopg.Connection[Any]
) -> None:
    """Of everything, with the newest 20 whole."""
    talk(PostgresSaver(theirs), 400)
    with closing(PostgresBackend(database)) as backend:
        talk(CheckpointSaver(backend), 400)
        backend.compact()
    packed, official = room(shared_database, (*TABLES, *OUR_TABLES)), room(theirs, TABLES)
    print(f"PostgresSaver {official / 1e6:.1f} MB, packed {packed / 1e6:.1f} MB")
    assert packed < official / 10


def test_the_room_is_used_again(database: str, shared_database: psycopg.Connection) -> None:
    """A chat that is packed now and then takes little, though the server gives nothing back."""
    chat = Talk()
    with closing(PostgresBackend(database, pack_after=1)) as backend:
        for _ in range(12):
            chat.go_on(backend, 10)
            backend.compact()
    taken = shared_database.execute("SELECT pg_total_relation_size('checkpoint_blobs')").fetchone()
    assert taken is not None
    assert sum(map(len, chat.values.values())) > 3 * taken[0]


def test_the_command(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = psycopg.conninfo.conninfo_to_dict(database)
    url = "postgresql://{user}@{host}:{port}/{dbname}".format(**given)
    with closing(PostgresBackend(database)) as backend:
        backend.setup()
        Talk().go_on(backend, 40)
    assert main(["compact", "--store", url]) == 0
    assert "are free for what comes" in " ".join(capsys.readouterr().out.split())


def test_what_pruning_frees(database: str) -> None:
    with closing(PostgresMemory({"url": database})) as store:
        talk(store.get_langgraph_checkpointer(), 5)
        tried = store.prune({"keep_last": 4}, dry_run=True)
        done = store.prune({"keep_last": 4})
        assert tried.bytes == done.bytes
        assert done.bytes is not None
        assert done.bytes > 5000
        assert store.prune({"max_bytes": 8000}).checkpoints
