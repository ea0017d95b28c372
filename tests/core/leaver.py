"""Processes for test_processes: how one can end, or fork, while a saver is in use.

Each says the thread ids of what was acknowledged.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from charm_checkpoint.saver import CheckpointSaver

at_exit: list[Callable[[], None]] = []


@atexit.register
def _run_at_exit() -> None:
    # Registered before the project is imported: it runs after the project's own exit handler.
    for each in at_exit:
        each()


from tests.core.support import aput, chat_graph, latest, place, put, say  # noqa: E402


def save(saver: CheckpointSaver, name: str) -> None:
    """Store a thread and say so."""
    put(saver, place(name), text=name * 500)
    say(name)


async def asave(saver: CheckpointSaver, name: str) -> None:
    """Like `save`."""
    await aput(saver, place(name), text=name * 500)
    say(name)


def write_on(saver: CheckpointSaver, name: str, until: int | None = None) -> None:
    """Save one thread after the other."""
    for n in itertools.count() if until is None else range(until):
        save(saver, f"{name} {n}")


def started(target: Callable[..., None], *args: Any, daemon: bool = False) -> threading.Thread:
    """Another thread."""
    thread = threading.Thread(target=target, args=args, daemon=daemon)
    thread.start()
    return thread


# -- ways to end -------------------------------------------------------------------------------------------------------


def exit_handler(saver: CheckpointSaver) -> None:
    """A handler that runs after the project's own saves and reads, in both colours."""

    async def both() -> None:
        await asave(saver, "asynchronously")
        found = await saver.aget_tuple(place("asynchronously"))
        assert found is not None

    def last() -> None:
        save(saver, "last")
        latest(saver, "last")
        asyncio.run(both())
        save(saver, "very last")

    save(saver, "first")
    at_exit.append(last)


def exit_handler_first_use(saver: CheckpointSaver) -> None:
    """The first use of all is in an exit handler."""
    at_exit.append(lambda: asyncio.run(asave(saver, "only")))


def thread_writes_on(saver: CheckpointSaver) -> None:
    """The interpreter waits for this thread, which goes on saving."""
    started(write_on, saver, "thread", 30)


def daemons_write_on(saver: CheckpointSaver) -> None:
    """The interpreter does not wait for these, which save without a pause."""
    for n in range(4):
        started(write_on, saver, f"daemon {n}", daemon=True)
    write_on(saver, "main", 10)


def tasks_left_behind(saver: CheckpointSaver) -> None:
    """A loop ends while its tasks save."""

    async def leave() -> None:
        tasks = [asyncio.create_task(asave(saver, f"task {n}")) for n in range(50)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)

    asyncio.run(leave())


def tasks_given_up(saver: CheckpointSaver) -> None:
    """Steps were handed over, and nobody waits for them any more when the process ends."""
    backend = saver.engine.backend
    write, ending = backend.write, threading.Event()

    def write_at_the_end(units: Any) -> Any:
        assert ending.wait(60)
        return write(units)

    async def give_up() -> None:
        tasks = [asyncio.create_task(asave(saver, f"task {n}")) for n in range(50)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)

    backend.write = write_at_the_end  # type: ignore[method-assign]
    asyncio.run(give_up())
    # Of the exit handlers, those registered last run first.
    atexit.register(ending.set)
    for n in range(50):
        say(f"task {n}")


def no_farewell(saver: CheckpointSaver) -> None:
    """No exit handler runs."""
    started(write_on, saver, "daemon", daemon=True)
    write_on(saver, "main", 10)
    os._exit(0)


# -- a backend that stops its caller ----------------------------------------------------------------------------------


def backend_stops(saver: CheckpointSaver) -> None:
    """The backend raises what is no `Exception`: one that runs a loop inside may let a `CancelledError` out.

    Whichever thread was writing, whoever comes later is answered, and the process ends.
    """
    backend = saver.engine.backend
    write = backend.write
    stops: list[type[BaseException]] = []

    def write_and_stop(units: Any) -> Any:
        answer = write(units)
        if stops:
            raise stops.pop()
        return answer

    async def stopped(name: str) -> None:
        with suppress(asyncio.CancelledError, Exception):
            await asave(saver, name)

    def stopped_thread(name: str) -> None:
        with suppress(BaseException):
            save(saver, name)

    backend.write = write_and_stop  # type: ignore[method-assign]
    for error in (SystemExit, asyncio.CancelledError, GeneratorExit):
        name = error.__name__
        # The calling thread writes, then the engine's own.
        stops.append(error)
        started(stopped_thread, f"{name} in a thread").join()
        started(save, saver, f"{name}, another thread").join()
        stops.append(error)
        asyncio.run(stopped(f"{name} in the writer"))
        asyncio.run(asave(saver, f"{name}, async"))
        save(saver, f"{name}, main")
        assert not stops
    assert saver.flush(60)


# -- forks -------------------------------------------------------------------------------------------------------------


def forked(do: Callable[[], None]) -> int:
    """Do something in a forked process, which is killed if it hangs."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            signal.alarm(60)
            do()
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)
    return pid


def ended_well(pid: int) -> None:
    """Wait for a forked process."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, f"a child ended with {code}"


def parent_closes_first(saver: CheckpointSaver) -> None:
    """The child goes on with what the parent opened and closes."""
    save(saver, "before")
    heard, told = os.pipe()

    def child() -> None:
        save(saver, "child before the close")
        assert os.read(heard, 1)
        write_on(saver, "child", 10)
        asyncio.run(asave(saver, "child, asynchronously"))
        latest(saver, "before")
        # The end of a process that does not say so: what is acknowledged has to be there all the same.

    pid = forked(child)
    write_on(saver, "parent", 10)
    saver.close()
    os.write(told, b".")
    ended_well(pid)


def threads_busy(saver: CheckpointSaver) -> None:
    """Forks at any moment, while threads save and read; parent and children go on."""
    enough = threading.Event()

    def write(name: str) -> None:
        for n in itertools.count():
            if enough.is_set():
                return
            save(saver, f"{name} {n}")

    def read() -> None:
        while not enough.is_set():
            latest(saver, "main 0")
            list(saver.list(None, limit=5))

    async def awrite(name: str) -> None:
        for n in itertools.count():
            if enough.is_set():
                return
            await asave(saver, f"{name} {n}")

    save(saver, "main 0")
    threads = [started(write, f"writer {n}") for n in range(3)]
    threads += [started(read) for n in range(3)]
    threads += [started(lambda: asyncio.run(awrite("async writer")))]
    try:
        for n in range(25):

            def child(n: int = n) -> None:
                save(saver, f"child {n}")
                asyncio.run(asave(saver, f"child {n}, asynchronously"))
                latest(saver, "main 0")
                if n % 5 == 0:
                    ended_well(forked(lambda: save(saver, f"grandchild {n}")))

            pid = forked(child)
            save(saver, f"main, beside child {n}")
            ended_well(pid)
    finally:
        enough.set()
        for thread in threads:
            thread.join()


def several_at_once(saver: CheckpointSaver) -> None:
    """Threads that fork at the same moment."""
    together = threading.Barrier(4)
    failed: list[BaseException] = []

    def fork(name: int) -> None:
        try:
            for n in range(10):
                together.wait(60)
                pid = forked(lambda n=n: save(saver, f"child {n} of {name}"))  # type: ignore[misc]
                save(saver, f"thread {name}, {n}")
                ended_well(pid)
        except BaseException as error:
            failed.append(error)
            together.abort()
            raise

    for thread in [started(fork, name) for name in range(4)]:
        thread.join()
    assert not failed


def a_graph_goes_on(saver: CheckpointSaver) -> None:
    """A thread that the parent began is continued by its children, one after the other and by the parent."""
    graph = chat_graph(saver)
    graph.invoke({"turns": ["parent"]}, place("t"))
    for n in range(3):
        ended_well(forked(lambda n=n: graph.invoke({"turns": [f"child {n}"]}, place("t"))))  # type: ignore[misc]
        graph.invoke({"turns": [f"parent {n}"]}, place("t"))
    assert [t for t in latest(saver, "t")["turns"] if not t.startswith("re ")] == [
        "parent",
        *(f"{who} {n}" for n in range(3) for who in ("child", "parent")),
    ]
    say("t")


def main(path: str, scenario: str) -> None:
    from charm_checkpoint.saver import CheckpointSaver
    from charm_checkpoint.sqlite import SqliteBackend

    globals()[scenario](CheckpointSaver(SqliteBackend(Path(path))))


if __name__ == "__main__":
    main(*sys.argv[1:])
