"""Behind the real PgBouncer in transaction mode: each call may run on another server connection."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.memory import InMemorySaver

from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.testing.colours import Driver
from charm_checkpoint.testing.graphs import _view
from charm_checkpoint.testing.rows import THREAD, contents, head, put, store
from charm_checkpoint.testing.scenarios import SCENARIOS, chat, turn
from charm_memory_postgres import PostgresBackend
from tests.postgres.packed import Talk
from tests.postgres.server import Server, _die_with_parent, _free_port, _unprivileged


@pytest.fixture(scope="module")
def pooler_port(server: Server) -> Iterator[int]:
    """PgBouncer with three server connections for everybody."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("no PgBouncer: apt-get install pgbouncer")
    port = _free_port()
    settings = server.folder / "pgbouncer.ini"
    settings.write_text(
        f"""
        [databases]
        * = host=127.0.0.1 port={server.port} user=postgres
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = any
        pool_mode = transaction
        default_pool_size = 3
        server_round_robin = 1
        """
    )
    with Path(server.folder / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen(
            [program, settings],
            stdout=log,
            stderr=log,
            user=_unprivileged(),
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(
                    f"PgBouncer did not start:\n{(server.folder / 'pgbouncer.log').read_text()}"
                )
            time.sleep(0.02)
    yield port
    process.terminate()
    process.wait()


@pytest.fixture
def pooled(server: Server, pooler_port: int, empty_database: str) -> str:
    """The URL of an empty database behind the pooler."""
    name = psycopg.conninfo.conninfo_to_dict(empty_database)["dbname"]
    return server.url(str(name), port=pooler_port)


def test_each_call_may_run_on_another_server_connection(pooled: str) -> None:
    """Or else the other tests here show nothing."""
    with (
        psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as one,
        psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as other,
    ):
        seen = {one.execute("SELECT pg_backend_pid()").fetchone()}
        for _ in range(3):
            other.execute("BEGIN")
            seen.add(one.execute("SELECT pg_backend_pid()").fetchone())
            other.execute("COMMIT")
    assert len(seen) > 1


def test_setting_up_and_many_writers(pooled: str) -> None:
    def run(n: int) -> None:
        backend = PostgresBackend(pooled)
        backend.setup()
        for step in range(10):
            store(
                backend, put(f"{step}", f"{step - 1}" if step else None, thread=str(n), fenced=True)
            )
            assert head(backend, str(n)) == f"{step}"
        backend.close()

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(run, range(12)))


async def test_graphs_end_as_in_memory(pooled: str) -> None:
    saver = CheckpointSaver(PostgresBackend(pooled))
    for scenario in SCENARIOS:
        seen = []
        for checkpointer in (InMemorySaver(), saver):
            driver: Any = Driver(scenario.build(checkpointer), "sync", "async", scenario.name)
            told = await scenario.play(driver)
            seen.append((told, [_view(s) for s in await driver.history()]))
        assert seen[0] == seen[1]
    saver.close()


def test_many_threads_of_one_process(pooled: str) -> None:
    saver = CheckpointSaver(PostgresBackend(pooled))
    graph = chat(saver)

    def run(n: int) -> Any:
        for text in "abc":
            state = graph.invoke(turn(text), {"configurable": {"thread_id": str(n)}})
        return state["items"][::2]

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(run, range(16))) == [["a", "b", "c"]] * 16
    saver.close()


def test_packing(pooled: str) -> None:
    backend = PostgresBackend(pooled, pack_after=1)
    backend.setup()
    talk = Talk()
    talk.go_on(backend, 10)
    before = contents(backend, THREAD)
    done = backend.compact()
    assert done.after < done.before / 2
    assert contents(backend, THREAD) == before
    backend.close()
