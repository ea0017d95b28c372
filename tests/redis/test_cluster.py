"""A cluster whose slots move and whose nodes die, while agents run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
from redis.crc import key_slot

from charm_checkpoint import CheckpointSaver
from charm_checkpoint.backend import ThreadQuery
from charm_checkpoint.engine import RetryPolicy
from charm_checkpoint.errors import BackendFull, BackendUnavailable
from charm_checkpoint.testing.colours import place
from charm_checkpoint.testing.rows import AT, chain, head, ids, pending, put, statuses
from charm_checkpoint.testing.scenarios import chat, turn
from charm_memory_redis import RedisBackend, RedisMemory
from tests.redis.server import Cluster, installations

_PATIENT = RetryPolicy(budget=60.0, first_pause=0.01, max_pause=0.2)


def _slot(prefix: str, thread: str) -> int:
    return int(key_slot(f"{prefix}:{{{thread}}}:h".encode()))


def test_slots_that_move_while_agents_run(cluster: Cluster, prefix: str) -> None:
    """30 turns of three threads, each on its way from node to node: every turn is there once, in order."""
    saver = CheckpointSaver(RedisBackend(cluster.url(), prefix=prefix), retry=_PATIENT)
    graph = chat(saver)
    threads = ["a", "b", "c"]
    homes = {thread: cluster.owner(_slot(prefix, thread)) for thread in threads}
    over = threading.Event()
    moves = 0

    def move() -> None:
        nonlocal moves
        while not over.is_set():
            for thread in threads:
                slot = _slot(prefix, thread)
                cluster.move(slot, (cluster.owner(slot) + 1) % 3)
                moves += 1

    def talk(thread: str) -> None:
        for n in range(30):
            graph.invoke(turn(str(n)), place(thread))

    with ThreadPoolExecutor(4) as pool:
        mover = pool.submit(move)
        try:
            list(pool.map(talk, threads))
        finally:
            over.set()
        mover.result()
    expected = [text for n in range(30) for text in (str(n), f"said {n}")]
    for thread in threads:
        assert graph.get_state(place(thread)).values["items"] == expected
        assert len(list(saver.list(place(thread)))) == 120
        cluster.move(_slot(prefix, thread), homes[thread])
    listed = saver.engine.call(lambda backend: backend.threads(ThreadQuery()))
    assert {row.thread_id for row in listed} == set(threads)
    assert moves > 10
    saver.close()


def test_writes_of_many_threads_at_once(cluster: Cluster, prefix: str) -> None:
    """One batch goes to all nodes; each unit is answered for itself."""
    backend = RedisBackend(cluster.url(), prefix=prefix)
    names = [f"thread {n}" for n in range(40)]
    chain(backend, "1", thread="thread 7")
    units = [
        *(
            put("2", "1" if name == "thread 7" else None, thread=name, fenced=True)
            for name in names
        ),
        *(pending("2", thread=name) for name in names),
        put("3", "1", thread="thread 7", fenced=True),
    ]
    assert statuses(backend.write(units)) == ["stored"] * 80 + ["conflict"]
    assert [head(backend, name) for name in names] == ["2"] * 40
    assert len(ids(backend)) == 41
    assert sorted(row.thread_id for row in backend.threads(ThreadQuery())) == sorted(names)
    backend.close()


@contextmanager
def _full(cluster: Cluster, node: int) -> Iterator[None]:
    """A node takes nothing more."""
    with cluster.nodes[node].client() as client:
        client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            client.config_set("maxmemory", 0)


def test_a_step_that_is_stored_is_not_told_to_be_refused(cluster: Cluster, prefix: str) -> None:
    """The node that lists the threads is full: the step may be repeated, and is listed when it is answered."""
    listing = cluster.owner(key_slot(f"{prefix}:threads".encode()))
    backend = RedisBackend(cluster.url(), prefix=prefix)
    thread = _thread_on(cluster, prefix, (listing + 1) % 3)
    with _full(cluster, listing), pytest.raises(BackendUnavailable, match=r"stored.*maxmemory"):
        backend.write([put("1", thread=thread)])
    assert head(backend, thread) == "1"
    assert statuses(backend.write([put("1", thread=thread)])) == ["stored"]
    assert [row.thread_id for row in backend.threads(ThreadQuery())] == [thread]
    backend.close()


def test_a_batch_of_which_one_node_refuses_a_part(cluster: Cluster, prefix: str) -> None:
    full = (cluster.owner(key_slot(f"{prefix}:threads".encode())) + 1) % 3
    backend = RedisBackend(cluster.url(), prefix=prefix)
    threads = [_thread_on(cluster, prefix, node) for node in (full, (full + 1) % 3)]
    units = [put("1", thread=thread) for thread in threads]
    with _full(cluster, full):
        with pytest.raises(BackendUnavailable, match="repeat"):
            backend.write(units)
        with pytest.raises(BackendFull):
            backend.write(units[:1])
    assert [head(backend, thread) for thread in threads] == [None, "1"]
    assert statuses(backend.write(units)) == ["stored", "stored"]
    backend.close()


def test_what_removes_works_though_the_list_cannot_be_set_right(
    cluster: Cluster, prefix: str
) -> None:
    """The node that lists the threads is full; a listing sets it right when there is room."""
    listing = cluster.owner(key_slot(f"{prefix}:threads".encode()))
    backend = RedisBackend(cluster.url(), prefix=prefix)
    pruned, deleted = (_thread_on(cluster, prefix, (listing + n) % 3) for n in (1, 2))
    for n, thread in enumerate((pruned, deleted)):
        chain(backend, "1", thread=thread)
        backend.write([put("2", "1", thread=thread, at=AT + 10 + n)])
    with _full(cluster, listing):
        assert backend.prune(pruned, [("", "2")]) == 1
        assert backend.delete(deleted, at=1.0)
        assert [row.updated_at for row in backend.threads(ThreadQuery())] == [AT]
        copy = _thread_on(cluster, prefix, (listing + 1) % 3, named="copy {}")
        with pytest.raises(BackendUnavailable, match="list of threads"):
            backend.copy(pruned, copy, at=1.0)
    assert [row.updated_at for row in backend.threads(ThreadQuery())] == [AT]
    index = f"{prefix}:threads"
    with cluster.nodes[listing].client() as client:
        assert client.zrange(index, 0, -1, withscores=True) == [(pruned.encode(), AT)]
    backend.close()


def test_it_is_found_out_that_it_is_one(cluster: Cluster, prefix: str) -> None:
    with RedisMemory({"url": cluster.nodes[2].url(), "prefix": prefix}) as memory:
        for n in range(10):
            memory.save_messages(str(n), [{"role": "user", "content": str(n)}])
        assert len(list(memory.threads())) == 10


@pytest.mark.slow
def test_a_node_that_dies(prefix: str) -> None:
    """Its threads wait for it, or end with a typed error; the others' are served; nothing is lost."""
    settings = {
        "appendonly": "yes",
        "appendfsync": "always",
        "cluster-require-full-coverage": "no",
        "cluster-node-timeout": "1000",
    }
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(next(iter(installations().values())), settings))
        # The list of all threads is on one of the nodes, without which nothing is written.
        listing = cluster.owner(key_slot(f"{prefix}:threads".encode()))
        dying, other = (n for n in range(3) if n != listing)
        url = cluster.nodes[listing].url()
        patient, hasty = (
            stack.enter_context(_saver(url, prefix, seconds)) for seconds in (60, 0.3)
        )
        threads = [_thread_on(cluster, prefix, n) for n in range(3)]
        for thread in threads:
            chat(patient).invoke(turn("before"), place(thread))
            assert chat(hasty).get_state(place(thread)).values
        cluster.nodes[dying].stop(signal.SIGKILL)
        with pytest.raises(BackendUnavailable):
            chat(hasty).invoke(turn("refused"), place(threads[dying]))
        chat(hasty).invoke(turn("during"), place(threads[other]))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(chat(patient).invoke, turn("during"), place(threads[dying]))
            cluster.nodes[dying].start()
            assert waiting.result()["items"] == ["before", "said before", "during", "said during"]
        cluster.wait()
        for thread in threads:
            said = chat(hasty).get_state(place(thread)).values["items"]
            assert said[:2] == ["before", "said before"]


@contextmanager
def _saver(url: str, prefix: str, budget: float) -> Iterator[CheckpointSaver]:
    backend = RedisBackend(url, prefix=prefix, timeout=0.5)
    saver = CheckpointSaver(backend, retry=_PATIENT._replace(budget=budget))
    yield saver
    saver.close()


def _thread_on(cluster: Cluster, prefix: str, node: int, *, named: str = "{}") -> str:
    names = map(named.format, range(1000))
    return next(name for name in names if cluster.owner(_slot(prefix, name)) == node)
