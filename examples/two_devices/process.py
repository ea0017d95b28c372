"""The agent's process on a device, seen from outside: a person who types and reads, or pulls the plug."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from examples.two_devices.device import Device

AGENT = Path(__file__).with_name("agent.py")
THREAD = "trip"


def title(number: int, text: str) -> None:
    print(f"\n{number}  {text}", flush=True)


def tell(who: str, text: str) -> str:
    print(f"{who:>11}  {text}", flush=True)
    return text


class Agent:
    """The agent, running on a device. Left with the `with` block it ends as at the end of its input."""

    def __init__(self, device: Device) -> None:
        self._log = device.folder / "log"
        with self._log.open("a") as log:
            self._process = subprocess.Popen(  # noqa: S603 -- this interpreter, the file beside
                [sys.executable, AGENT, THREAD],
                env=device.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.pid = self._process.pid
        self.found = self._line()

    def asked(self, text: str, *, who: str = "user") -> str:
        """Type a line; returns what it answers."""
        assert self._process.stdin is not None
        tell(who, text)
        print(text, file=self._process.stdin, flush=True)
        return tell("agent", self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return line.strip()
        raise SystemExit(f"the agent on {self._log.parent.name} failed:\n{self._log.read_text()}")

    def kill(self) -> int:
        """End it at once; returns its exit code."""
        self._process.kill()
        return self._process.wait()

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()
