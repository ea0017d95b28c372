"""Lost connections and calls: a delay at most, never a lost or doubled row."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from charm_checkpoint.backend import Scan, ThreadQuery
from charm_checkpoint.engine import RetryPolicy
from charm_checkpoint.errors import (
    BackendCorrupt,
    BackendError,
    BackendFull,
    BackendReadOnly,
    BackendUnavailable,
)
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.testing.colours import grow, place
from charm_checkpoint.testing.rows import chain, head, ids, pending, put, read, statuses, store
from charm_checkpoint.testing.scenarios import chat, turn
from charm_memory_postgres import PostgresBackend, PostgresMemory
from charm_memory_postgres.connections import Connections
from charm_memory_postgres.errors import translate
from tests.postgres.proxy import Fault, Proxy

_PATIENT = RetryPolicy(budget=60.0, first_pause=0.01, max_pause=0.2)


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    with Proxy(int(psycopg.conninfo.conninfo_to_dict(database)["port"])) as proxy:
        yield proxy


@pytest.fixture
def behind(database: str, proxy: Proxy) -> Iterator[PostgresBackend]:
    """A backend behind the proxy."""
    url = psycopg.conninfo.make_conninfo(
        database, host="127.0.0.1", port=proxy.port, sslmode="disable", gssencmode="disable"
    )
    backend = PostgresBackend(url, timeout=5.0)
    yield backend
    backend.close()


# -- one lost call -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("which", range(1, 5))
def test_a_turn_whose_write_is_lost(
    fault: Fault, which: int, behind: PostgresBackend, proxy: Proxy
) -> None:
    """Lost on the way, or stored with the answer lost: repeated, and stored once."""
    saver = CheckpointSaver(behind, retry=_PATIENT)
    chat(saver).invoke(turn("first"), place())
    writes = 0

    def count(data: Any) -> Any:
        nonlocal writes
        writes += 1
        if writes == which:
            proxy.break_at(fault, b"charm_write_v1")
        return original(data)

    original = behind.write
    behind.write = count  # type: ignore[method-assign]
    assert chat(saver).invoke(turn("second"), place())["items"][-1] == "said second"
    assert proxy.fired == 1
    found = list(saver.list(place()))
    assert len(found) == 8
    assert [
        t.parent_config["configurable"]["checkpoint_id"] for t in found[:-1] if t.parent_config
    ] == [t.config["configurable"]["checkpoint_id"] for t in found[1:]]
    saver.close()


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("verb", ["read", "scan", "threads", "delete", "prune", "lineage"])
def test_every_other_verb_is_repeated(
    fault: Fault, verb: str, behind: PostgresBackend, proxy: Proxy
) -> None:
    saver = CheckpointSaver(behind, retry=_PATIENT)
    chat(saver).invoke(turn("hi"), place())
    proxy.break_at(fault, f"charm_{verb}_v1".encode())
    if verb == "read":
        assert saver.get_tuple(place()) is not None
    elif verb == "scan":
        assert len(list(saver.list(place()))) == 4
    elif verb == "threads":
        assert len(saver.engine.call(lambda backend: backend.threads(ThreadQuery(limit=9)))) == 1
    elif verb == "delete":
        saver.delete_thread("thread")
        assert saver.get_tuple(place()) is None
    elif verb == "prune":
        saver.prune(["thread"])
        assert len(list(saver.list(place()))) == 1
    else:
        saver.get_delta_channel_history(config=place(), channels=["items"])
    assert proxy.fired == 1
    saver.close()


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_copy_is_not_repeated(fault: Fault, behind: PostgresBackend, proxy: Proxy) -> None:
    saver = CheckpointSaver(behind, retry=_PATIENT)
    chat(saver).invoke(turn("hi"), place())
    proxy.break_at(fault, b"charm_copy_v1")
    with pytest.raises(BackendUnavailable):
        saver.copy_thread("thread", "copy")
    assert len(list(saver.list(place("copy")))) == (4 if fault == "after" else 0)
    saver.close()


def test_dead_connections_are_noticed_before_they_are_used(
    behind: PostgresBackend, proxy: Proxy
) -> None:
    """No call fails for it, though nothing here repeats calls."""
    behind.setup()
    threads = [threading.Thread(target=read, args=(behind, None)) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    proxy.cut()
    for _ in range(5):
        assert head(behind) is None


# -- many lost calls ---------------------------------------------------------------------------------------------------


def test_connections_killed_at_random(database: str, shared_database: psycopg.Connection) -> None:
    """200 turns: each is there once, in order."""
    saver = CheckpointSaver(PostgresBackend(database), retry=_PATIENT)
    graph = chat(saver)
    chance, done, killed = random.Random(7), threading.Event(), 0

    def kill() -> None:
        nonlocal killed
        while not done.wait(chance.uniform(0, 0.15)):
            victims = shared_database.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
                "AND application_name = 'charm-checkpoint'"
            ).fetchall()
            if victims:
                shared_database.execute("SELECT pg_terminate_backend(%s)", chance.choice(victims))
                killed += 1

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        for n in range(200):
            graph.invoke(turn(str(n)), place())
    finally:
        done.set()
        killer.join()
    expected = [text for n in range(200) for text in (str(n), f"said {n}")]
    assert graph.get_state(place()).values["items"] == expected
    assert len(list(saver.list(place()))) == 800
    assert killed > 10
    saver.close()


# -- connections -------------------------------------------------------------------------------------------------------


def test_a_dead_peer_is_noticed(database: str) -> None:
    """What the URL says of it counts, else `timeout` does."""
    connections = Connections(f"{database} keepalives_count=7", size=1, timeout=3)
    with connections.lend() as connection:
        used = connection.info.get_parameters()
    connections.close()
    told = [used[k] for k in ("keepalives_count", "keepalives_idle", "tcp_user_timeout")]
    assert told == ["7", "20", "3000"]


def test_a_server_that_says_nothing() -> None:
    """It accepts connections, as a hanging one does."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://u:s3cret@127.0.0.1:{silent.getsockname()[1]}/d"
        with PostgresMemory({"url": url, "timeout": 0.1, "retry_timeout": 0}) as memory:
            with pytest.raises(BackendUnavailable, match="cannot be reached") as refused:
                memory.load_messages("thread")
            assert "s3cret" not in str(refused.value)


def test_all_connections_in_use(database: str) -> None:
    connections = Connections(database, size=1, timeout=0.1)
    with (
        connections.lend(),
        pytest.raises(BackendUnavailable, match="raise pool_size"),
        connections.lend(),
    ):
        pass
    with connections.lend() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    connections.close()


def test_a_connection_that_is_given_back_wakes_who_waits(database: str) -> None:
    connections = Connections(database, size=2, timeout=30)
    most, now, lock = 0, 0, threading.Lock()

    def use() -> None:
        nonlocal most, now
        for _ in range(20):
            with connections.lend() as connection:
                with lock:
                    now += 1
                    most = max(most, now)
                connection.execute("SELECT 1")
                with lock:
                    now -= 1

    threads = [threading.Thread(target=use) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert most == 2
    connections.close()


def test_a_transaction_that_was_left_open_is_not_handed_on(database: str) -> None:
    connections = Connections(database, size=1, timeout=5)
    with connections.lend() as connection:
        connection.execute("BEGIN")
    with connections.lend() as connection:
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    connections.close()


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (psycopg.errors.DiskFull, BackendFull),
        (psycopg.errors.OutOfMemory, BackendFull),
        (psycopg.errors.ReadOnlySqlTransaction, BackendReadOnly),
        (psycopg.errors.InsufficientPrivilege, BackendReadOnly),
        (psycopg.errors.UndefinedFunction, BackendCorrupt),
        (psycopg.errors.UndefinedTable, BackendCorrupt),
        (psycopg.errors.DataCorrupted, BackendCorrupt),
        (psycopg.errors.AdminShutdown, BackendUnavailable),
        (psycopg.errors.CrashShutdown, BackendUnavailable),
        (psycopg.errors.TooManyConnections, BackendUnavailable),
        (psycopg.errors.DeadlockDetected, BackendUnavailable),
        (psycopg.errors.SerializationFailure, BackendUnavailable),
        (psycopg.errors.QueryCanceled, BackendUnavailable),
        (psycopg.OperationalError, BackendUnavailable),
        (psycopg.InterfaceError, BackendUnavailable),
        (psycopg.errors.ProgramLimitExceeded, BackendError),
    ],
)
def test_errors_are_told_apart(error: type[psycopg.Error], ours: type[BackendError]) -> None:
    told = translate(error("postgresql://u:s3cret@h/d is not well"), "postgresql://h/d")
    assert type(told) is ours
    assert "s3cret" not in str(told)


# -- deltas on the wire ------------------------------------------------------------------------------------------------


def _grown(id: str, parent: str | None, size: int, tail: bytes = b"") -> Any:
    from charm_checkpoint.testing.rows import blob

    data = b"\xdd\x00\x00\x00\x01" + random.Random(1).randbytes(size) + tail
    return put(id, parent, blob("messages", f"{id}.v", data))


def test_only_what_is_new_is_sent(behind: PostgresBackend, proxy: Proxy) -> None:
    behind.setup()
    store(behind, _grown("1", None, 500_000))
    proxy.reset()
    store(behind, _grown("2", "1", 500_000, b"new"))
    assert (proxy.trips, proxy.sent < 2500) == (1, True)
    assert read(behind, "2").blobs[0].data == _grown("2", "1", 500_000, b"new").blobs[0].data


def test_another_process_makes_changes_to_what_it_read(
    behind: PostgresBackend, proxy: Proxy, database: str
) -> None:
    first = PostgresBackend(database)
    store(first, _grown("1", None, 500_000))
    first.close()
    behind.setup()
    read(behind, None)
    proxy.reset()
    store(behind, _grown("2", "1", 500_000, b"new"))
    assert proxy.sent < 2500


@pytest.mark.parametrize("harm", ["gone", "replaced", "shorter", "null"])
def test_a_base_that_is_not_what_it_was(
    harm: str, behind: PostgresBackend, proxy: Proxy, shared_database: psycopg.Connection
) -> None:
    """Everything is sent whole, in one more trip."""
    behind.setup()
    store(behind, _grown("1", None, 100_000))
    shared_database.execute(
        {
            "gone": "DELETE FROM checkpoint_blobs",
            "replaced": "UPDATE checkpoint_blobs SET blob = set_byte(blob, 5000, get_byte(blob, 5000) # 1)",
            "shorter": "UPDATE checkpoint_blobs SET blob = substring(blob FROM 1 FOR 10)",
            "null": "UPDATE checkpoint_blobs SET blob = NULL, type = 'empty'",
        }[harm]
    )
    proxy.reset()
    grown = _grown("2", "1", 100_000, b"new")
    assert statuses(behind.write([grown, pending("2")])) == ["stored", "stored"]
    assert proxy.trips == 2
    assert read(behind, "2").blobs[0].data == grown.blobs[0].data
    assert ids(behind) == ["2", "1"]


def test_values_of_50_mb(database: str) -> None:
    backend = PostgresBackend(database)
    for big in (_grown("1", None, 50_000_000), _grown("2", "1", 50_000_000, b"new")):
        store(backend, big)
        assert read(backend, big.row.checkpoint_id).blobs[0].data == big.blobs[0].data
    backend.close()


def test_an_unchanged_value_is_not_sent_again(behind: PostgresBackend, proxy: Proxy) -> None:
    saver = CheckpointSaver(behind)
    graph = chat(saver)
    graph.invoke({"items": ["x" * 1_000_000]}, place())
    graph.update_state(place(), {"note": "n"}, as_node="say")
    proxy.reset()
    graph.update_state(place(), {"note": "m"}, as_node="say")
    assert proxy.sent < 4096
    saver.close()


# -- round trips -------------------------------------------------------------------------------------------------------


def test_every_verb_is_one_round_trip(behind: PostgresBackend, proxy: Proxy) -> None:
    behind.setup()
    chain(behind, "1", "2", "3")
    for verb in (
        lambda: behind.write([put("4", "3"), pending("4"), put("1", thread="other")]),
        lambda: behind.read("thread", "", None),
        lambda: behind.scan(_scan()),
        lambda: behind.pull("thread", ()),
        lambda: behind.lineage("thread", "", None, ["a"]),
        lambda: behind.threads(ThreadQuery(limit=5)),
        lambda: behind.copy("thread", "copy", at=1.0),
        lambda: behind.prune("thread", [("", "1")]),
        lambda: behind.delete("thread", at=1.0),
        lambda: behind.setup(),
    ):
        proxy.reset()
        verb()
        assert proxy.trips == 1


def _scan() -> Any:
    return Scan()


@pytest.mark.parametrize(("durability", "most"), [("sync", 8), ("async", 8), ("exit", 2)])
def test_the_round_trips_of_a_turn(
    durability: Any, most: int, behind: PostgresBackend, proxy: Proxy
) -> None:
    """A read, and LangGraph's chain of puts; what comes beside a put goes with it or follows it."""
    saver = CheckpointSaver(behind)
    graph = chat(saver)
    graph.invoke(turn("warm"), place())
    proxy.reset()
    graph.invoke(turn("hi"), place(), durability=durability)
    assert 2 <= proxy.trips <= most
    saver.close()


async def test_steps_of_many_threads_go_together(
    behind: PostgresBackend, proxy: Proxy, database: str, shared_database: psycopg.Connection
) -> None:
    """What comes while a write is under way waits for it, and goes in one trip."""
    saver = CheckpointSaver(behind)
    await grow(saver, place("warm"))
    proxy.reset()
    with psycopg.connect(database) as other:
        other.execute("SELECT charm_lock_v1('held up')")
        first = asyncio.create_task(grow(saver, place("held up")))
        waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        while not shared_database.execute(waiting).fetchall():  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.005)
        more = [asyncio.create_task(grow(saver, place(f"thread {n}"))) for n in range(40)]
        await asyncio.sleep(0)  # each has handed over its step
    await asyncio.gather(first, *more)
    assert proxy.trips == 2
    saver.close()
