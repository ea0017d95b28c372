"""A value that this process wrote or read last is not sent to it again, as long as it is the one that is stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from charm_checkpoint.backend import HeadMark
from charm_checkpoint.testing.rows import THREAD, blob, blobs_of, chain, put, read, store
from charm_memory_postgres import PostgresBackend, bases, wire

BIG = bytes(range(256)) * 40
OTHER = BIG[::-1]


class Watched(PostgresBackend):
    """Tells how many bytes of values the last answer had."""

    received = 0

    def _rows(self, connection: Any, function: str, *arguments: Any) -> list[wire.Row]:
        rows = super()._rows(connection, function, *arguments)
        self.received = sum(len(row.data or b"") for row in rows if row.kind == "blob")
        return rows


@pytest.fixture
def ours(database: str) -> Iterator[Watched]:
    with_its_memory = Watched(database)
    yield with_its_memory
    with_its_memory.close()


@pytest.fixture
def another(database: str) -> Iterator[PostgresBackend]:
    backend = PostgresBackend(database)
    yield backend
    backend.close()


def _value(backend: PostgresBackend, checkpoint_id: str | None = None) -> bytes:
    return blobs_of(read(backend, checkpoint_id))["messages"][2]


def test_what_was_written_is_not_read_again(ours: Watched) -> None:
    store(ours, put("1", None, blob("messages", "a", BIG), blob("small"), blob("other", "a", BIG)))
    found = blobs_of(read(ours, None))
    assert found["messages"] == ("a", "bytes", BIG)
    assert found["other"] == ("a", "bytes", BIG)
    assert found["small"] == ("1", "bytes", b"value")
    assert ours.received == len(b"value")


def test_what_was_read_is_not_read_again(ours: Watched, another: PostgresBackend) -> None:
    store(another, put("1", None, blob("messages", "a", BIG)))
    for received in (len(BIG), 0):
        assert (_value(ours), ours.received) == (BIG, received)
    store(
        another,
        put("2", "1", blob("messages", "b", OTHER)),
        put("3", "2", versions={"messages": "b"}),
    )
    for received in (len(BIG), 0):
        assert (_value(ours), ours.received) == (OTHER, received)
    assert _value(ours, "1") == BIG


def test_what_was_pulled_is_not_read_again(ours: Watched, another: PostgresBackend) -> None:
    store(another, put("1", None, blob("messages", "a", BIG)))
    held: list[HeadMark] = list(ours.pull(THREAD, []).heads)
    assert (_value(ours), ours.received) == (BIG, 0)
    store(another, put("2", "1", versions={"messages": "a"}))
    [entry] = ours.pull(THREAD, held).entries
    assert not entry.snapshot.blobs
    assert (_value(ours), ours.received) == (BIG, 0)


@pytest.mark.parametrize("reader", [True, False], ids=["who-read-it", "who-wrote-it"])
def test_a_value_that_was_changed_where_it_is(
    reader: bool, ours: Watched, another: PostgresBackend, shared_database: psycopg.Connection
) -> None:
    store(another if reader else ours, put("1", None, blob("messages", "a", BIG)))
    _value(ours)
    # Of the same length, as when something was masked in it.
    shared_database.execute("UPDATE checkpoint_blobs SET blob = set_byte(blob, 5000, 0)")
    assert _value(ours) == BIG[:5000] + b"\0" + BIG[5001:]


def test_a_thread_that_began_anew(ours: Watched, another: PostgresBackend) -> None:
    chain(ours, "1")
    store(ours, put("2", "1", blob("messages", "a", BIG)))
    another.delete(THREAD, at=1.0)
    store(another, put("3", None, blob("messages", "a", OTHER)))
    assert _value(ours) == OTHER


def test_who_came_second_with_a_version(ours: Watched, another: PostgresBackend) -> None:
    """The first value stays, and whoever wrote the second reads it."""
    store(another, put("1", None, blob("messages", "a", OTHER)))
    store(ours, put("2", "1", blob("messages", "a", BIG)))
    assert _value(ours) == OTHER


def test_what_is_remembered_is_bounded(ours: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "_RECENT_BYTES", 2 * len(BIG))
    for thread in ("a", "b", "c"):
        store(ours, put("1", None, blob("messages", "a", BIG), thread=thread))
    kept = {}
    for thread in ("c", "b", "a"):
        assert blobs_of(ours.read(thread, "", None))["messages"][2] == BIG
        kept[thread] = ours.received == 0
    assert kept == {"c": True, "b": True, "a": False}


def test_two_values_for_one_version_in_one_batch(ours: Watched) -> None:
    """The first stays, and is what is read, though one transaction brought both."""
    ours.setup()
    first, other = (blob("messages", "a", value) for value in (BIG, OTHER))
    store(ours, put("1", None, first), put("2", "1", other))
    assert _value(ours) == BIG
