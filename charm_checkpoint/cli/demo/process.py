"""One process of the demo, seen from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from charm_checkpoint.errors import CheckpointStoreError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["DeviceProcess", "ended_by"]

_PATIENCE = 120.0  # seconds, on however slow a machine


class DeviceProcess:
    """A real process that plays a device; ended with the `with` block, however that ends.

    Args:
        role: What it does: `begin`, `go-on` or `plain`.
        device: What it is called.
        folder: Where it runs.
        url: The store.
        thread: The thread's id.
    """

    def __init__(self, role: str, device: str, folder: Path, url: str, thread: str) -> None:
        # Neither this machine's agents nor their tracing are any of the demo's business.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CHARM_", "LANGCHAIN_", "LANGSMITH_"))
        }
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)
        self.device = device
        self._process = subprocess.Popen(  # noqa: S603 -- this interpreter, this project's module
            [sys.executable, "-m", "charm_checkpoint.cli.demo.device", role, device, url, thread],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=environment,
            encoding="utf-8",
            errors="replace",
        )
        self._watchdog = threading.Timer(_PATIENCE, self._process.kill)
        self._watchdog.daemon = True

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def tells(self) -> dict[str, Any]:
        """Wait for the line in which it tells what it did.

        Raises:
            CheckpointStoreError: It failed, or took too long.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            told: dict[str, Any] = json.loads(line)
            return told
        code = self.wait()
        assert self._process.stderr is not None
        reason = (
            self._process.stderr.read().strip().rpartition("\n")[2]
            or f"it took over {_PATIENCE:.0f} s"
        )
        raise CheckpointStoreError(f"the demo's {self.device} failed ({ended_by(code)}): {reason}")

    def kill(self) -> int:
        """End it at once, without any chance to tidy up; returns its exit code."""
        self._process.kill()
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended; returns its exit code."""
        return self._process.wait()

    def __enter__(self) -> Self:
        self._watchdog.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watchdog.cancel()
        with self._process:  # closes its pipes, then waits
            if exc_type is not None:
                self._process.kill()


def ended_by(code: int) -> str:
    """A process's exit code in words."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
