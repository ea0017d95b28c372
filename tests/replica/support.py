"""What the tests of the replica share: devices with a file each, and the line to the remote that they share."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from charm_checkpoint.backend import Backend
from charm_checkpoint.errors import BackendUnavailable
from charm_checkpoint.replica import Conflict, ReplicaStore
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.store import CheckpointStore
from tests.core.support import WAIT, Process, chat_graph, environment, place

VERBS = frozenset(
    ("setup", "write", "read", "scan", "pull", "lineage", "threads", "delete", "copy", "prune")
)


class Line:
    """The way to a real backend: notes what goes over it, can be cut, and lets a test in."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.cut = False
        """No call gets through, and each is told so at once."""
        self.open = threading.Event()
        """While it is not set, calls hang, and go on when it is."""
        self.open.set()
        self.before: Callable[[str, tuple[Any, ...]], None] | None = None
        """Called with a verb and its arguments; may raise in the backend's place."""
        self.after: Callable[[str, Any], Any] | None = None
        """Called with a verb and its answer; may raise, as if the answer was lost, or answer something else."""
        self.made: list[str] = []
        """The verbs of the calls made or tried."""
        self._under_way = 0
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.backend, name)
        if name not in VERBS:
            return found

        def call(*args: Any, **options: Any) -> Any:
            with self._lock:
                self._under_way += 1
                self.made.append(name)
            try:
                self.open.wait(WAIT)
                if self.cut:
                    raise BackendUnavailable("the line is cut")
                if self.before:
                    self.before(name, args)
                answer = found(*args, **options)
                return self.after(name, answer) if self.after else answer
            finally:
                with self._lock:
                    self._under_way -= 1

        return call

    def trips(self) -> dict[str, int]:
        """How many calls of each verb were made since this was last asked, writes left out: they are nobody's wait."""
        with self._lock:
            made, self.made = self.made, []
        return dict(Counter(verb for verb in made if verb not in ("setup", "write")))

    def settle(self) -> None:
        """Let calls that hang come to their end, before what they go to is closed."""
        self.open.set()
        until(lambda: not self._under_way)


class LineStore(CheckpointStore):
    """The store behind a replica."""

    def __init__(self, line: Line) -> None:
        self._line = line
        super().__init__()

    def open_backend(self) -> Any:
        return self._line


class Device(ReplicaStore):
    """A device with a file of its own, and a small agent."""

    def __init__(self, name: str, path: Path, remote: Backend, **options: Any) -> None:
        self.line = Line(remote)
        options = {"replica": str(path), "device": name, **options}
        super().__init__(LineStore(self.line), options)
        self.graph = chat_graph(self.saver)

    @property
    def saver(self) -> CheckpointSaver:
        return self.get_langgraph_checkpointer()

    def turn(self, text: str, thread: str = "t", **options: Any) -> list[str]:
        """Run a turn. Returns all that was said in the thread."""
        said: list[str] = self.graph.invoke({"turns": [text]}, place(thread), **options)["turns"]
        return said

    def said(self, thread: str = "t") -> list[str]:
        """What the user said in a thread, as this device sees it."""
        turns = self.graph.get_state(place(thread)).values.get("turns", [])
        return [text for text in turns if not text.startswith("re ")]

    def sync(self) -> None:
        """Wait until the remote has all of this device."""
        assert self.flush(WAIT)

    def away(self) -> None:
        """Cut the line."""
        self.line.cut = True

    def back(self) -> None:
        """Mend the line, and wait until all has gone over it."""
        self.line.cut = False
        self.sync()

    def conflict(self, thread: str = "t") -> Conflict:
        """The one of the root graph."""
        [found] = [c for c in self.conflicts(thread) if c.namespace == ""]
        return found


def until(condition: Callable[[], Any]) -> None:
    """Wait for what nobody tells of."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


class Child(Process):
    """Another process of a device, or of another one; see `child`."""

    def __init__(self, name: str, folder: Path) -> None:
        files = (str(folder / f"{name}.db"), str(folder / "remote.db"))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.replica.child", name, *files],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def kill(self) -> None:
        """End it with no chance to do anything."""
        self.process.kill()
        self.died()

    def died(self) -> None:
        """Wait for its death."""
        assert self.process.wait(WAIT) == -signal.SIGKILL
        self.close()

    def end(self) -> str:
        """Let it come to its end. Returns what it said on stderr."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(WAIT) == 0
        assert self.process.stderr is not None
        told = self.process.stderr.read()
        self.close()
        return told

    def close(self) -> None:
        """Let go of its pipes."""
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
