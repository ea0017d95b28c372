"""Random histories of several devices on the same threads, and what must hold when all is healed.

A history is made by its seed as far as processes that run at once allow: which device does what, which faults stand
between it and the remote, where it is killed. Nothing is taken from the program but what it answers.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.core.support import environment
from tests.replica.device import POINTS, Setting, remote_backend, view

NEVER = 1 << 60
FLUSH = 60.0
"""Seconds after which what waits will not be sent any more: a test that fails, not a measurement."""

_EXPECTED = {
    "ThreadConflictError",  # another process of the device was first, or a wake came within the run
    "ThreadDeletedError",
    "ThreadBusyError",
}


class Zygote:
    """Makes device processes. Use as a context manager."""

    def __enter__(self) -> Zygote:
        self._line, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    *("-W", "ignore::DeprecationWarning"),  # newer Pythons warn of forks
                    *("-m", "tests.replica.device", str(theirs.fileno())),
                ],
                pass_fds=[theirs.fileno()],
                env=environment(),
            )
        self._answers = self._line.makefile("r")
        return self

    def __exit__(self, *_: object) -> None:
        self._answers.close()
        self._line.close()
        self._process.wait()

    def start(self, setting: Setting) -> Process:
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._line, [json.dumps(setting).encode()], [theirs.fileno()])
            return Process(int(self._answers.readline()), ours)


class Process:
    """One device process."""

    def __init__(self, pid: int, line: socket.socket) -> None:
        self.pid = pid
        self._socket = line
        self._lines = line.makefile("rw", encoding="utf-8")
        self.alive = True

    def tell(self, verb: str, *arguments: Any) -> None:
        if not self.alive:
            return
        with suppress(OSError):  # it died: `hear` tells
            self._lines.write(json.dumps([verb, *arguments]) + "\n")
            self._lines.flush()

    def hear(self) -> Any:
        """The answer, `None` if it died."""
        if not self.alive:
            return None
        try:
            line = self._lines.readline()
        except OSError:
            line = ""
        if not line:
            self.alive = False
            self._close()
            return None
        return json.loads(line)

    def ask(self, verb: str, *arguments: Any) -> Any:
        self.tell(verb, *arguments)
        answer = self.hear()
        assert answer is not None, f"it died of {verb}; see its stderr"
        assert "error" not in answer, f"{verb}{arguments}: {answer['error']}: {answer['text']}"
        return answer["answer"]

    def kill(self) -> None:
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)
            while self.hear() is not None:
                pass

    def _close(self) -> None:
        with suppress(OSError):
            self._lines.close()
        self._socket.close()


@dataclass
class Device:
    """One replica file, and the processes on it."""

    name: str
    path: Path
    hours: float
    faults: str = "well"
    processes: list[Process] = field(default_factory=list)


class Turn(NamedTuple):
    """One that was acknowledged."""

    thread: str
    device: str
    said: list[str]
    """What it added to the messages."""
    first: str
    """The first message it saw: names the life of the thread that it belongs to."""


class Deletion(NamedTuple):
    thread: str
    device: str
    at: int
    kills: frozenset[str]
    """Lives that its device had seen."""


class History:
    """One of them.

    Args:
        zygote: Makes the devices.
        folder: For their files.
        remote: What they share.
        seed: Makes all choices.
        kinds: Of agents.
        steps: How many things happen.
    """

    def __init__(
        self,
        zygote: Zygote,
        folder: Path,
        remote: str,
        seed: int,
        kinds: Sequence[str],
        steps: int = 30,
    ) -> None:
        self.zygote, self.remote, self.steps = zygote, remote, steps
        self.random = rng = random.Random(seed)
        self.log: list[str] = []
        self.now = 0
        count = rng.choice([2, 2, 3, 3, 4])
        self.devices = [
            Device(name, folder / f"{name}.db", rng.uniform(-1, 1))
            for name in ("laptop", "phone", "tablet", "worker")[:count]
        ]
        self.kinds = {f"t{n}": rng.choice(kinds) for n in range(rng.choice([1, 2, 3]))}
        self.begun: dict[str, int] = {}
        """By turn, when it was told."""
        self.turns: list[Turn] = []
        self.deletions: list[Deletion] = []
        self.done: dict[Deletion, int] = {}
        """When a deletion was known to be at the remote."""
        self.seen: dict[tuple[str, str], set[str]] = {}
        """By device and thread, the lives it has seen."""
        self.open: set[tuple[str, str]] = set()
        """Threads with runs that never answered."""
        self.settled: set[str] = set()
        """Threads with a promoted branch."""
        self.asked: dict[str, str] = {}
        self.saves: set[str] = set()
        self.troubled: set[str] = set()
        """Devices that were cut off or killed."""

    def note(self, *words: object) -> None:
        self.now += 1
        self.log.append(f"{self.now:4} " + " ".join(map(str, words)))

    # -- what happens --------------------------------------------------------------------------------------------------

    def play(self) -> None:
        """Let it happen."""
        for device in self.devices:
            self.start(device)
            if self.random.random() < 0.2:
                self.start(device)
        for _ in range(self.steps):
            self.step()

    def start(self, device: Device) -> Process:
        if self.random.random() < 0.1:
            device.hours = self.random.uniform(-1, 1)
        setting = Setting(
            device.name,
            str(device.path),
            self.remote,
            device.hours,
            self.random.randrange(1 << 30),
            device.faults,
        )
        process = self.zygote.start(setting)
        device.processes.append(process)
        self.note("start", device.name, process.pid, f"{device.hours:+.2f} h", device.faults)
        return process

    def step(self) -> None:
        rng = self.random
        device = rng.choice(self.devices)
        what = rng.random()
        if what < 0.62:
            count = rng.choice([1, 1, 1, 2, 2, len(self.devices)])
            self.at_once([(d, self.process(d)) for d in rng.sample(self.devices, count)])
        elif what < 0.78:
            device.faults = rng.choice(["well", "well", "away", "shaky", "shaky", "hung"])
            self.note("faults", device.name, device.faults)
            self.troubled.add(device.name)
            for process in list(device.processes):
                self.tell(device, process, "set_faults", device.faults)
        elif what < 0.84:
            process = self.process(device)
            self.note("kill", device.name, process.pid)
            self.kill(device, process)
        elif what < 0.92:
            # Killed within what it does next, or later.
            process = self.process(device)
            point, times = rng.choice(POINTS), rng.choice([1, 1, 2, 3, 5])
            self.note("arm", device.name, process.pid, point, times)
            if self.tell(device, process, "arm", point, times):
                self.at_once([(device, process)])
        elif what < 0.96:
            if device.faults == "well":
                process = self.process(device)
                self.note("flush", device.name)
                process.tell("flush", FLUSH)
                self.heard(device, process)
        else:
            self.at_once([(device, self.process(device))], delete=True)

    def process(self, device: Device) -> Process:
        """One of a device's processes, a fresh one if there is none."""
        if not device.processes:
            return self.start(device)
        return self.random.choice(device.processes)

    def tell(self, device: Device, process: Process, verb: str, *arguments: Any) -> bool:
        """Tell a process what cannot fail; False if it died meanwhile of what it was armed with."""
        process.tell(verb, *arguments)
        return self.heard(device, process) is not None

    def kill(self, device: Device, process: Process) -> None:
        process.kill()
        self.troubled.add(device.name)
        device.processes.remove(process)

    def at_once(self, who: list[tuple[Device, Process]], *, delete: bool = False) -> None:
        """Have processes do something each, all at the same time."""
        rng = self.random
        same = rng.choice(sorted(self.kinds))
        told = []
        for device, process in who:
            thread = same if rng.random() < 0.7 else rng.choice(sorted(self.kinds))
            verb, name = self.choose(thread), f"{device.name}{self.now}"
            if verb == "promote" and device.faults == "hung":
                verb = "turn"  # promoting asks the remote for as long as its driver allows
            if delete:
                verb = "delete"
            durability = rng.choice(["sync", "async", "exit"])
            self.note(verb, device.name, process.pid, thread, self.kinds[thread], name, durability)
            if verb in ("delete", "promote"):
                process.tell(verb, thread)
            else:
                process.tell(verb, thread, self.kinds[thread], name, durability)
            self.begun[name] = self.now
            if verb == "save":
                self.saves.add(name)
            deletion = None
            if verb == "delete":
                seen = frozenset(self.seen.get((device.name, thread), ()))
                deletion = Deletion(thread, device.name, self.now, seen)
                self.deletions.append(deletion)
                self.done[deletion] = NEVER
            elif verb == "promote":
                self.settled.add(thread)
            told.append((device, process, thread, verb, name, deletion))
        if rng.random() < 0.05:
            device, process = rng.choice(who)
            self.note("kill within", device.name, process.pid)
            os.kill(process.pid, signal.SIGKILL)
        for device, process, thread, verb, name, deletion in told:
            answer = self.heard(device, process)
            if answer is None or "error" in answer:
                self.open.add((thread, device.name))
                if deletion is not None:
                    # It may or may not have happened: it kills nothing for sure.
                    self.deletions.remove(deletion)
                    unsure = deletion._replace(kills=frozenset())
                    self.done[unsure] = self.done.pop(deletion)
                    self.deletions.append(unsure)
                continue
            if verb in ("delete", "promote") or not answer["answer"]:
                continue
            messages = answer["answer"]
            first = messages[0]
            if verb in ("update", "append", "save"):
                said = [name]
            elif verb == "resume":
                said = [messages[-1]]
            else:
                said = messages[messages.index(name) :]
            if self.kinds[thread] in ("ask", "nest") and verb == "turn":
                self.asked[name] = thread
            self.turns.append(Turn(thread, device.name, said, first))
            self.seen.setdefault((device.name, thread), set()).add(first)

    def choose(self, thread: str) -> str:
        rng, kind = self.random, self.kinds[thread]
        if rng.random() < 0.04:
            return "promote"
        if rng.random() < 0.05:
            return "delete"
        if kind == "plain":
            return rng.choice(["append", "save", "turn"])
        if kind in ("ask", "nest"):
            return rng.choice(["turn", "resume", "resume"])
        return rng.choice(["turn", "turn", "turn", "turn", "update"]) if kind == "chat" else "turn"

    def heard(self, device: Device, process: Process) -> Any:
        answer = process.hear()
        if answer is None:
            self.note("died", device.name, process.pid)
            self.troubled.add(device.name)
            if process in device.processes:
                device.processes.remove(process)
            return None
        self.note("answer", device.name, process.pid, json.dumps(answer)[:400])
        expected = _EXPECTED
        if device.faults != "well":
            expected = expected | {"BackendUnavailable"}
        assert answer.get("error") in {None, *expected}, f"{answer['error']}: {answer['text']}"
        for deletion in self.deletions:
            if deletion.device == device.name and self.done[deletion] == NEVER:
                process.tell("waits", deletion.thread)
                waits = process.hear()
                if waits is None:
                    device.processes.remove(process)
                    break
                if not waits["answer"]:
                    self.done[deletion] = self.now
        return answer

    # -- what must hold ------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Faults off, all devices there, everything sent."""
        for device in self.devices:
            device.faults = "well"
            for process in list(device.processes):
                if self.tell(device, process, "disarm"):
                    process.ask("set_faults", "well")
            if not device.processes:
                self.start(device)
        for device in self.devices:
            assert device.processes[0].ask("flush", FLUSH), f"{device.name}: not all is sent"
        self.note("healed")

    def check(self) -> None:
        """Compare what is there with what was answered."""
        shown = {d.name: d.processes[0].ask("show", self.kinds) for d in self.devices}
        own = {d.name: d.processes[0].ask("own") for d in self.devices}
        truth = dict(zip(self.kinds, self.read_remote(), strict=True))
        problems = list(self.problems(shown, own, truth))
        assert not problems, "\n".join(problems)

    def read_remote(self) -> list[Any]:
        from charm_checkpoint.saver import CheckpointSaver

        saver = CheckpointSaver(remote_backend(self.remote), device="reader")
        try:
            return [view(saver, thread, kind) for thread, kind in self.kinds.items()]
        finally:
            saver.close()

    def problems(self, shown: Any, own: Any, truth: dict[str, Any]) -> Iterator[str]:
        """What is wrong, in words."""
        for device, views in shown.items():
            for (thread, expected), found in zip(truth.items(), views, strict=True):
                for key, value in expected.items():
                    if found[key] != value:
                        yield f"{device} reads {thread}'s {key} as {found[key]}, not {value}"
            mine = own[device]
            if mine["waiting"][0] or mine["threads"] or mine["offline"] or mine["errors"]:
                yield f"{device} is not in order: {mine}"
        for thread, found in truth.items():
            # Which device's steps of a subgraph win is decided apart from the root graph's.
            split = thread in self.settled or any(
                conflict[0] == thread for mine in own.values() for conflict in mine["conflicts"]
            )
            split = split or any(d.thread == thread for d in self.deletions)
            yield from self.broken(thread, found, split=split)
            yield from self.risen(thread, found)
        for turn in self.turns:
            if not self.excused(turn):
                yield from self.lost(turn, truth[turn.thread], own[turn.device]["conflicts"])

    def broken(self, thread: str, found: Any, *, split: bool) -> Iterator[str]:
        """What is incomplete in a thread; `split`: some device lost a branch in it."""
        by_id = {checkpoint_id: rest for checkpoint_id, *rest in found["history"]}
        if found["messages"] and found["id"] not in by_id:
            yield f"{thread}: its head is not in its history"
        for checkpoint_id, (parent, messages) in by_id.items():
            if len(set(messages)) != len(messages):
                yield f"{thread}: {checkpoint_id} has messages twice: {messages}"
            if parent is None:
                continue
            if parent not in by_id:
                yield f"{thread}: {checkpoint_id} has lost its parent {parent}"
            elif self.saves.intersection(messages[-1:]):
                continue  # takes the place of whatever was there when it was stored
            elif messages[: len(by_id[parent][1])] != by_id[parent][1]:
                yield f"{thread}: {checkpoint_id} has {messages}, its parent {by_id[parent][1]}"
        last = found["messages"][-1:]
        waits = found["next"] in (["ask"], ["inner"]) and any(
            turn.said == last and self.asked.get(last[0]) == thread for turn in self.turns
        )
        if waits and not found["interrupts"]:
            yield f"{thread}: the question to {last[0]} is gone"
        if self.kinds[thread] == "note" and not split:
            answered = [m[3:] for m in found["messages"] if m.startswith("re ")]
            asked = [m for m in found["messages"] if not m.startswith("re ")]
            log = found["log"]
            if (
                not set(answered) <= set(log)
                or not set(log) <= set(asked)
                or sorted(set(log), key=log.index) != log
            ):
                yield f"{thread}: its subgraph has {log}, its messages are {found['messages']}"

    def risen(self, thread: str, found: Any) -> Iterator[str]:
        """What was deleted and is there."""
        by_id = {checkpoint_id: (parent, said) for checkpoint_id, parent, said in found["history"]}
        lives = set()
        for checkpoint_id, (_, messages) in by_id.items():
            at = checkpoint_id
            while by_id[at][0] in by_id:
                at = by_id[at][0]
            # A save begins a thread with whatever it is given, also what was deleted in the middle of it.
            if messages and not self.saves.intersection(by_id[at][1][-1:]):
                lives.add(messages[0])
        # A tombstone does not tell first steps that were there from those that come late: one whose answer was lost is
        # sent again, and stored again, rather than that a turn is lost which never was there.
        lives = {life for life in lives if life.rstrip("0123456789") not in self.troubled}
        for deletion in self.deletions:
            if deletion.thread == thread and (back := lives & deletion.kills):
                yield f"{thread}: {back} was deleted by {deletion.device} at {deletion.at} and is back"

    def excused(self, turn: Turn) -> bool:
        """Whether a deletion may have taken it."""
        return any(
            d.thread == turn.thread and self.done[d] > self.begun.get(turn.first, -1)
            for d in self.deletions
        )

    def lost(self, turn: Turn, found: Any, conflicts: list[list[str]]) -> Iterator[str]:
        """Whether an acknowledged turn is unreachable, or nobody was told that it is on a branch."""
        parents = {checkpoint_id: parent for checkpoint_id, parent, _ in found["history"]}
        by_id = {checkpoint_id: messages for checkpoint_id, _, messages in found["history"]}
        at = found["id"]
        while at is not None:
            if _within(turn.said, by_id.get(at, [])):
                return
            at = parents.get(at)
        if not any(_within(turn.said, messages) for messages in by_id.values()):
            yield f"{turn} is lost: the thread has {found['messages']}"
        elif turn.thread not in self.settled and not any(
            thread == turn.thread and namespace == "" and _within(turn.said, by_id.get(tip, []))
            for thread, namespace, _, tip in conflicts
        ):
            yield f"{turn} is on a branch that {turn.device} does not list; the thread has {found['messages']}"


def _within(said: list[str], messages: list[str]) -> bool:
    return any(messages[n : n + len(said)] == said for n in range(len(messages)))


@contextmanager
def closing(history: History) -> Iterator[History]:
    """End all its devices, and show what happened if it failed."""
    try:
        yield history
    except BaseException:
        print("\n".join(history.log))
        raise
    finally:
        for device in history.devices:
            for process in device.processes:
                process.kill()


def run(zygote: Zygote, folder: Path, remote: str, seed: int, kinds: Sequence[str]) -> None:
    """Play one history, heal it, check it."""
    with closing(History(zygote, folder, remote, seed, kinds)) as history:
        history.play()
        history.heal()
        history.check()
