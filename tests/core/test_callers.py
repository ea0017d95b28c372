"""One saver for everybody: threads, tasks, loops and both colours at once."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.core.support import WAIT, aput, chat_graph, latest, opened, place, put


def test_a_loop_per_call(path: Path) -> None:
    with opened(path) as saver:
        graph = chat_graph(saver)
        for n in range(10):
            asyncio.run(graph.ainvoke({"turns": [str(n)]}, place("t")))
            graph.invoke({"turns": [f"{n}, not async"]}, place("t"))
        assert len(latest(saver, "t")["turns"]) == 40


def test_32_threads(path: Path) -> None:
    with opened(path) as saver, ThreadPoolExecutor(32) as pool:
        graph = chat_graph(saver)
        together = threading.Barrier(32)

        def talk(n: int) -> None:
            together.wait(WAIT)
            for turn in range(3):
                if n % 2:
                    graph.invoke({"turns": [str(turn)]}, place(n))
                else:
                    asyncio.run(graph.ainvoke({"turns": [str(turn)]}, place(n)))

        for each in [pool.submit(talk, n) for n in range(32)]:
            each.result(WAIT)
        for n in range(32):
            assert latest(saver, n)["turns"] == ["0", "re 0", "1", "re 1", "2", "re 2"]


async def test_200_tasks(path: Path) -> None:
    with opened(path) as saver:
        graph = chat_graph(saver)
        await asyncio.gather(*(graph.ainvoke({"turns": ["hi"]}, place(n)) for n in range(200)))
        for n in range(200):
            assert latest(saver, n)["turns"] == ["hi", "re hi"]


async def test_sync_calls_on_the_loop_itself(path: Path) -> None:
    """Other savers hang here for ever."""
    with opened(path) as saver:
        config = await aput(saver, place("t"), n=0)
        others = [asyncio.create_task(aput(saver, place(n), n=n)) for n in range(20)]
        await asyncio.sleep(0)
        for n in range(20):
            config = put(saver, config, n=n)
            saver.put_writes(config, [("n", n)], "task")
            assert latest(saver, "t") == {"n": n}
        await asyncio.gather(*others)


async def test_where_no_thread_can_be_started(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is while the interpreter shuts down: whoever calls does the work."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    with opened(path) as saver:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        first = await aput(saver, place("t"), n=1)
        second = put(saver, first, n=2)
        await saver.aput_writes(second, [("n", 3)], "task")
        found = await saver.aget_tuple(place("t"))
        assert found is not None
        assert found.config == second
        assert found.pending_writes == [("task", "n", 3)]
        await asyncio.gather(*(aput(saver, place(n), n=n) for n in range(20)))
        assert [latest(saver, n)["n"] for n in range(20)] == list(range(20))
        assert saver.flush(WAIT)


def test_one_saver_in_two_loops_at_once(path: Path) -> None:
    async def talk(graph: Any, name: str) -> None:
        for turn in range(5):
            await graph.ainvoke({"turns": [str(turn)]}, place(name))

    with opened(path) as saver, ThreadPoolExecutor(2) as pool:
        graph = chat_graph(saver)
        for each in [pool.submit(asyncio.run, talk(graph, name)) for name in "ab"]:
            each.result(WAIT)
        assert len(latest(saver, "a")["turns"]) == len(latest(saver, "b")["turns"]) == 10
