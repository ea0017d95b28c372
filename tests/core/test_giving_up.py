"""Callers that give up: cancelled tasks, Ctrl-C. What was handed over is stored whole, and nobody else is hurt."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from charm_checkpoint.backend import Outcome, Unit
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.sqlite import SqliteBackend
from tests.core.support import (
    WAIT,
    Gate,
    aput,
    begun,
    checkpoint_of,
    latest,
    opened,
    place,
    put,
)


class TestCancelling:
    async def test_leaves_whole_rows(
        self, gate: Gate, pool: ThreadPoolExecutor, path: Path
    ) -> None:
        with opened(gate) as saver:
            tasks = [asyncio.create_task(aput(saver, place("one"), a=1, b=[2] * 9999))]
            await begun(*tasks)
            assert await asyncio.to_thread(gate.entered.wait, WAIT)
            # The first is in flight, these wait.
            tasks += [asyncio.create_task(aput(saver, place(n), a=1, b=n)) for n in range(10)]
            await begun(*tasks)
            for task in tasks:
                task.cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(a) for a in answers} == {asyncio.CancelledError}
            gate.opened.set()
            assert saver.flush(WAIT)
        with opened(path) as saver:
            assert latest(saver, "one") == {"a": 1, "b": [2] * 9999}
            for n in range(10):
                assert latest(saver, n) == {"a": 1, "b": n}
            assert len(list(saver.list(None))) == 11

    async def test_a_timeout_in_the_callers_hands_hurts_nobody_else(
        self, gate: Gate, path: Path
    ) -> None:
        with opened(gate) as saver:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(aput(saver, place("given up"), n=1), 0.01)
            other = asyncio.create_task(aput(saver, place("patient"), n=2))
            await begun(other)
            gate.opened.set()
            await other
            assert latest(saver, "patient") == {"n": 2}
            assert latest(saver, "given up") == {"n": 1}

    def test_a_loop_that_is_gone_is_no_ones_trouble(self, gate: Gate) -> None:
        async def give_up(saver: CheckpointSaver) -> None:
            task = asyncio.create_task(aput(saver, place("t"), n=1))
            await begun(task)

        with opened(gate) as saver:
            # asyncio.run cancels what is left and closes the loop, while the write is in flight.
            asyncio.run(give_up(saver))
            gate.opened.set()
            assert saver.flush(WAIT)
            assert latest(saver, "t") == {"n": 1}

    async def test_a_read_given_up(self, path: Path) -> None:
        with opened(path) as saver:
            put(saver, place("t"), n=1)
            for _ in range(50):
                task = asyncio.create_task(saver.aget_tuple(place("t")))
                await asyncio.sleep(0)
                task.cancel()
            found = await saver.aget_tuple(place("t"))
            assert found is not None


def elsewhere(call: Callable[..., Iterator[Any]], *args: Any) -> list[Any]:
    """What a call gives on another thread, one that ends with the tests even if it hangs."""
    answer: Future[list[Any]] = Future()
    threading.Thread(target=lambda: answer.set_result(list(call(*args))), daemon=True).start()
    return answer.result(WAIT)


class TestInterrupt:
    def test_a_ctrl_c_in_the_writer_that_leads(self, path: Path, pool: ThreadPoolExecutor) -> None:
        others: list[Future[Any]] = []

        class Interrupted(Gate):
            def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
                if not self.batches:
                    self.batches.append(len(units))
                    waiting = [asyncio.run_coroutine_threadsafe(write(n), loop) for n in range(10)]
                    others.extend(waiting)
                    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(WAIT)
                    signal.raise_signal(signal.SIGINT)
                return super().write(units)

        async def write(n: int) -> Any:
            return await aput(saver, place(n), n=n)

        loop = asyncio.new_event_loop()
        loops = threading.Thread(target=loop.run_forever)
        loops.start()
        gate = Interrupted(SqliteBackend(path))
        gate.opened.set()
        try:
            with opened(gate) as saver:
                with pytest.raises(KeyboardInterrupt):
                    put(saver, place("mine"), n=-1)
                for other in others:
                    other.result(WAIT)
                assert len(others) == 10
                assert saver.flush(WAIT)
                assert latest(saver, "mine") == {"n": -1}, "it was handed over, so it is stored"
                for n in range(10):
                    assert latest(saver, n) == {"n": n}
                put(saver, place("after"), n=1)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            loops.join(WAIT)
            loop.close()

    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="has no timer that interrupts")
    @pytest.mark.parametrize("times", [200, pytest.param(10_000, marks=pytest.mark.slow)])
    def test_at_any_moment(self, path: Path, times: int) -> None:
        def press_ctrl_c(*_: object) -> None:
            raise KeyboardInterrupt

        def save_until_interrupted(saver: CheckpointSaver, stored: list[Any]) -> None:
            config = place(n)
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 3e-3))
                while True:
                    config = put(saver, config, n=len(stored))
                    stored.append(config)
                    saver.get_tuple(config)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)

        seed = random.randrange(10**6)
        print("seed", seed)
        rng = random.Random(seed)
        before = signal.signal(signal.SIGALRM, press_ctrl_c)
        try:
            with opened(path) as saver:
                for n in range(times):
                    stored: list[Any] = []
                    # RuntimeError: what the interrupt of a wait makes of threading's own locks.
                    with pytest.raises((KeyboardInterrupt, RuntimeError)):
                        save_until_interrupted(saver, stored)
                    assert saver.flush(WAIT), f"nobody writes any more after {n + 1}"
                    found = [t.config for t in elsewhere(saver.list, place(n))]
                    # The interrupted one was stored, or never begun.
                    assert found in (stored[::-1], [*found[:1], *stored[::-1]])
        finally:
            signal.signal(signal.SIGALRM, before)

    def test_a_ctrl_c_within_the_transaction(self, path: Path) -> None:
        """SQLite rolls back, the connection is as good as before."""
        with opened(path) as saver:
            first = put(saver, place("t"), n=1)
            backend = saver.engine.backend
            assert isinstance(backend, SqliteBackend)
            interrupt = Interrupting()
            checkpoint, versions = checkpoint_of(n=2)
            unit = saver._unit(first, checkpoint, {"source": "loop", "step": 1}, versions)
            with pytest.raises(KeyboardInterrupt):
                backend.write([unit, interrupt])  # type: ignore[list-item]
            assert latest(saver, "t") == {"n": 1}, "all of the batch or nothing"
            put(saver, first, n=3)
            assert latest(saver, "t") == {"n": 3}


class Interrupting:
    """A unit during which somebody presses Ctrl-C."""

    def __getattr__(self, name: str) -> Any:
        raise KeyboardInterrupt
