"""How calls reach a backend: shared commits, retries, flush, close.

Cancellation and interrupts are in test_giving_up, many callers in test_callers, exit and fork in test_processes.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from charm_checkpoint import lane
from charm_checkpoint.backend import Backend, Outcome, PutWrites, Unit, WriteRow
from charm_checkpoint.engine import Engine, RetryPolicy
from charm_checkpoint.errors import BackendError, BackendFull, BackendUnavailable
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.sqlite import SqliteBackend
from tests.core.support import (
    WAIT,
    Gate,
    Through,
    aput,
    begun,
    id_of,
    in_flight,
    latest,
    opened,
    place,
    put,
)

QUICK = RetryPolicy(budget=0.2, first_pause=0.005, max_pause=0.02)


class Failing(Through):
    """Raises before or after the first few writes and reads."""

    def __init__(
        self, backend: Backend, errors: Sequence[Exception], *, late: bool = False
    ) -> None:
        super().__init__(backend)
        self.errors = list(errors)
        self.late = late
        self.attempts = 0

    def _do(self, action: Callable[[], Any]) -> Any:
        self.attempts += 1
        if self.late:
            answer = action()
        if self.errors:
            raise self.errors.pop(0)
        return answer if self.late else action()

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        answer: Sequence[Outcome] = self._do(lambda: self.inner.write(units))
        return answer

    def read(self, *place: Any) -> Any:
        return self._do(lambda: self.inner.read(*place))


class TestLanes:
    """A backend that is far away takes several writes at once."""

    @pytest.fixture
    def far(self, gate: Gate) -> Gate:
        gate.parallel_writes = 3  # type: ignore[attr-defined]
        return gate

    async def test_a_checkpoint_waits_for_no_pending_writes(
        self, far: Gate, pool: ThreadPoolExecutor
    ) -> None:
        with opened(far) as saver:
            config = place("t", "1")
            writes = pool.submit(saver.put_writes, config, [("a", 1)], "task")
            assert far.entered.wait(WAIT)
            far.entered.clear()
            step = asyncio.create_task(aput(saver, place("t"), n=1))
            await asyncio.to_thread(far.entered.wait, WAIT)
            assert far.batches == [1, 1]
            far.opened.set()
            await step
            writes.result(WAIT)
            assert latest(saver, "t") == {"n": 1}

    def test_a_backend_that_turns_out_to_be_near(self, far: Gate, pool: ThreadPoolExecutor) -> None:
        """Pending writes then share a transaction with whatever else waits."""
        with opened(far) as saver:
            step = pool.submit(put, saver, place("t"), n=1)
            assert far.entered.wait(WAIT)
            far.entered.clear()
            far.parallel_writes = 1  # type: ignore[attr-defined]
            writes = pool.submit(saver.put_writes, place("t", "1"), [("a", 1)], "task")
            while saver.engine.unanswered < 2:
                assert not writes.done()
            assert not far.entered.wait(0.1)
            far.opened.set()
            step.result(WAIT)
            writes.result(WAIT)
            assert far.batches == [1, 1]

    def test_no_more_than_it_takes_are_in_flight(self, far: Gate, pool: ThreadPoolExecutor) -> None:
        with opened(far) as saver:
            tasks = []
            for n in range(2):
                far.entered.clear()
                tasks.append(
                    pool.submit(saver.put_writes, place("t", "1"), [("a", n)], f"task {n}")
                )
                assert far.entered.wait(WAIT)
            tasks += [
                pool.submit(saver.put_writes, place("t", "1"), [("a", n)], f"task {n}")
                for n in range(2, 7)
            ]
            while saver.engine.unanswered < 7:
                assert far.batches == [1, 1]
            far.opened.set()
            for task in tasks:
                task.result(WAIT)
            assert saver.engine.flush(WAIT)
            assert sum(far.batches) == 7

    def test_flush_waits_for_all_of_them(self, far: Gate, pool: ThreadPoolExecutor) -> None:
        with opened(far) as saver:
            task = pool.submit(saver.put_writes, place("t", "1"), [("a", 1)], "task")
            assert far.entered.wait(WAIT)
            assert not saver.flush(0.01)
            far.opened.set()
            assert saver.flush(WAIT)
            assert task.done() or task.result(WAIT) is None


class TestGroupCommit:
    async def test_those_who_come_meanwhile_share_the_next(
        self, gate: Gate, pool: ThreadPoolExecutor
    ) -> None:
        with opened(gate) as saver:
            first = in_flight(gate, saver, pool)
            tasks = [asyncio.create_task(aput(saver, place(n), n=n)) for n in range(50)]
            await begun(*tasks)
            gate.opened.set()
            await asyncio.gather(*tasks)
            first.result(WAIT)
            assert gate.batches == [1, 50]
            for n in range(50):
                assert latest(saver, n) == {"n": n}

    def test_threads_share_too(self, gate: Gate, pool: ThreadPoolExecutor) -> None:
        with opened(gate) as saver:
            first = in_flight(gate, saver, pool)
            writers = [pool.submit(put, saver, place(n), n=n) for n in range(50)]
            while saver.engine.unanswered < 51:
                assert not first.done()
            gate.opened.set()
            for each in [first, *writers]:
                each.result(WAIT)
            assert gate.batches == [1, 50]

    def test_an_idle_engine_waits_for_nobody(self, gate: Gate) -> None:
        gate.opened.set()
        with opened(gate) as saver:
            for n in range(3):
                put(saver, place(n), n=n)
        assert gate.batches == [1, 1, 1]

    async def test_more_than_one_transaction_should_hold_are_parted(
        self, gate: Gate, pool: ThreadPoolExecutor
    ) -> None:
        with opened(gate) as saver:
            first = in_flight(gate, saver, pool)
            tasks = [asyncio.create_task(aput(saver, place(n), n=n)) for n in range(600)]
            await begun(*tasks)
            gate.opened.set()
            await asyncio.gather(*tasks)
            first.result(WAIT)
        assert gate.batches == [1, 512, 88]

    async def test_a_run_beside_a_write_in_flight_needs_no_thread(
        self, gate: Gate, pool: ThreadPoolExecutor
    ) -> None:
        """Waiting async callers hold none, so their number does not matter."""
        with opened(gate) as saver:
            first = in_flight(gate, saver, pool)
            before = threading.active_count()
            tasks = [asyncio.create_task(aput(saver, place(n), n=n)) for n in range(200)]
            await begun(*tasks)
            assert threading.active_count() <= before + 1
            gate.opened.set()
            await asyncio.gather(*tasks)
            first.result(WAIT)


class TestFailures:
    async def test_one_bad_unit_fails_alone(self, gate: Gate, pool: ThreadPoolExecutor) -> None:
        with opened(gate) as saver:
            first = in_flight(gate, saver, pool)
            not_bytes: Any = object()
            row = WriteRow("task", 0, "channel", "", "msgpack", not_bytes)
            bad = saver.engine.awrite(PutWrites("bad", "", "checkpoint", (row,)))
            tasks: list[asyncio.Task[Any]] = [
                asyncio.create_task(aput(saver, place(n), n=n)) for n in range(10)
            ]
            tasks.insert(5, asyncio.create_task(bad))
            await begun(*tasks)
            gate.opened.set()
            answers: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
            first.result(WAIT)
            assert isinstance(answers.pop(5), BackendError)
            assert [id_of(a) for a in answers] == [
                id_of(t.config) for n in range(10) for t in saver.list(place(n))
            ]

    def test_a_full_disk_is_told_and_loses_nothing(self, path: Path) -> None:
        backend = Failing(SqliteBackend(path), [])
        with opened(backend) as saver:
            first = put(saver, place("t"), n=1)
            backend.errors = [BackendFull("no room left")]
            with pytest.raises(BackendFull):
                put(saver, first, n=2)
            assert latest(saver, "t") == {"n": 1}
            put(saver, first, n=3)
            assert latest(saver, "t") == {"n": 3}
        assert backend.attempts == 5, "only what is unavailable is tried again"

    def test_what_is_unavailable_for_a_moment_is_tried_again(self, path: Path) -> None:
        backend = Failing(SqliteBackend(path), [BackendUnavailable("gone")] * 3)
        with opened(backend, retry=QUICK) as saver:
            put(saver, place("t"), n=1)
            assert backend.attempts == 4
            backend.errors = [BackendUnavailable("gone")] * 3
            assert latest(saver, "t") == {"n": 1}
            assert backend.attempts == 8

    async def test_not_for_ever(self, path: Path) -> None:
        backend = Failing(SqliteBackend(path), [BackendUnavailable("gone")] * 10_000)
        with opened(backend, retry=QUICK) as saver:
            with pytest.raises(BackendUnavailable):
                put(saver, place("t"), n=1)
            # Pauses begin at 5 ms, less the jitter, and double to 20.
            assert 2 < backend.attempts < 200
            with pytest.raises(BackendUnavailable):
                await aput(saver, place("t"), n=1)
            with pytest.raises(BackendUnavailable):
                saver.get_tuple(place("t"))
            with pytest.raises(BackendUnavailable):
                await saver.aget_tuple(place("t"))
            backend.errors = []
            put(saver, place("t"), n=1)
            assert latest(saver, "t") == {"n": 1}

    async def test_a_batch_is_given_up_together(
        self, path: Path, gate: Gate, pool: ThreadPoolExecutor
    ) -> None:
        """Not one after the other, each with its own patience."""
        backend = Failing(gate, [])
        with opened(backend, retry=QUICK) as saver:
            first = in_flight(gate, saver, pool)
            tasks = [asyncio.create_task(aput(saver, place(n), n=n)) for n in range(50)]
            await begun(*tasks)
            backend.errors = [BackendUnavailable("gone")] * 10_000
            gate.opened.set()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(answer) for answer in answers} == {BackendUnavailable}
            with suppress(BackendUnavailable):
                first.result(WAIT)
            assert backend.attempts < 100

    async def test_a_lost_answer_doubles_nothing(self, path: Path) -> None:
        gone = BackendUnavailable("the answer was lost")
        backend = Failing(SqliteBackend(path), [], late=True)
        with opened(backend, retry=QUICK) as saver:
            config = place("t")
            for n in range(5):
                backend.errors = [gone, gone]
                config = put(saver, config, n=n)
                backend.errors = [gone, gone]
                saver.put_writes(config, [("a", n), ("b", n)], f"task {n}")
            backend.errors = [gone]
            branch = await aput(saver, config, n=5)
            assert [id_of(t.config) for t in saver.list(place("t"), limit=1)] == [id_of(branch)]
            found = list(saver.list(place("t")))
            assert [t.checkpoint["channel_values"]["n"] for t in found] == [5, 4, 3, 2, 1, 0]
            assert [t.pending_writes for t in found[1:]] == [
                [(f"task {n}", "a", n), (f"task {n}", "b", n)] for n in (4, 3, 2, 1, 0)
            ]

    def test_a_copy_whose_answer_was_lost_is_not_made_again(self, path: Path) -> None:
        class LosesCopies(Through):
            def copy(self, source: str, target: str, *, at: float) -> None:
                self.inner.copy(source, target, at=at)
                raise BackendUnavailable("the answer was lost")

        with opened(LosesCopies(SqliteBackend(path)), retry=QUICK) as saver:
            put(saver, place("t"), n=1)
            with pytest.raises(BackendUnavailable):
                saver.copy_thread("t", "copy")
            assert latest(saver, "copy") == {"n": 1}


class TestFlushAndClose:
    def test_flush_tells_what_is_still_under_way(
        self, gate: Gate, pool: ThreadPoolExecutor
    ) -> None:
        with opened(gate) as saver:
            assert saver.flush(0), "nothing to wait for"
            first = in_flight(gate, saver, pool)
            assert not saver.flush(0.01)
            gate.opened.set()
            assert saver.flush(WAIT)
            assert first.done() or first.result(WAIT)

    def test_flush_waits_only_for_what_came_before_it(
        self, path: Path, pool: ThreadPoolExecutor
    ) -> None:
        """There is never a moment at which nothing waits."""
        enough = threading.Event()

        class Endless(Through):
            def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
                answer = super().write(units)
                handed = saver.engine.unanswered
                if not enough.is_set():
                    pool.submit(put, saver, place("next"), n=0)
                    while saver.engine.unanswered == handed and not enough.wait(0.001):
                        pass
                return answer

        with opened(Endless(SqliteBackend(path))) as saver:
            put(saver, place("first"), n=0)
            for _ in range(20):
                assert saver.flush(WAIT)
            enough.set()

    def test_close_stores_what_is_waiting(
        self, gate: Gate, pool: ThreadPoolExecutor, path: Path
    ) -> None:
        saver = CheckpointSaver(gate)
        first = in_flight(gate, saver, pool)
        second = pool.submit(put, saver, place("second"), n=2)
        closing = pool.submit(saver.close)
        with pytest.raises(FutureTimeout):
            closing.result(0.05)
        gate.opened.set()
        closing.result(WAIT)
        first.result(WAIT)
        with opened(path) as after:
            assert latest(after, "first") == {"n": 0}
            try:
                second.result(WAIT)
            except BackendError:
                return  # It came after the close, and was told.
            assert latest(after, "second") == {"n": 2}

    async def test_what_is_closed_says_so(self, path: Path) -> None:
        saver = CheckpointSaver(SqliteBackend(path))
        copy = saver.with_allowlist([("somewhere", "Something")])
        assert copy is not saver
        put(saver, place("t"), n=1)
        saver.close()
        saver.close()
        for each in (saver, copy):
            assert isinstance(each, CheckpointSaver)
            with pytest.raises(BackendError, match="closed"):
                put(each, place("t"), n=2)
            with pytest.raises(BackendError, match="closed"):
                await aput(each, place("t"), n=2)
            with pytest.raises(BackendError, match="closed"):
                each.get_tuple(place("t"))
            with pytest.raises(BackendError, match="closed"):
                await each.aget_tuple(place("t"))
            with pytest.raises(BackendError, match="closed"):
                list(each.list(place("t")))
            with pytest.raises(BackendError, match="closed"):
                each.delete_thread("t")
        with opened(path) as again:
            assert latest(again, "t") == {"n": 1}

    def test_no_threads_stay_behind(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nor an engine that was not closed and that nobody holds."""

        async def use(saver: CheckpointSaver) -> None:
            await aput(saver, place("t"), n=1)
            await saver.aget_tuple(place("t"))

        monkeypatch.setattr(lane, "_IDLE", 0.01)
        before = set(threading.enumerate())
        saver = CheckpointSaver(SqliteBackend(path))
        asyncio.run(use(saver))
        writer = saver.engine._main._writer
        assert writer is not None
        writer.join(WAIT)
        asyncio.run(use(saver))
        saver.close()
        for thread in set(threading.enumerate()) - before:
            thread.join(WAIT)
            assert not thread.is_alive()

        dropped = CheckpointSaver(SqliteBackend(path))
        put(dropped, place("t"), n=1)
        dropped.engine.backend.close()
        alive = weakref.ref(dropped.engine)
        del dropped
        for thread in set(threading.enumerate()) - before:
            thread.join(WAIT)
        gc.collect()
        assert alive() is None

    def test_setup_happens_on_first_use_and_once(self, path: Path) -> None:
        called = threading.Semaphore(0)

        class Counting(Through):
            setups = 0

            def setup(self) -> None:
                self.setups += 1
                if self.setups == 1:
                    for _ in range(16):
                        assert called.acquire(timeout=WAIT)
                self.inner.setup()

        def read(_: int) -> None:
            called.release()
            assert saver.get_tuple(place("t")) is None

        backend = Counting(SqliteBackend(path))
        with opened(backend) as saver, ThreadPoolExecutor(16) as pool:
            assert not path.exists()
            list(pool.map(read, range(16)))
            put(saver, place("t"), n=1)
        assert backend.setups == 1

    def test_a_setup_that_failed_is_tried_again(self, path: Path) -> None:
        class Late(Through):
            room = False

            def setup(self) -> None:
                if not self.room:
                    self.room = True
                    raise BackendFull("no room for a new file")
                self.inner.setup()

        with opened(Late(SqliteBackend(path))) as saver:
            with pytest.raises(BackendFull):
                put(saver, place("t"), n=1)
            put(saver, place("t"), n=1)
            assert latest(saver, "t") == {"n": 1}


def test_an_engine_is_only_rows(path: Path) -> None:
    """It works on units alone, for whoever writes them."""
    bare = Engine(SqliteBackend(path))
    row = WriteRow("task", 0, "channel", "", "msgpack", b"\x01")
    unit = PutWrites("t", "", "checkpoint", (row,))
    assert bare.write(unit).status == "stored"
    assert asyncio.run(bare.awrite(unit)).status == "stored"
    bare.close()
