"""Which checkpoints can go: the rules that no backend has to know.

Planned from rows that were read, then removed by name in short transactions, so that what running agents add meanwhile
is never touched. What a DeltaChannel of a checkpoint that stays is rebuilt from stays, too; but not what *that* is read
from: two DeltaChannels whose snapshots never fall together would keep everything.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from langgraph.checkpoint.serde.types import TASKS

from charm_checkpoint.backend import (
    SENDS_IN_PARENT_BELOW,
    Backend,
    CheckpointRow,
    Entry,
    Scan,
    ThreadQuery,
    ThreadRow,
)
from charm_checkpoint.codec import valid_id
from charm_checkpoint.engine import Engine
from charm_checkpoint.errors import ThreadNotFoundError
from charm_checkpoint.policy import RETENTION_LABEL, RetentionPolicy

__all__ = [
    "PruneReport",
    "Pruned",
    "delta_channels",
    "drop_runs",
    "headers",
    "keep_latest",
    "prune",
]

_PAGE = 500
# Few enough that agents hardly wait for a transaction that removes them.
_BATCH = 200

_Places = set[tuple[str, str]]
"""Namespace and checkpoint id."""

Sizes = Callable[[str], "Mapping[tuple[str, str], int] | None"]
"""What a thread's checkpoints take, as `Backend` says."""


class Pruned(NamedTuple):
    """What became of one thread."""

    thread_id: str
    checkpoints: int = 0
    """How many went."""
    bytes: int | None = None
    """How much less is stored, `None` where the database cannot tell."""
    deleted: bool = False
    """Whether all of it went, for being idle."""
    kept: str | None = None
    """Why the policy does not hold for it."""


class PruneReport(NamedTuple):
    """What `prune` did, or with `dry_run` would do."""

    dry_run: bool
    looked_at: int
    """How many threads there were."""
    threads: tuple[Pruned, ...]
    """Those that lost something, and those that the policy does not hold for."""

    @property
    def checkpoints(self) -> int:
        """How many went."""
        return sum(each.checkpoints for each in self.threads)

    @property
    def bytes(self) -> int | None:
        """How much less is stored, `None` where the database cannot tell."""
        known = [each.bytes for each in self.threads if each.checkpoints]
        return None if None in known else sum(size or 0 for size in known)


def headers(backend: Backend, query: Scan) -> Iterator[Entry]:
    """All checkpoints of a scan, newest first, without their values."""
    query = query._replace(values=False, limit=_PAGE)
    while True:
        page = backend.scan(query)
        yield from page.entries
        if page.next is None:
            return
        query = query._replace(after=page.next)


def delta_channels(row: CheckpointRow) -> set[str]:
    """Channels whose value is not in this checkpoint but in the writes since an ancestor's snapshot."""
    metadata: dict[str, Any] = json.loads(row.metadata)
    return set(metadata.get("counters_since_delta_snapshot") or ())


# -- what to remove ----------------------------------------------------------------------------------------------------


def drop_runs(backend: Backend, run_ids: Sequence[str]) -> int:
    """Remove the checkpoints of the named runs, less those that others are read from. Returns how many went."""
    if not run_ids:
        return 0
    doomed: defaultdict[str, _Places] = defaultdict(set)
    for entry in headers(backend, Scan(run_ids=tuple(run_ids))):
        assert entry.snapshot.checkpoint is not None
        doomed[entry.thread_id].add((entry.namespace, entry.snapshot.checkpoint.checkpoint_id))
    removed = 0
    for thread_id, drop in doomed.items():
        history = _History(backend, thread_id)
        for namespace in history.rows:
            drop -= history.needed_above(namespace, drop)
        removed += _remove(backend, thread_id, drop)
    return removed


def keep_latest(backend: Backend, thread_id: str) -> int:
    """Remove all but each namespace's head and what the head is read from. Returns how many went."""
    history = _History(backend, thread_id)
    return _remove(backend, thread_id, _doomed(history, lambda _, __: True))


def prune(
    engine: Engine,
    policy: RetentionPolicy,
    threads: Sequence[str] | None,
    dry_run: bool,
    on_progress: Callable[[int, int], object] | None,
) -> PruneReport:
    """Remove what a policy does not keep, of the named threads or of all: see `CheckpointStore.prune`."""
    sizes: Sizes | None = getattr(engine.backend, "sizes", None)
    if threads is None:
        listed = engine.call(_all_threads)
    else:
        names = list(dict.fromkeys(valid_id(name, "thread_id") for name in threads))
        listed = [engine.call(lambda backend, name=name: _thread(backend, name)) for name in names]  # type: ignore[misc]
    found = []
    for done, thread in enumerate(listed, 1):
        found.append(
            engine.call(
                lambda backend, thread=thread: _prune(backend, thread, policy, dry_run, sizes)  # type: ignore[misc]
            )
        )
        if on_progress is not None:
            on_progress(done, len(listed))
    told = tuple(each for each in found if each.checkpoints or each.kept)
    return PruneReport(dry_run, len(listed), told)


def _all_threads(backend: Backend) -> list[ThreadRow]:
    found: list[ThreadRow] = []
    query = ThreadQuery(_PAGE)
    while True:
        page = backend.threads(query)
        found += page
        if len(page) < _PAGE:
            return found
        query = query._replace(after=(page[-1].updated_at, page[-1].thread_id))


def _thread(backend: Backend, thread_id: str) -> ThreadRow:
    for row in backend.threads(ThreadQuery(1, thread_id=thread_id)):
        return row
    raise ThreadNotFoundError(f"there is no thread {thread_id!r} to prune in {backend.name}")


def _prune(
    backend: Backend,
    thread: ThreadRow,
    policy: RetentionPolicy,
    dry_run: bool,
    sizes: Sizes | None,
) -> Pruned:
    """Remove of one thread, as it was listed, what a policy does not keep."""
    name, now = thread.thread_id, time.time()
    policy, kept = _of_thread(thread, policy)
    if kept is not None:
        return Pruned(name, kept=kept)
    history = _History(backend, name)
    if policy.idle_ttl is not None and thread.updated_at < now - policy.idle_ttl:
        # Only as it was listed: an agent may have gone on with it since.
        still = backend.threads(ThreadQuery(1, thread_id=name))
        if not still or still[0].heads != thread.heads or still[0].status == "interrupted":
            return Pruned(name)
        before = _told(sizes, name)
        if not dry_run:
            backend.delete(name, at=now)
        size = None if before is None else sum(before.values())
        return Pruned(name, history.count, size, deleted=True)
    if policy == RetentionPolicy():
        return Pruned(name)
    measured: Mapping[tuple[str, str], int] | None = None
    if policy.max_bytes is not None:
        measured = _told(sizes, name)
        if measured is None:
            measured = _measure(backend, name)
    drop = _doomed(history, _limits(history, policy, now, measured))
    if not drop:
        return Pruned(name)
    before = _told(sizes, name) if measured is None or sizes is None else measured
    if dry_run:
        about = None if before is None else sum(before.get(each, 0) for each in drop)
        return Pruned(name, len(drop), about)
    removed = _remove(backend, name, drop)
    after = _told(sizes, name)
    freed = None
    if before is not None and after is not None:
        # Not what agents have added since.
        freed = sum(before.values()) - sum(after[each] for each in after.keys() & before.keys())
    return Pruned(name, removed, freed)


def _of_thread(thread: ThreadRow, policy: RetentionPolicy) -> tuple[RetentionPolicy, str | None]:
    """The policy for one thread, or why none holds for it."""
    if thread.status == "interrupted":
        return policy, "it waits for an answer"
    label = thread.labels.get(RETENTION_LABEL)
    if label is None:
        return policy, None
    if label == "keep":
        return policy, "its metadata says retention: keep"
    if isinstance(label, bool) or not isinstance(label, int) or label < 1:
        return policy, f"its metadata says retention: {label}, which is neither keep nor a number"
    return RetentionPolicy(label, policy.max_age, policy.idle_ttl, policy.max_bytes), None


def _limits(
    history: _History,
    policy: RetentionPolicy,
    now: float,
    sizes: Mapping[tuple[str, str], int] | None,
) -> Callable[[str, CheckpointRow], bool]:
    """Tells whether a limit says that a checkpoint goes. To be asked newest first."""
    counted: defaultdict[str, int] = defaultdict(int)
    over: _Places = set()
    if policy.max_bytes is not None and sizes is not None:
        total = 0
        for place in sorted(sizes, key=lambda place: place[1], reverse=True):
            total += sizes[place]
            if total > policy.max_bytes:
                over.add(place)

    def goes(namespace: str, row: CheckpointRow) -> bool:
        counted[namespace] += 1
        return (
            (policy.keep_last is not None and counted[namespace] > policy.keep_last)
            or (policy.max_age is not None and row.created_at < now - policy.max_age)
            or (namespace, row.checkpoint_id) in over
        )

    return goes


def _told(sizes: Sizes | None, thread_id: str) -> Mapping[tuple[str, str], int] | None:
    return None if sizes is None else sizes(thread_id)


def _measure(backend: Backend, thread_id: str) -> dict[tuple[str, str], int]:
    """What checkpoints take where the database cannot tell: each value whole, with the newest that has it."""
    found: dict[tuple[str, str], int] = {}
    seen: set[tuple[str, str, str]] = set()
    query: Scan | None = Scan(thread_id=thread_id, limit=20)
    while query is not None:
        page = backend.scan(query)
        for entry in page.entries:
            row, snapshot = entry.snapshot.checkpoint, entry.snapshot
            assert row is not None
            size = len(row.body) + len(row.metadata) + sum(len(w.data) for w in snapshot.writes)
            for blob in snapshot.blobs:
                key = (entry.namespace, blob.channel, blob.version)
                size += 0 if key in seen else len(blob.data)
                seen.add(key)
            found[entry.namespace, row.checkpoint_id] = size
        query = query._replace(after=page.next) if page.next else None
    return found


def _remove(backend: Backend, thread_id: str, drop: Iterable[tuple[str, str]]) -> int:
    # Newest first: what is left of a history that is being removed can still be read.
    names = sorted(drop, key=lambda place: place[1], reverse=True)
    return sum(
        backend.prune(thread_id, names[start : start + _BATCH])
        for start in range(0, len(names), _BATCH)
    )


# -- what has to stay --------------------------------------------------------------------------------------------------


class _History:
    """A thread's checkpoints as they were read, newest first, without values."""

    def __init__(self, backend: Backend, thread_id: str) -> None:
        self._backend = backend
        self._thread_id = thread_id
        self.rows: defaultdict[str, dict[str, CheckpointRow]] = defaultdict(dict)
        self.heads: dict[str, str] = {}
        for entry in headers(backend, Scan(thread_id=thread_id)):
            row = entry.snapshot.checkpoint
            assert row is not None
            self.rows[entry.namespace][row.checkpoint_id] = row
            if entry.snapshot.head is not None:
                # As the first page told it, which has it, too: it may have moved on since.
                self.heads.setdefault(entry.namespace, entry.snapshot.head)

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(map(len, self.rows.values()))

    def needed_above(self, namespace: str, drop: _Places) -> _Places:
        """Those among `drop` that checkpoints of a namespace which stay are read from."""
        needed: _Places = set()
        for row in self.rows[namespace].values():
            # Only what stands right above the cut has to look beyond it.
            if (namespace, row.checkpoint_id) not in drop and (namespace, row.parent_id) in drop:
                needed.update((namespace, each) for each in self._read_from(namespace, row))
        return needed & drop

    def _read_from(self, namespace: str, row: CheckpointRow) -> set[str]:
        """The ancestors that a checkpoint is read from."""
        rows, needed = self.rows[namespace], set[str]()
        if deltas := delta_channels(row):
            lineage = self._backend.lineage(
                self._thread_id, namespace, row.checkpoint_id, sorted(deltas)
            )
            at = rows.get(row.parent_id or "")
            while lineage and at is not None and lineage[-1].checkpoint_id not in needed:
                if at.checkpoint_id in needed:
                    break  # a forged cycle of parents
                needed.add(at.checkpoint_id)
                at = rows.get(at.parent_id or "")
        if row.format < SENDS_IN_PARENT_BELOW and row.parent_id in rows:
            sends = self._backend.read(self._thread_id, namespace, row.checkpoint_id).sends
            if any(write.channel == TASKS for write in sends):
                needed.add(row.parent_id or "")
        return needed


def _doomed(history: _History, goes: Callable[[str, CheckpointRow], bool]) -> _Places:
    """What goes of a history: heads never, nor what something that stays is read from."""
    doomed: _Places = set()
    # The root graph first: calls of subgraphs go with the checkpoints that they belong to.
    for namespace in sorted(history.rows):
        rows, head = history.rows[namespace], history.heads.get(namespace)
        if head not in rows:
            continue  # nobody knows what this goes on from
        places = {(namespace, checkpoint_id) for checkpoint_id in rows}
        if _finished_call(namespace, rows[head], doomed):
            doomed |= places
            continue
        drop = {
            (namespace, row.checkpoint_id)
            for row in rows.values()
            if goes(namespace, row) and row.checkpoint_id != head
        }
        doomed |= drop - history.needed_above(namespace, drop)
    return doomed


def _finished_call(namespace: str, head: CheckpointRow, doomed: _Places) -> bool:
    """Whether a namespace is one call of a subgraph that belongs to a root checkpoint about to go.

    A call's namespace ends with its task id behind a colon; a subgraph with a checkpointer of its own has none there
    and lives on from call to call.
    """
    return ":" in namespace and head.root_id is not None and ("", head.root_id) in doomed
