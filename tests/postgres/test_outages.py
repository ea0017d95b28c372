"""A server that is stopped: a delay if it comes back, a typed error if it stays away, nothing lost or doubled."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import psycopg
import pytest
from langgraph.graph import START, StateGraph
from langgraph.types import Command
from typing_extensions import TypedDict

from charm_checkpoint.errors import BackendError, BackendUnavailable
from charm_checkpoint.testing.colours import place
from charm_checkpoint.testing.rows import chain, ids, put
from charm_checkpoint.testing.scenarios import SCENARIOS, chat, turn
from charm_memory_postgres import PostgresBackend, PostgresMemory
from charm_memory_postgres.connections import Connections
from tests.postgres.proxy import Proxy
from tests.postgres.server import Server, installations


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server that tests may stop, and that survives crashes."""
    with Server(next(iter(installations().values())), durable=True) as server:
        yield server


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
def test_a_restart_in_the_middle_of_a_turn(own_server: Server, how: signal.Signals) -> None:
    with PostgresMemory({"url": own_server.url(), "schema": how.name}) as store:
        scenario = next(s for s in SCENARIOS if s.name == "interrupts")
        graph = scenario.build(store.get_langgraph_checkpointer())
        graph.invoke(turn("go"), place())
        own_server.stop(how)
        with ThreadPoolExecutor(1) as pool:
            resumed = pool.submit(graph.invoke, Command(resume="one"), place())
            own_server.start()
            assert [i.value for i in resumed.result()["__interrupt__"]] == ["second?"]
        graph.invoke(Command(resume="two"), place())
        assert graph.get_state(place()).values["items"] == ["go", "one", "two", "answered"]


@pytest.mark.parametrize("seconds", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_an_outage_in_the_middle_of_a_turn(own_server: Server, seconds: int) -> None:
    """The turn waits for the server, and leaves just the rows that it leaves without an outage."""
    running, stopped = threading.Event(), threading.Event()
    stopped.set()

    class State(TypedDict):
        items: Annotated[list[str], lambda old, new: old + new]

    def work(state: Any) -> Any:
        running.set()
        stopped.wait()
        return {"items": ["x" * 10_000]}

    builder: Any = StateGraph(State)
    for before, name in zip((START, "one", "two"), ("one", "two", "three"), strict=True):
        builder.add_node(name, work if name == "two" else lambda state: {"items": ["y" * 10_000]})
        builder.add_edge(before, name)
    builder.add_node("beside two", lambda state: {"items": ["z"]})
    builder.add_edge("one", "beside two")

    config = {"url": own_server.url(), "schema": f"outage of {seconds} s", "retry_timeout": 60}
    with PostgresMemory(config) as store, ThreadPoolExecutor(1) as pool:
        graph = builder.compile(checkpointer=store.get_langgraph_checkpointer())
        for thread in ("undisturbed", "disturbed"):
            graph.invoke({"items": ["first"]}, place(thread))
        graph.invoke({"items": ["second"]}, place("undisturbed"))
        running.clear()
        stopped.clear()
        turn = pool.submit(graph.invoke, {"items": ["second"]}, place("disturbed"))
        running.wait()
        own_server.stop(signal.SIGQUIT)
        stopped.set()
        time.sleep(seconds)
        assert not turn.done()
        own_server.start()
        assert turn.result() == graph.get_state(place("undisturbed")).values
    with psycopg.connect(own_server.url()) as connection:
        connection.execute(f'SET search_path = "{config["schema"]}"')
        for table in ("checkpoints", "charm_checkpoints", "checkpoint_blobs", "checkpoint_writes"):
            rows = connection.execute(f"SELECT count(*) FROM {table} GROUP BY thread_id").fetchall()
            assert len(rows) == 2, table
            assert rows[0] == rows[1], table


@pytest.mark.parametrize(("retry_timeout", "attempts"), [("0.5", "many"), (0, "one")])
def test_a_server_that_stays_away(own_server: Server, retry_timeout: Any, attempts: str) -> None:
    """Calls are repeated for as long as was configured, and fail without the password."""
    with Proxy(own_server.port) as proxy:
        config = {
            "url": f"postgresql://postgres:s3cret@127.0.0.1:{proxy.port}/?sslmode=disable&gssencmode=disable",
            "schema": f"away {attempts}",
            "retry_timeout": retry_timeout,
        }
        with PostgresMemory(config) as store:
            graph = chat(store.get_langgraph_checkpointer())
            graph.invoke(turn("before"), place())
            own_server.stop()
            try:
                for call in (
                    lambda: graph.invoke(turn("during"), place()),
                    lambda: list(store.threads()),
                    lambda: store.save_messages("messages", [{"role": "user", "content": "hi"}]),
                ):
                    proxy.attempts = 0
                    with pytest.raises(BackendUnavailable, match="cannot be reached") as refused:
                        call()
                    assert "s3cret" not in str(refused.value)
                    assert isinstance(refused.value.__cause__, psycopg.OperationalError)
                    assert proxy.attempts == 1 if attempts == "one" else proxy.attempts > 1
            finally:
                own_server.start()
            assert graph.invoke(turn("after"), place())["items"][-1] == "said after"
            assert "during" not in graph.get_state(place()).values["items"]


def test_what_the_server_refuses_is_not_repeated(own_server: Server) -> None:
    for url in (own_server.url("nowhere"), own_server.url(role="nobody:s3cret")):
        backend = PostgresBackend(url)
        with pytest.raises(BackendError, match="refused") as refused:
            backend.setup()
        assert not isinstance(refused.value, BackendUnavailable)
        assert "s3cret" not in str(refused.value)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the server's processes in /proc")
def test_a_server_that_hangs(own_server: Server) -> None:
    """Its machine goes on taking bytes and connections. It is given up, and serves again when it comes back."""
    backend = PostgresBackend(own_server.url(), schema="hangs", timeout=1, answer_timeout=0.5)
    backend.setup()
    chain(backend, "1")
    own_server.signal(signal.SIGSTOP)
    try:
        with pytest.raises(BackendUnavailable, match=r"nothing was heard for 0\.5 s"):
            backend.write([put("2", "1", fenced=True)])
        with pytest.raises(BackendUnavailable, match="cannot be reached"):
            ids(backend)
    finally:
        own_server.signal(signal.SIGCONT)
    assert [outcome.status for outcome in backend.write([put("2", "1", fenced=True)])] == ["stored"]
    assert ids(backend) == ["2", "1"]
    backend.close()


def test_what_may_take_any_time_is_waited_for(own_server: Server) -> None:
    backend = PostgresBackend(own_server.url(), schema="patient", answer_timeout=0.3)
    backend.setup()
    chain(backend, "1", "2")
    with ThreadPoolExecutor(1) as pool:
        with psycopg.connect(own_server.url()) as busy:
            busy.execute("SELECT patient.charm_lock_v1('thread')")
            pruning = pool.submit(backend.prune, "thread", [("", "1")])
            with pytest.raises(BackendUnavailable, match=r"nothing was heard for 0\.3 s"):
                backend.write([put("3", "2", fenced=True)])
            assert not pruning.done()
        assert pruning.result() == 1
    backend.close()


def test_a_server_that_is_slow_and_not_silent(own_server: Server) -> None:
    connections = Connections(own_server.url(), size=1, timeout=1, patience=0.5)
    slowly = "DO $$ BEGIN FOR n IN 1 .. 5 LOOP PERFORM pg_sleep(0.2); RAISE NOTICE 'still here'; END LOOP; END $$"
    with connections.lend() as connection:
        connection.execute(slowly)
    with (
        pytest.raises(BackendUnavailable, match="nothing was heard"),
        connections.lend() as connection,
    ):
        connection.execute("SELECT pg_sleep(60)")
    connections.close()
