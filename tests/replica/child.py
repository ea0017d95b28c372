"""A process of a device for test_processes, told and heard in JSON lines."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

at_exit: list[Callable[[], None]] = []


@atexit.register
def _run_at_exit() -> None:
    # Registered before the project is imported: it runs after the project's own exit handler.
    for each in at_exit:
        each()


from langgraph.types import Command  # noqa: E402

from charm_checkpoint.sqlite import SqliteBackend  # noqa: E402
from charm_checkpoint.testing.scenarios import SCENARIOS  # noqa: E402
from tests.core.support import commands, latest, place, put, say  # noqa: E402
from tests.replica.support import Device  # noqa: E402


def asking(device: Device) -> Any:
    """A graph whose subgraph asks twice."""
    return next(s for s in SCENARIOS if s.name == "subgraph").build(device.saver)


class Answers:
    """What this process does when it is told to."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.go = threading.Event()

    def turn(self, thread: str, text: str) -> Any:
        return self.device.turn(text, thread)

    def said(self, thread: str) -> Any:
        return self.device.said(thread)

    def away(self) -> None:
        self.device.away()

    def back(self) -> None:
        self.device.back()

    def sync(self) -> None:
        self.device.sync()

    def hold(self) -> None:
        """Stay in the next write to the remote until `release`."""
        self.go.clear()
        self.device.line.before = lambda verb, _: verb != "write" or self.go.wait()

    def release(self) -> None:
        self.go.set()

    def die(self, when: str) -> None:
        """Be killed before or after the remote stores something."""

        def kill(verb: str, passed: Any) -> Any:
            if verb == "write":
                os.kill(os.getpid(), signal.SIGKILL)
            return passed

        setattr(self.device.line, when, kill)

    def writes(self) -> int:
        """How many writes went to the remote."""
        return self.device.line.made.count("write")

    def last_words(self) -> None:
        """Save, read and send in an exit handler; some Pythons start no thread in it."""

        def speak() -> None:
            put(self.device.saver, place("last"), text="words")
            assert latest(self.device.saver, "last") == {"text": "words"}
            self.device.sync()

        at_exit.append(speak)

    def interrupt(self, thread: str, durability: Any) -> Any:
        """Run until somebody is asked."""
        found = asking(self.device).invoke({"items": ["go"]}, place(thread), durability=durability)
        return [each.value for each in found["__interrupt__"]]

    def resume(self, thread: str, answer: str) -> Any:
        return asking(self.device).invoke(Command(resume=answer), place(thread))["items"]


def main(name: str, file: str, remote: str) -> None:
    # Not closed at the end: that is for the interpreter's exit to do.
    answers = Answers(Device(name, Path(file), SqliteBackend(remote)))
    for verb, *arguments in commands():
        say(getattr(answers, verb)(*arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
