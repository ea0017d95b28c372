"""A backend in a file that only grows: each change is a line, and every process that shares it reads them all.

`MemoryBackend` holds the rows and knows the contract's rules; this adds that they last and are shared.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from charm_checkpoint import CheckpointStore
from charm_checkpoint.errors import BackendError
from charm_checkpoint.memory import MemoryBackend
from charm_memory_example.lines import from_line, to_line


def _reads(verb: str) -> Any:
    def call(self: LogBackend, *arguments: Any, **named: Any) -> Any:
        with self.current():
            return getattr(MemoryBackend, verb)(self, *arguments, **named)

    return call


def _changes(verb: str) -> Any:
    def call(self: LogBackend, *arguments: Any, **named: Any) -> Any:
        with self.current() as file:
            answer = getattr(MemoryBackend, verb)(self, *arguments, **named)
            file.write(to_line((verb, arguments, named)))
            file.flush()
            os.fsync(file.fileno())  # what was answered is durable
            self.read_to = file.tell()
            return answer

    return call


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class LogBackend(MemoryBackend):
    write, delete, copy, prune = map(_changes, ("write", "delete", "copy", "prune"))
    read, scan, lineage, threads = map(_reads, ("read", "scan", "lineage", "threads"))

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.name, self.path, self.read_to = f"log:{path}", path, 0

    @contextmanager
    def current(self) -> Iterator[IO[bytes]]:
        """The file, for this process alone, when what others added has been read."""
        try:
            with self._lock, open(self.path, "ab+", opener=_private) as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
                file.seek(self.read_to)
                for line in file:
                    if not line.endswith(b"\n"):  # its writer died, and was never answered
                        file.truncate(self.read_to)
                        break
                    verb, arguments, named = from_line(line)
                    getattr(MemoryBackend, verb)(self, *arguments, **named)
                    self.read_to += len(line)
                yield file
        except OSError as error:
            self._threads, self._tombstones, self.read_to = {}, {}, 0  # only the file counts
            raise BackendError(f"{self.name}: {error}") from error


class LogStore(CheckpointStore):
    options = frozenset({"url"})

    def open_backend(self) -> LogBackend:
        return LogBackend(Path(self.config["url"].removeprefix("log:///")))
