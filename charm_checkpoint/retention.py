"""Removes what a policy does not keep, beside running agents.

Planned from rows that were read, then removed by name in short transactions, so that what running agents add meanwhile
is never touched; `keeping` tells what has to stay.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from langgraph.checkpoint.serde.types import INTERRUPT

from charm_checkpoint.backend import (
    Backend,
    CheckpointRow,
    Labels,
    Scan,
    Seen,
    Snapshot,
    ThreadQuery,
    ThreadRow,
)
from charm_checkpoint.codec import valid_id
from charm_checkpoint.engine import Engine
from charm_checkpoint.errors import ThreadNotFoundError
from charm_checkpoint.keeping import (
    Branch,
    History,
    Places,
    doomed,
    headers,
    is_unfinished,
)
from charm_checkpoint.policy import RETENTION_LABEL, RetentionPolicy

__all__ = [
    "PruneReport",
    "Pruned",
    "delete_as_seen",
    "drop_runs",
    "keep_latest",
    "prune",
]

_PAGE = 500
# Few enough that agents hardly wait for a transaction that removes them.
_BATCH = 200

Sizes = Mapping[tuple[str, str], int]
"""What a thread's checkpoints take, as `Backend` says."""

_WAITS = "it waits for an answer"
_UNFINISHED = "its last step has not ended: it waits at a breakpoint, failed, or runs"


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


# -- runs, and all but the newest --------------------------------------------------------------------------------------


def drop_runs(backend: Backend, run_ids: Sequence[str]) -> None:
    """Remove the checkpoints of the named runs, less those that others are read from."""
    if not run_ids:
        return
    named: defaultdict[str, Places] = defaultdict(set)
    for entry in headers(backend, Scan(run_ids=tuple(run_ids))):
        assert entry.snapshot.checkpoint is not None
        named[entry.thread_id].add((entry.namespace, entry.snapshot.checkpoint.checkpoint_id))
    for thread_id, drop in named.items():
        history = History(backend, thread_id)
        for namespace in history.rows:
            drop -= history.needed_above(namespace, drop)
        for batch in _batches(drop):
            backend.prune(thread_id, batch)


def keep_latest(backend: Backend, thread_id: str) -> None:
    """Remove all but each namespace's head, open branches, and what these are read from."""
    for batch in _batches(doomed(History(backend, thread_id), lambda _, __: True)):
        backend.prune(thread_id, batch)


def _batches(drop: Iterable[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    # Newest first: what is left of a history that is being removed can still be read.
    names = sorted(drop, key=lambda place: place[1], reverse=True)
    return [names[start : start + _BATCH] for start in range(0, len(names), _BATCH)]


# -- by a policy -------------------------------------------------------------------------------------------------------


def prune(
    engine: Engine,
    policy: RetentionPolicy,
    threads: Sequence[str] | None,
    dry_run: bool,
    on_progress: Callable[[int, int], object] | None,
) -> PruneReport:
    """Remove what a policy does not keep, of the named threads or of all: see `CheckpointStore.prune`."""
    if threads is None:
        names = engine.call(_all_threads)
    else:
        names = list(dict.fromkeys(valid_id(name, "thread_id") for name in threads))
        for name in names:
            if engine.call(lambda backend, name=name: _thread(backend, name)) is None:  # type: ignore[misc]
                raise ThreadNotFoundError(
                    f"there is no thread {name!r} to prune in {engine.backend.name}"
                )
    told = []
    for done, name in enumerate(names, 1):
        plan = engine.call(lambda backend, name=name: _plan(backend, engine.backend, name, policy))  # type: ignore[misc]
        pruned = plan.foreseen if dry_run else _carry_out(engine, plan)
        if pruned.checkpoints or pruned.kept:
            told.append(pruned)
        if on_progress is not None:
            on_progress(done, len(names))
    return PruneReport(dry_run, len(names), tuple(told))


def _all_threads(backend: Backend) -> list[str]:
    # Names only: a thread's row can be long, as it has a head for each call of a subgraph.
    found: list[str] = []
    query = ThreadQuery(_PAGE)
    while True:
        page = backend.threads(query)
        found += [row.thread_id for row in page]
        if len(page) < _PAGE:
            return list(dict.fromkeys(found))
        query = query._replace(after=(page[-1].updated_at, page[-1].thread_id))


def _thread(backend: Backend, thread_id: str) -> ThreadRow | None:
    return next(iter(backend.threads(ThreadQuery(1, thread_id=thread_id))), None)


class _Plan(NamedTuple):
    """What is to become of one thread."""

    thread_id: str
    drop: Collection[tuple[str, str]] = ()
    idle: Seen | None = None
    """The whole thread goes, if it is still like this."""
    sizes: Sizes | None = None
    """What its checkpoints take, where the database can tell."""
    kept: str | None = None
    """Why the policy does not hold for it."""

    @property
    def foreseen(self) -> Pruned:
        """What would become of it."""
        if self.kept is not None:
            return Pruned(self.thread_id, kept=self.kept)
        if self.idle is not None:
            size = None if self.sizes is None else sum(self.sizes.values())
            return Pruned(self.thread_id, self.idle.checkpoints, size, deleted=True)
        about = None if self.sizes is None else sum(self.sizes.get(each, 0) for each in self.drop)
        return Pruned(self.thread_id, len(self.drop), about if self.drop else None)


def _plan(backend: Backend, bare: Backend, name: str, policy: RetentionPolicy) -> _Plan:
    """Look at one thread.

    Args:
        backend: Where it is.
        bare: The same without doors before it: what can tell more than the verbs do.
        name: The thread.
        policy: What to keep.
    """
    thread, now = _thread(backend, name), time.time()
    if thread is None:
        return _Plan(name)  # deleted meanwhile
    if thread.status == "interrupted":
        return _Plan(name, kept=_WAITS)
    policy, kept = _of_thread(thread.labels, policy)
    if kept is not None:
        return _Plan(name, kept=kept)
    conflicts = _conflicts(bare, name)
    history = History(backend, name, conflicts)
    if policy.idle_ttl is not None and _last_sign(history, thread) < now - policy.idle_ttl:
        if _thread(backend, name) != thread:
            return _Plan(name)  # it woke up, and nobody knows how much of that was read
        if why := _not_idle(history, conflicts):
            return _Plan(name, kept=why)
        return _Plan(name, idle=history.seen, sizes=_sizes(bare, name))
    sizes = measured = None
    if policy.max_bytes is not None:
        sizes = _sizes(bare, name)
        measured = _measure(backend, name) if sizes is None else sizes
    drop = doomed(history, _limits(policy, now, measured))
    # Only now, since it reads whole values.
    if not drop or any(map(_asks, history.live_heads())):
        return _Plan(name, kept=_WAITS if drop else None)
    return _Plan(name, drop, sizes=_sizes(bare, name) if sizes is None else sizes)


def _last_sign(history: History, thread: ThreadRow) -> float:
    """When anything of a thread was written, branches included: seconds since the epoch."""
    made = (row.created_at for rows in history.rows.values() for row in rows.values())
    return max(thread.updated_at, *made)


def _not_idle(history: History, conflicts: Collection[Branch]) -> str | None:
    """Why a thread that nobody wrote to for long is not to be deleted."""
    if conflicts:
        return "it has a branch that somebody has to decide about: see conflicts"
    lasting = [namespace for namespace in history.rows if ":" not in namespace]
    heads = list(history.live_heads())
    if any(map(_asks, heads)) or any(map(history.asking_tips, lasting)):
        return _WAITS
    return _UNFINISHED if any(map(is_unfinished, heads)) else None


def _asks(snapshot: Snapshot) -> bool:
    return any(write.channel == INTERRUPT for write in snapshot.writes)


def _carry_out(engine: Engine, plan: _Plan) -> Pruned:
    """Do what is planned. Each step by itself: one that is repeated, as its answer was lost, changes no count."""
    name = plan.thread_id
    if plan.idle is not None:
        seen, at = plan.idle, time.time()
        went = engine.call(lambda _: delete_as_seen(engine.backend, name, seen, at=at))
        gone = went or engine.call(lambda backend: _thread(backend, name)) is None
        return plan.foreseen if gone else Pruned(name)
    for batch in _batches(plan.drop):
        engine.call(lambda backend, batch=batch: backend.prune(name, batch))  # type: ignore[misc]
    done = plan.foreseen
    if plan.sizes is None or not plan.drop:
        return done
    before, after = plan.sizes, engine.call(lambda _: _sizes(engine.backend, name))
    if after is None:
        return done._replace(bytes=None)
    # Not what agents have added since.
    left = sum(after[each] for each in after.keys() & before.keys())
    return done._replace(bytes=sum(before.values()) - left)


def delete_as_seen(backend: Backend, thread_id: str, seen: Seen, *, at: float) -> bool:
    """Delete a thread that is as it was seen. False if it is not, or if there is none.

    A backend without `delete_if` is looked at once more right before: what an agent adds between the two is deleted.
    """
    delete_if = getattr(backend, "delete_if", None)
    if delete_if is not None:
        return bool(delete_if(thread_id, seen, at=at))
    return History(backend, thread_id).seen == seen and backend.delete(thread_id, at=at)


def _conflicts(backend: Any, thread_id: str) -> list[Branch]:
    conflicts = getattr(backend, "conflicts", None)
    found = conflicts(thread_id) if conflicts is not None else ()
    return [Branch(each.namespace, each.first_id, each.tip_id) for each in found]


def _of_thread(labels: Labels, policy: RetentionPolicy) -> tuple[RetentionPolicy, str | None]:
    """The policy for one thread, or why none holds for it."""
    label = labels.get(RETENTION_LABEL)
    if label is None:
        return policy, None
    if label == "keep":
        return policy, "its metadata says retention: keep"
    if isinstance(label, bool) or not isinstance(label, int) or label < 1:
        return policy, f"its metadata says retention: {label}, which is neither keep nor a number"
    return RetentionPolicy(label, policy.max_age, policy.idle_ttl, policy.max_bytes), None


def _limits(
    policy: RetentionPolicy,
    now: float,
    sizes: Sizes | None,
) -> Callable[[str, CheckpointRow], bool]:
    """Tells whether a limit says that a checkpoint goes. To be asked newest first."""
    counted: defaultdict[str, int] = defaultdict(int)
    over: Places = set()
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


def _sizes(backend: Any, thread_id: str) -> Sizes | None:
    sizes = getattr(backend, "sizes", None)
    found: Sizes | None = None if sizes is None else sizes(thread_id)
    return found


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
