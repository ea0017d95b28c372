"""One saver for many threads, tasks, event loops and processes."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from charm_checkpoint.backend import Backend
from charm_checkpoint.errors import ThreadConflictError
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.testing.colours import (
    ColourFixtures,
    SyncFace,
    grow,
    id_of,
    listed,
    newest,
    place,
)
from charm_checkpoint.testing.scenarios import chat, turn

T = TypeVar("T")

_THREADS = 32
_TASKS = 200


def _together(count: int, action: Callable[[int], T]) -> list[T]:
    """Run `action` in `count` threads that start at once."""
    barrier = threading.Barrier(count)

    def run(n: int) -> T:
        barrier.wait()
        return action(n)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def _wait_for_child(run: Callable[[], None]) -> None:
    """Run in a forked child; fail with its traceback."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python warns of forking with threads: that it works is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        signal.alarm(60)  # a child that hangs must not outlive the test
        report = b""
        try:
            run()
        except BaseException:  # noqa: BLE001 the parent raises it
            report = traceback.format_exc().encode()
        os.write(writer, report)
        os._exit(1 if report else 0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        report = pipe.read()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, report.decode()


class ConcurrencyContract(ColourFixtures):
    """Many users of one saver, and several savers over one thread."""

    def test_threads(self, saver: CheckpointSaver) -> None:
        graph = chat(saver)

        def run(n: int) -> Any:
            config = place(f"thread {n}")
            graph.invoke(turn(f"{n}"), config)
            return graph.invoke(turn("again"), config)["items"]

        expected = [[f"{n}", f"said {n}", "again", "said again"] for n in range(_THREADS)]
        assert _together(_THREADS, run) == expected
        assert len(list(saver.list(None, filter={"source": "input"}))) == 2 * _THREADS

    @pytest.mark.asyncio
    async def test_tasks(self, saver: CheckpointSaver) -> None:
        async def run(n: int) -> None:
            thread = f"thread {n}"
            config = await grow(saver, place(thread), {"a": n})
            await saver.aput_writes(config, [("b", n)], "task")
            config = await grow(saver, config, {"a": -n})
            assert id_of((await newest(saver, place(thread))).config) == id_of(config)

        await asyncio.gather(*(run(n) for n in range(_TASKS)))
        for n in range(0, _TASKS, 20):
            found = [t async for t in saver.alist(place(f"thread {n}"))]
            assert [t.checkpoint["channel_values"]["a"] for t in found] == [-n, n]
            assert found[1].pending_writes == [("task", "b", n)]

    def test_a_new_event_loop_for_each_call(self, saver: CheckpointSaver) -> None:
        graph = chat(saver)
        for n in range(3):
            asyncio.run(graph.ainvoke(turn(f"a{n}"), place()))
            graph.invoke(turn(f"s{n}"), place())
        items = graph.get_state(place()).values["items"]
        assert items[::2] == ["a0", "s0", "a1", "s1", "a2", "s2"]

    def test_both_colours_at_once(self, saver: CheckpointSaver) -> None:
        graph = chat(saver)

        def run(n: int) -> Any:
            config = place(f"thread {n}")
            if n % 2:
                return graph.invoke(turn("x"), config)["items"]
            return asyncio.run(graph.ainvoke(turn("x"), config))["items"]

        assert _together(8, run) == [["x", "said x"]] * 8

    def test_of_two_devices_one_wins_each_step(
        self, saver: CheckpointSaver, phone: CheckpointSaver
    ) -> None:
        """Nothing that was acknowledged is lost, and the steps are one chain."""
        devices = [SyncFace(saver), SyncFace(phone)]
        acknowledged: list[str] = [id_of(asyncio.run(grow(devices[0], place())))]

        def step(n: int) -> str | None:
            device = devices[n]
            try:
                return id_of(asyncio.run(grow(device, place("thread", acknowledged[-1]))))
            except ThreadConflictError as error:
                assert error.expected == acknowledged[-1]
                return None

        for _ in range(20):
            for device in devices:
                assert id_of(asyncio.run(newest(device)).config) == acknowledged[-1]
            won = [checkpoint_id for checkpoint_id in _together(2, step) if checkpoint_id]
            assert len(won) == 1
            acknowledged += won
        assert asyncio.run(listed(devices[1])) == acknowledged[::-1]
        parents = [t.parent_config for t in saver.list(place())]
        assert [id_of(p) for p in parents if p] == acknowledged[-2::-1]

    def test_of_many_writers_on_one_saver_one_wins(self, saver: CheckpointSaver) -> None:
        """Also when their rows reach the backend in one batch."""
        face = SyncFace(saver)
        start = asyncio.run(grow(face, place()))

        def write(n: int) -> bool:
            try:
                asyncio.run(grow(face, start, {"a": n}))
            except ThreadConflictError:
                return False
            return True

        assert sum(_together(16, write)) == 1
        assert len(asyncio.run(listed(face))) == 2

    def test_the_first_of_many_writes_stays_for_all(self, saver: CheckpointSaver) -> None:
        config = asyncio.run(grow(SyncFace(saver), place()))

        def write(n: int) -> None:
            saver.put_writes(config, [("a", n), ("b", n)], "task")

        _together(16, write)
        found = saver.get_tuple(config)
        assert found is not None
        assert found.pending_writes is not None
        assert [w[1] for w in found.pending_writes] == ["a", "b"]
        assert len({w[2] for w in found.pending_writes}) == 1, "a half of two writers each"

    @pytest.mark.asyncio
    async def test_a_cancelled_write_is_stored_whole_or_not_at_all(
        self, saver: CheckpointSaver
    ) -> None:
        config = await grow(saver, place())
        for n in range(20):
            values = {"a": n, "b": n}
            writing = asyncio.ensure_future(grow(saver, config, values))
            for _ in range(n % 4):
                await asyncio.sleep(0)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await asyncio.to_thread(saver.flush)
            found = await newest(saver)
            assert found.checkpoint["channel_values"] in (values, {"a": n - 1, "b": n - 1}, {})
            config = found.config

    def test_threads_and_event_loops_may_end_while_the_saver_lives(
        self, saver: CheckpointSaver
    ) -> None:
        for n in range(4):
            worker = threading.Thread(target=asyncio.run, args=(grow(saver, place(f"thread {n}")),))
            worker.start()
            worker.join()
        assert len(list(saver.list(None))) == 4

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    def test_a_forked_child_goes_on(self, backend: Backend, saver: CheckpointSaver) -> None:
        graph = chat(saver)
        graph.invoke(turn("parent"), place())

        async def arun() -> None:
            await graph.ainvoke(turn("child, async"), place())

        def run() -> None:
            assert graph.get_state(place()).values["items"][0] == "parent"
            graph.invoke(turn("child"), place())
            asyncio.run(arun())
            items = graph.get_state(place()).values["items"]
            assert items[::2] == ["parent", "child", "child, async"]
            saver.flush()

        asyncio.run(graph.ainvoke(turn("before"), place("other")))  # so that all threads run
        _wait_for_child(run)
        graph.invoke(turn("parent"), place("other"))
        seen = graph.get_state(place()).values["items"][::2]
        shared = self.reopen(backend)
        if shared is None:
            assert seen == ["parent"]
        else:
            shared.close()
            assert seen == ["parent", "child", "child, async"]
