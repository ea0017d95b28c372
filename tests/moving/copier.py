"""For test_interrupted: forks processes that copy all threads of a store, and die when they are told to."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from charm_checkpoint.backend import Backend, Outcome, Unit
from charm_checkpoint.moving import copy_threads
from charm_checkpoint.replica import ReplicaBackend
from charm_checkpoint.sqlite import SqliteBackend
from charm_memory_postgres import PostgresBackend


def open_backend(kind: str, *where: str) -> Backend:
    """The backend that a pair names."""
    if kind == "sqlite":
        return SqliteBackend(Path(where[0]))
    if kind == "postgres":
        return PostgresBackend(where[0])
    if kind == "replica":
        return ReplicaBackend(Path(where[0]), open_backend(*where[1:]))
    if kind == "redis":
        from charm_memory_redis import RedisBackend

        return RedisBackend(where[0], prefix=where[1])
    if kind == "supabase":
        from charm_memory_supabase import SupabaseBackend

        return SupabaseBackend(where[0], key=where[1])
    raise ValueError(kind)


class Dying:
    """A backend whose process ends at a write."""

    def __init__(self, backend: Backend, at: int, when: str) -> None:
        self._backend = backend
        self._left, self._when = at, when

    def __getattr__(self, verb: str) -> Any:
        return getattr(self._backend, verb)

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        self._left -= 1
        if not self._left and self._when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        outcomes = self._backend.write(units)
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)
        return outcomes


def copy(source: list[str], target: list[str], dies: list[Any] | None) -> dict[str, str]:
    origin, into = open_backend(*source), open_backend(*target)
    report = copy_threads(origin, Dying(into, *dies) if dies else into)  # type: ignore[arg-type]
    if isinstance(into, ReplicaBackend):
        assert into.flush(60)
    into.close()
    origin.close()
    return {thread.thread_id: thread.outcome for thread in report.threads}


def main() -> None:
    for line in sys.stdin:
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                told = copy(*json.loads(line))
                os.write(write, json.dumps(told).encode())
                os._exit(0)
            except BaseException:  # noqa: BLE001 - shown, and the process ends
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(write)
        with os.fdopen(read) as answer:
            told_ = answer.read()
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code not in (0, -signal.SIGKILL):
            sys.exit(f"a copy ended with {code}")
        print(told_ if code == 0 else "null", flush=True)


if __name__ == "__main__":
    main()
