"""The devices of test_histories: processes with a replica each, a clock of their own, and a remote with faults.

Run as a module it is told by its parent to fork one device after the other, each a fresh process that has imported
everything and is spoken to in JSON lines over a socket of its own.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import id as ids
from langgraph.types import Command

from charm_checkpoint.backend import Backend
from charm_checkpoint.errors import BackendUnavailable, CheckpointStoreError
from charm_checkpoint.replica import ReplicaStore
from charm_checkpoint.replica.front import Front
from charm_checkpoint.sqlite import SqliteBackend
from charm_checkpoint.store import CheckpointStore
from tests.core.support import place
from tests.replica.agents import NOTES, agent

VERBS = ("setup", "write", "read", "pull", "scan", "lineage", "threads", "delete")
POINTS = (
    "before ask",
    "after ask",
    *(f"{at} {verb}" for at in ("before", "after") for verb in ("write", "acknowledge", "adopt")),
)
"""Where a device can be told to die: around the calls of its remote, and the transactions of its file."""


class Setting(NamedTuple):
    """What a device is started with."""

    name: str
    path: str
    remote: str
    """A URL of Postgres or Redis, or the path of a SQLite file."""
    hours: float
    """How far its clock is off."""
    seed: int
    faults: str


class Faults:
    """What gets in the way between a device and its remote.

    Modes: `"well"`; `"away"`: no call gets through; `"hung"`: none is answered until the mode changes; `"shaky"`: each
    is by chance lost on its way there or back, done twice, or well.
    """

    def __init__(self, mode: str, seed: int) -> None:
        self.mode = mode
        self.armed: dict[str, int] = {}
        self._random = random.Random(seed)
        self._changed = threading.Condition()

    def set(self, mode: str) -> None:
        with self._changed:
            self.mode = mode
            self._changed.notify_all()

    def pass_by(self, point: str) -> None:
        """Die here if told to."""
        with self._changed:
            if point in self.armed:
                self.armed[point] -= 1
                if self.armed[point] <= 0:
                    os.kill(os.getpid(), signal.SIGKILL)

    def call(self, function: Callable[[], Any]) -> Any:
        self.pass_by("before ask")
        with self._changed:
            self._changed.wait_for(lambda: self.mode != "hung")
            fault = self.mode
            if fault == "shaky":
                fault = self._random.choice(["well", "away", "lost", "twice"])
        if fault == "away":
            raise BackendUnavailable("the network is down")
        answer = function()
        if fault == "twice":
            function()
        self.pass_by("after ask")
        if fault == "lost":
            raise BackendUnavailable("the answer was lost")
        return answer


class _Faulty:
    """A remote behind faults."""

    def __init__(self, backend: Backend, faults: Faults) -> None:
        self._backend = backend
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backend, name)
        if name not in VERBS:
            return found
        return lambda *args, **options: self._faults.call(lambda: found(*args, **options))


class _RemoteStore(CheckpointStore):
    def __init__(self, url: str, faults: Faults) -> None:
        self._made = _Faulty(remote_backend(url), faults)
        super().__init__()

    def open_backend(self) -> Any:
        return self._made


def remote_backend(url: str) -> Backend:
    """The backend that the devices share."""
    if "://" not in url:
        return SqliteBackend(url)
    if url.startswith("redis:"):
        from charm_memory_redis import RedisBackend

        return RedisBackend(url)
    from charm_memory_postgres import PostgresBackend

    return PostgresBackend(url)


def set_clock(hours: float) -> None:
    """Make all that names or dates a checkpoint in this process see a shifted clock."""
    now, now_ns = time.time, time.time_ns
    module: Any = ids
    module.time = SimpleNamespace(time_ns=lambda: now_ns() + int(hours * 3600e9))
    time.time = lambda: now() + hours * 3600


class _Errors(logging.Handler):
    """Keeps what was logged as an error: there is to be none."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        told = record.getMessage()
        if record.exc_info and record.exc_info[0]:
            told += "".join(traceback.format_exception(*record.exc_info))
        self.seen.append(told)


class Device:
    """Does what it is told with the threads that all devices share."""

    def __init__(self, setting: Setting) -> None:
        set_clock(setting.hours)
        self.errors = _Errors()
        log = logging.FileHandler(f"{setting.path}.log")
        log.setFormatter(logging.Formatter("%(relativeCreated)d %(process)d %(message)s"))
        logging.basicConfig(level=logging.INFO, handlers=[self.errors, log])
        self.faults = Faults(setting.faults, setting.seed)
        for verb in ("write", "acknowledge", "adopt"):
            _watch(verb, self.faults)
        self.store = ReplicaStore(
            _RemoteStore(setting.remote, self.faults),
            {
                "replica": setting.path,
                "device": setting.name,
                "wake_timeout": 0.5,
                "retry_timeout": 0,
                "send_timeout": 2,
            },
        )
        self.saver = self.store.get_langgraph_checkpointer()

    # -- turns: each answers with the messages it ended with -----------------------------------------------------------

    def turn(self, thread: str, kind: str, name: str, durability: str) -> Any:
        said = {"messages": [HumanMessage(name)], "turn": name}
        if kind != "note":
            del said["turn"]
        ended = agent(kind, self.saver).invoke(said, place(thread), durability=durability)
        return _texts(ended["messages"])

    def resume(self, thread: str, kind: str, name: str, durability: str) -> Any:
        graph = agent(kind, self.saver)
        state = graph.get_state(place(thread))
        if not state.interrupts:
            return None
        answered = Command(resume={state.interrupts[0].id: name})
        ended = graph.invoke(answered, place(thread), durability=durability)
        return None if "__interrupt__" in ended else _texts(ended["messages"])

    def update(self, thread: str, kind: str, name: str, _: str) -> Any:
        graph = agent(kind, self.saver)
        config = graph.update_state(
            place(thread), {"messages": [HumanMessage(name)]}, as_node="__start__"
        )
        return _texts(graph.get_state(config).values["messages"])

    def append(self, thread: str, _kind: str, name: str, _: str) -> Any:
        self.store.append_messages(thread, [{"role": "user", "content": name}])
        return self._loaded(thread)

    def save(self, thread: str, _kind: str, name: str, _: str) -> Any:
        before = self.store.load_messages(thread)
        self.store.save_messages(thread, [*before, {"role": "user", "content": name}])
        return [m["content"] for m in before] + [name]

    def _loaded(self, thread: str) -> list[str]:
        return [m["content"] for m in self.store.load_messages(thread)]

    # -- other things that people do -----------------------------------------------------------------------------------

    def delete(self, thread: str) -> None:
        self.store.delete(thread)

    def promote(self, thread: str) -> bool:
        found = self.store.conflicts(thread)
        if found:
            self.store.promote(found[-1])
        return bool(found)

    def set_faults(self, mode: str) -> None:
        self.faults.set(mode)

    def arm(self, point: str, times: int) -> None:
        self.faults.armed[point] = times

    def disarm(self) -> None:
        self.faults.armed.clear()

    def flush(self, timeout: float) -> bool:
        return self.store.flush(timeout)

    # -- what it shows -------------------------------------------------------------------------------------------------

    def show(self, threads: dict[str, str]) -> Any:
        """Everything of this device that is to be as everywhere, once all is healed."""
        for thread in threads:
            self.store.refresh(thread, 30)
        return [view(self.saver, thread, kind) for thread, kind in threads.items()]

    def own(self) -> Any:
        """What is of this device alone."""
        status = self.store.sync_status()
        return {
            "waiting": list(status.waiting),
            "threads": list(status.threads),
            "offline": status.offline_since,
            "error": status.last_error,
            "errors": self.errors.seen,
            "conflicts": [
                [c.thread_id, c.namespace, c.first_id, c.tip_id] for c in self.store.conflicts()
            ],
        }

    def waits(self, thread: str) -> bool:
        return thread in self.store.sync_status().threads


def _watch(verb: str, faults: Faults) -> None:
    original = getattr(Front, verb)

    def watched(*args: Any, **options: Any) -> Any:
        faults.pass_by(f"before {verb}")
        answer = original(*args, **options)
        faults.pass_by(f"after {verb}")
        return answer

    setattr(Front, verb, watched)


def _texts(messages: list[Any]) -> list[str]:
    return [str(m.content) for m in messages]


def view(saver: Any, thread: str, kind: str) -> Any:
    """The newest state of a thread, and its history."""
    graph = agent(kind, saver)
    state = graph.get_state(place(thread), subgraphs=True)
    notes = saver.get_tuple(place(thread, namespace=NOTES)) if kind == "note" else None
    return {
        "id": state.config["configurable"].get("checkpoint_id"),
        "messages": _texts(state.values.get("messages", [])),
        "next": list(state.next),
        "interrupts": [[i.id, i.value] for i in state.interrupts],
        "inner": [
            repr(t.state.values) if hasattr(t.state, "values") else None for t in state.tasks
        ],
        "log": notes.checkpoint["channel_values"].get("log", []) if notes else [],
        "history": [
            [
                s.config["configurable"]["checkpoint_id"],
                s.parent_config["configurable"]["checkpoint_id"] if s.parent_config else None,
                _texts(s.values.get("messages", [])),
            ]
            for s in graph.get_state_history(place(thread))
        ],
    }


def serve(line: socket.socket, setting: Setting) -> None:
    """Be a device until the parent has had enough."""
    device = Device(setting)
    with line.makefile("rw", encoding="utf-8") as lines:
        for told in lines:
            verb, *arguments = json.loads(told)
            try:
                answer = {"answer": getattr(device, verb)(*arguments)}
            except CheckpointStoreError as error:
                answer = {"error": type(error).__name__, "text": str(error)}
            except Exception:  # noqa: BLE001 - told to the parent, which fails
                answer = {"error": "unexpected", "text": traceback.format_exc()}
            lines.write(json.dumps(answer) + "\n")
            lines.flush()
    device.store.close()


def main(descriptor: str) -> None:
    # Nobody waits for them, so that no id is another process's before the end.
    with socket.socket(fileno=int(descriptor)) as parent:
        while True:
            told, handles, _, _ = socket.recv_fds(parent, 1 << 16, 1)
            if not told:
                return
            line = socket.socket(fileno=handles[0])
            pid = os.fork()
            if not pid:
                status = 1
                try:
                    parent.close()
                    serve(line, Setting(*json.loads(told)))
                    status = 0
                except BaseException:  # noqa: BLE001 - shown, and the process ends
                    traceback.print_exc()
                finally:
                    os._exit(status)
            line.close()
            parent.sendall(json.dumps(pid).encode() + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
