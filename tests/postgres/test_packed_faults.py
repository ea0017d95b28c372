"""Packing beside others, and when something goes wrong."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest

from charm_checkpoint.errors import BackendCorrupt, BackendUnavailable, ThreadConflictError
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.testing.rows import (
    THREAD,
    blobs_of,
    contents,
    read,
    store,
)
from charm_memory_postgres import PostgresBackend, PostgresMemory, packing
from tests.core.support import WAIT, place
from tests.postgres.packed import Talk, chatter, packed_rows, version
from tests.postgres.proxy import Fault, Proxy


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE charm_packed SET data = set_byte(data, 100, get_byte(data, 100) # 1) WHERE base IS NULL",
        "UPDATE charm_packed SET data = '' WHERE base IS NULL",
        "UPDATE charm_packed SET length = length - 1 WHERE base IS NOT NULL",
        "UPDATE charm_packed SET start = -5 WHERE base IS NOT NULL",
        "UPDATE charm_packed SET start = 2147483647 WHERE base IS NOT NULL",
        "UPDATE charm_packed SET length = -1 WHERE base IS NOT NULL",
        "UPDATE charm_packed SET length = NULL WHERE base IS NOT NULL",
        "UPDATE charm_packed SET base = version WHERE base IS NOT NULL",
        "UPDATE charm_packed SET digest = ''",
        "DELETE FROM charm_packed WHERE base IS NULL",
    ],
)
def test_damage(harm: str, packer: PostgresBackend, shared_database: psycopg.Connection) -> None:
    talk = Talk()
    talk.go_on(packer, 5)
    packer.compact()
    shared_database.execute(harm.encode())
    with pytest.raises(
        BackendCorrupt, match=f"thread {THREAD}: version {version(2)} of channel messages"
    ):
        read(packer, "0002")
    assert blobs_of(read(packer, None))["messages"][2] == talk.values["0005"]
    talk.go_on(packer, 1)
    assert packer.delete(THREAD, at=1.0)
    assert packed_rows(shared_database) == 0


def test_damage_stops_nothing_else(
    packer: PostgresBackend, shared_database: psycopg.Connection
) -> None:
    """The value that was made whole before the damage is the only one left, and stays."""
    talk, later = Talk("a"), Talk("z")
    talk.go_on(packer, 5)
    packer.compact()
    store(packer, talk.step("0002"))
    store(packer, talk.step())
    later.go_on(packer, 5)
    shared_database.execute("UPDATE charm_packed SET data = '' WHERE base IS NULL")
    packer.compact()
    assert blobs_of(read(packer, "0002", thread="a"))["messages"][2] == talk.values["0002"]
    found = shared_database.execute(
        "SELECT thread_id, count(*) FROM charm_packed GROUP BY 1 ORDER BY 1"
    )
    assert found.fetchall() == [("a", 4), ("z", 4)]


def test_a_thread_that_cannot_be_packed(
    packer: PostgresBackend, shared_database: psycopg.Connection
) -> None:
    """Those behind it are packed, and whoever asked is told."""
    for thread in ("a", "z"):
        Talk(thread).go_on(packer, 5)
    # What the server says of a damaged page.
    shared_database.execute(
        """
        CREATE FUNCTION damaged() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'invalid page' USING ERRCODE = 'data_corrupted'; END $$;
        CREATE TRIGGER damaged BEFORE INSERT ON charm_packed
            FOR EACH ROW WHEN (NEW.thread_id = 'a') EXECUTE FUNCTION damaged()
        """
    )
    try:
        with pytest.raises(BackendCorrupt, match="invalid page"):
            packer.compact()
    finally:
        shared_database.execute("DROP FUNCTION damaged CASCADE")
    assert packed_rows(shared_database) == 4


def test_a_thread_that_is_busy_for_long(database: str, shared_database: psycopg.Connection) -> None:
    """Its writer is waited for, longer than for a server that hangs."""
    packer = PostgresBackend(database, pack_after=1, answer_timeout=0.2)
    packer.setup()
    Talk().go_on(packer, 5)
    with ThreadPoolExecutor(1) as pool, psycopg.connect(database) as writer:
        writer.execute("SELECT charm_lock_v1(%s)", (THREAD,))
        running = pool.submit(packer.compact)
        waited = False
        while not waited and not running.done():
            waiting = shared_database.execute(
                "SELECT FROM pg_stat_activity WHERE query LIKE '%charm_pack_v1%' AND wait_event = 'advisory' "
                "AND clock_timestamp() - query_start > interval '1 s'"
            )
            waited = waiting.fetchone() is not None
        writer.commit()
        running.result(WAIT)
    assert packed_rows(shared_database) == 4
    packer.close()


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("function", [b"charm_pack_v1", b"charm_packable_v1", b"VACUUM"])
def test_a_lost_connection(
    fault: Fault, function: bytes, database: str, shared_database: psycopg.Connection
) -> None:
    """What was packed stays so, and the next call goes on."""
    with Proxy(shared_database.info.port) as proxy:
        url = psycopg.conninfo.make_conninfo(
            database, host="127.0.0.1", port=proxy.port, sslmode="disable", gssencmode="disable"
        )
        packer = PostgresBackend(url, pack_after=1)
        packer.setup()
        talk = Talk()
        talk.go_on(packer, 8)
        before = contents(packer, THREAD)
        proxy.break_at(fault, function)
        with pytest.raises(BackendUnavailable):
            packer.compact()
        assert proxy.fired == 1
        assert contents(packer, THREAD) == before
        packer.compact()
        assert contents(packer, THREAD) == before
        assert packed_rows(shared_database) == 7
        packer.close()


def test_a_server_process_that_is_killed_while_it_packs(
    packer: PostgresBackend, shared_database: psycopg.Connection
) -> None:
    """Between its changes: none of them was made."""
    talk = Talk()
    talk.go_on(packer, 8)
    before = contents(packer, THREAD)
    dsn = shared_database.info.dsn
    with (
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(dsn) as holder,
        psycopg.connect(dsn, autocommit=True) as watcher,
    ):
        holder.execute(
            "SELECT 1 FROM checkpoint_blobs WHERE version = %s FOR UPDATE", (version(3),)
        )
        running = pool.submit(packer.compact)
        killed = None
        while killed is None and not running.done():
            killed = watcher.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE query LIKE '%charm_pack_v1%' AND wait_event = 'transactionid'"
            ).fetchone()
        with pytest.raises(BackendUnavailable):
            running.result(WAIT)
    assert packed_rows(shared_database) == 0
    assert contents(packer, THREAD) == before
    packer.compact()
    assert packed_rows(shared_database) == 7
    assert contents(packer, THREAD) == before


def test_two_packers(
    packer: PostgresBackend, shared_database: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_THREADS", 3)  # of which there is one more
    talks = [Talk(f"{THREAD} {n}") for n in range(4)]
    for talk in talks:
        talk.go_on(packer, 20)
    before = [contents(packer, talk.place["thread"]) for talk in talks]
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(packer.compact) for _ in range(4)]:
            done.result(WAIT)
    assert packed_rows(shared_database) == 4 * 19
    assert [contents(packer, talk.place["thread"]) for talk in talks] == before


class Progress:
    """What the agents and the packer know of each other."""

    def __init__(self) -> None:
        self.packed = threading.Event()
        self.ended = threading.Event()


def run(url: str, name: str, thread_id: str, turns: int, progress: Progress) -> list[str]:
    """Be an agent, for some turns and until something was packed beside it. Returns what was acknowledged."""
    with closing(CheckpointSaver(PostgresBackend(url), device=name)) as saver:
        graph, done = chatter(saver), []
        while len(done) < turns or not (progress.packed.is_set() or progress.ended.is_set()):
            text = f"{name} {len(done)}"
            try:
                graph.invoke({"said": [text]}, place(thread_id))
            except ThreadConflictError:
                continue  # another agent was first: read again, repeat the turn
            done.append(text)
        return done


def look_after(url: str, progress: Progress) -> None:
    with closing(PostgresMemory({"url": url, "pack_after": 2})) as store:
        while not progress.ended.is_set():
            store.prune({"keep_last": 30})
            done = store.compact()
            if done.after < done.before:
                progress.packed.set()


def test_beside_agents(database: str) -> None:
    """Two agents on each of two threads: no error, and nothing that was acknowledged is lost."""
    play_beside(database, 6)


def play_beside(database: str, turns: int) -> None:
    progress = Progress()
    with ThreadPoolExecutor(5) as pool:
        keeper = pool.submit(look_after, database, progress)
        agents = {
            f"agent-{n}": pool.submit(
                run, database, f"agent-{n}", f"thread-{n % 2}", turns, progress
            )
            for n in range(4)
        }
        try:
            said = {name: agent.result(WAIT * 5) for name, agent in agents.items()}
        finally:
            progress.ended.set()
        keeper.result(WAIT)
    assert progress.packed.is_set(), "nothing was packed while the agents ran"
    with closing(CheckpointSaver(PostgresBackend(database))) as saver:
        for n, name in enumerate(said):
            values = chatter(saver).get_state(place(f"thread-{n % 2}")).values
            assert set(said[name]) <= set(values["said"]), f"{name} lost something"
            heard = {text.rstrip("q") for text in values["quick"]}
            assert set(said[name]) <= heard, f"{name} lost something"


@pytest.mark.slow
def test_beside_agents_long(database: str) -> None:
    play_beside(database, 80)
