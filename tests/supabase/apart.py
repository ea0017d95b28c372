"""A real project, of which a test takes only a corner: nothing can be emptied there but by the store's own verbs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from typing import Any

from charm_checkpoint.backend import (
    Ancestor,
    Backend,
    Entry,
    HeadMark,
    Outcome,
    Page,
    Pulled,
    Scan,
    Snapshot,
    ThreadQuery,
    ThreadRow,
    Unit,
)

__all__ = ["Apart", "real_project"]


def real_project() -> tuple[str, str] | None:
    """URL and service key of a project with the migration and no threads, if the tests are given one."""
    url, key = (os.environ.get(f"CHARM_TEST_SUPABASE_{name}") for name in ("URL", "KEY"))
    return (url, key) if url and key else None


class Apart:
    """A backend with all its threads under names that no other test has.

    Deleting leaves tombstones, so that a name cannot be fresh twice.
    """

    def __init__(self, backend: Backend, prefix: str | None = None) -> None:
        self._backend = backend
        self.prefix = prefix or f"{secrets.token_hex(4)}-"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def clear(self) -> None:
        """Delete all threads."""
        while rows := self.threads(ThreadQuery()):
            for row in rows:
                self.delete(row.thread_id, at=1.0)

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        return self._backend.write([u._replace(thread_id=self._in(u.thread_id)) for u in units])

    def read(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Snapshot:
        return self._backend.read(self._in(thread_id), namespace, checkpoint_id)

    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        pulled = self._backend.pull(self._in(thread_id), held)
        return pulled._replace(entries=[self._entry(each) for each in pulled.entries])

    def scan(self, query: Scan) -> Page:
        thread, after = query.thread_id, query.after
        page = self._backend.scan(
            query._replace(
                thread_id=None if thread is None else self._in(thread),
                after=None if after is None else (after[0], self._in(after[1]), after[2]),
            )
        )
        last = page.next and (page.next[0], self._out(page.next[1]), page.next[2])
        return Page([self._entry(each) for each in page.entries], last)

    def lineage(
        self, thread_id: str, namespace: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> Sequence[Ancestor]:
        return self._backend.lineage(self._in(thread_id), namespace, checkpoint_id, channels)

    def threads(self, query: ThreadQuery) -> Sequence[ThreadRow]:
        thread, after = query.thread_id, query.after
        rows = self._backend.threads(
            query._replace(
                thread_id=None if thread is None else self._in(thread),
                after=None if after is None else (after[0], self._in(after[1])),
            )
        )
        return [row._replace(thread_id=self._out(row.thread_id)) for row in rows]

    def delete(self, thread_id: str, *, at: float) -> bool:
        return self._backend.delete(self._in(thread_id), at=at)

    def copy(self, source: str, target: str, *, at: float) -> None:
        self._backend.copy(self._in(source), self._in(target), at=at)

    def prune(self, thread_id: str, drop: Sequence[tuple[str, str]]) -> int:
        return self._backend.prune(self._in(thread_id), drop)

    def _in(self, thread_id: str) -> str:
        return self.prefix + thread_id

    def _out(self, thread_id: str) -> str:
        assert thread_id.startswith(self.prefix), "the project has threads of others"
        return thread_id[len(self.prefix) :]

    def _entry(self, entry: Entry) -> Entry:
        return entry._replace(thread_id=self._out(entry.thread_id))
