"""A backend in front of another one: commits on this device, sends in the background, looks before it goes on.

This device's file is where a turn becomes durable. The remote is the truth about everything that is not waiting to be
sent: a read of a thread's newest state asks it first, in one round trip, whether the thread moved on elsewhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from charm_checkpoint.backend import (
    Ancestor,
    Backend,
    Compacted,
    Entry,
    HeadMark,
    HeadRow,
    MoveHead,
    Outcome,
    Page,
    Pulled,
    PutCheckpoint,
    PutWrites,
    Scan,
    Seen,
    Snapshot,
    ThreadQuery,
    ThreadRow,
    Unit,
)
from charm_checkpoint.errors import (
    BackendUnavailable,
    ConfigError,
    OutboxFull,
    ThreadConflictError,
)
from charm_checkpoint.fencing import Bounded
from charm_checkpoint.replica.conflicts import Conflict, left_behind, read_heads
from charm_checkpoint.replica.front import Front, MissingAncestorError
from charm_checkpoint.replica.listing import merge_pages, merge_threads
from charm_checkpoint.replica.options import ReplicaOptions
from charm_checkpoint.replica.remote import Remote
from charm_checkpoint.replica.shipper import Shipper
from charm_checkpoint.replica.status import SyncStatus, Waiting
from charm_checkpoint.replica.wake import Waker
from charm_checkpoint.retention import delete_as_seen

__all__ = ["ReplicaBackend", "settle_name"]

logger = logging.getLogger("charm_checkpoint.replica")
T = TypeVar("T")


class ReplicaBackend:
    """Keeps threads in a local file and at a remote.

    Args:
        path: The local file.
        remote: The backend behind.
        options: Times and limits.
    """

    def __init__(
        self, path: str | Path, remote: Backend, options: ReplicaOptions | None = None
    ) -> None:
        self.options = options or ReplicaOptions()
        self._front = Front(path)
        self._remote = Remote(remote, self._remote_changed)
        self._shipper = Shipper(
            self._front,
            self._remote,
            on_conflict=lambda thread_id: self._waker.look_again(thread_id),
            on_deleted=self._deleted_elsewhere,
        )
        self._ready = False
        self._started = False
        self._unmeasured = 0
        self._waker = Waker(self._front, self._remote, self._shipper, self.options)
        self._past: Bounded[str, bool] = Bounded(100_000)
        """By thread, whether its history was asked for since a step was made: an old step's subgraphs may be next."""

    @property
    def name(self) -> str:
        return f"{self._remote.backend.name} (replica {self._front.path})"

    @property
    def path(self) -> Path:
        """This device's file."""
        return self._front.path

    def is_made(self) -> bool:
        """Whether this device's file is there."""
        return self._front.is_made()

    @property
    def journal_mode(self) -> str:
        """As of any `SqliteBackend`."""
        return self._front.journal_mode

    def setup(self) -> None:
        self._prepare()
        self._started = True
        self._unmeasured = self._front.waiting_bytes()
        if self._front.is_waiting():
            self._shipper.kick()

    def _prepare(self) -> None:
        if self._ready:
            return
        self._front.setup()
        known = self._front.state().get("remote")
        settle_name(self._remote.backend, lambda: () if known is None else (known,))
        remote = self._remote.backend.name
        if known is None:
            self._front.note(remote=remote)
        elif known != remote:
            raise ConfigError(
                f"{self._front.path} is the replica of {known}, not of {remote}; give this one another path, as in "
                "replica: other.db"
            )
        self._ready = True

    def close(self) -> None:
        deadline = time.monotonic() + self.options.flush_timeout
        if self._started and self._front.is_waiting():
            # No longer than until the remote is found to be away, or to refuse all that is left.
            self._shipper.wait_for(
                lambda: (
                    self._remote.offline is not None
                    or self._front.waiting().keys() <= self._shipper.refusals().keys()
                ),
                self.options.flush_timeout,
            )
            if self._front.is_waiting():
                waiting = self.sync_status().waiting
                logger.warning(
                    "%s: %d entries of %d threads are on this device only; they are sent at the next start",
                    self.name,
                    waiting.entries,
                    len(self._front.waiting()),
                )
        self._shipper.close(max(0.0, deadline - time.monotonic()))
        self._front.close()
        self._remote.backend.close()

    # -- writing ---------------------------------------------------------------------------------------------------

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        self._make_room(units)
        for unit in units:
            # Such a put takes the place of whatever is there, so that has to be known.
            if isinstance(unit, PutCheckpoint) and not unit.fenced:
                self._waker.wake(unit.thread_id, once=True)
        outcomes = list(self._front.write(units))
        for place, (unit, outcome) in enumerate(zip(units, outcomes, strict=True)):
            if outcome.status == "orphaned" and self._bring(unit):
                outcomes[place] = self._front.write([unit])[0]
        for unit in units:
            if isinstance(unit, PutCheckpoint) and unit.namespace == "":
                self._past.set(unit.thread_id, False)
        self._shipper.kick()
        return outcomes

    def _bring(self, unit: Unit) -> bool:
        """Bring here the checkpoint that a unit stands on."""
        wanted = unit.row.parent_id if isinstance(unit, PutCheckpoint) else unit.checkpoint_id
        return self._fetch(unit.thread_id, unit.namespace, wanted) is not None

    def _make_room(self, units: Sequence[Unit]) -> None:
        limit = self.options.max_outbox
        size = sum(_size(unit) for unit in units)
        self._unmeasured += size
        if self._unmeasured <= limit:
            return
        waiting = 0

        def enough() -> bool:
            nonlocal waiting
            waiting = self._front.waiting_bytes()
            return waiting <= limit or self._remote.offline is not None

        self._shipper.wait_for(enough, self.options.outbox_timeout)
        if waiting > limit:
            raise OutboxFull(
                f"{self.name}: {waiting} bytes wait to be sent, {limit} may (max_outbox). Nothing of this step was "
                "stored. Bring the remote back, or raise max_outbox"
            )
        self._unmeasured = waiting + size

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Snapshot:
        if checkpoint_id is not None:
            return self._read_one(thread_id, namespace, checkpoint_id)
        # The root graph is read at the beginning of every run, its subgraphs within it.
        root = namespace == ""
        self._waker.wake(thread_id, once=not root)
        if root and self._past.get(thread_id) is None:
            self._past.set(thread_id, False)
        found = self._front.read(thread_id, namespace, None)
        # A wake brings the subgraphs of the newest step only, and what runs from there is made here.
        old = ":" in namespace and self._past.get(thread_id) is not False
        if found.checkpoint is None and old and self._fetch(thread_id, namespace, None):
            return self._front.read(thread_id, namespace, None)
        return found

    def _fetch(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Snapshot | None:
        try:
            return self._waker.fetch(thread_id, namespace, checkpoint_id)
        except BackendUnavailable:
            if self.options.on_offline == "raise":
                raise
            return None

    def _read_one(self, thread_id: str, namespace: str, checkpoint_id: str) -> Snapshot:
        place = (thread_id, namespace, checkpoint_id)
        here = self._front.read(*place)
        if here.checkpoint is not None:
            if place in self._front.unsent(thread_id).checkpoints:
                return here
            if here.head == checkpoint_id:
                self._waker.wake(thread_id)
                here = self._front.read(*place)
                if here.head == checkpoint_id:
                    return here
        self._past.set(thread_id, True)
        try:
            fetched = self._waker.fetch(*place)
        except BackendUnavailable:
            if here.checkpoint is None or self.options.on_offline == "raise":
                raise
            return here
        if fetched is None:
            return here
        found = self._front.read(*place)
        # It is not kept where this device wrote to the thread all the while.
        known = found if found.checkpoint else fetched
        return known._replace(head=found.head or fetched.head)

    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        self._waker.wake(thread_id)
        return self._front.pull(thread_id, held)

    def scan(self, query: Scan) -> Page:
        if query.thread_id is not None:
            self._past.set(query.thread_id, True)
        # Before the remote is asked: what it takes meanwhile is then in both answers, not in neither.
        unsent = self._front.unsent(query.thread_id)
        here = self._front.scan_unsent(query._replace(limit=query.limit + 1))
        try:
            there = self._waker.ask(lambda backend: backend.scan(query))
        except BackendUnavailable:
            if self.options.on_offline == "raise":
                raise
            return self._front.scan(query)
        heads: dict[tuple[str, str], str | None] = {}
        entries = []
        for entry in there.entries:
            if entry.thread_id in unsent.deleted:
                continue
            if entry.thread_id in unsent.threads:
                entry = self._as_here(entry, heads)
            entries.append(entry)
        return merge_pages(query, there._replace(entries=entries), here)

    def _as_here(self, entry: Entry, heads: dict[tuple[str, str], str | None]) -> Entry:
        place = (entry.thread_id, entry.namespace)
        if place not in heads:
            heads[place] = self._front.read(*place, "-").head
        head = heads[place] or entry.snapshot.head
        return entry._replace(snapshot=entry.snapshot._replace(head=head))

    def lineage(
        self, thread_id: str, namespace: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> Sequence[Ancestor]:
        place = (thread_id, namespace)
        if checkpoint_id is not None and self._front.read(*place, checkpoint_id).checkpoint is None:
            return self._waker.ask(lambda backend: backend.lineage(*place, checkpoint_id, channels))
        try:
            return self._front.lineage(*place, checkpoint_id, channels)
        except MissingAncestorError as missing:
            last, wanted = missing.checkpoint_id, frozenset(channels)
        self._front.attach(thread_id, self._waker.lineage(thread_id, namespace, last, wanted))
        return self._front.lineage(*place, checkpoint_id, channels)

    def threads(self, query: ThreadQuery) -> Sequence[ThreadRow]:
        unsent = self._front.unsent(query.thread_id)
        here = [
            row
            for name in sorted(unsent.threads)
            for row in self._front.threads(ThreadQuery(limit=1, thread_id=name))
        ]

        def there(query: ThreadQuery) -> Sequence[ThreadRow]:
            return self._waker.ask(lambda backend: backend.threads(query))

        try:
            return merge_threads(query, there, here, unsent.threads)
        except BackendUnavailable:
            if self.options.on_offline == "raise":
                raise
            return self._front.threads(query)

    # -- deleting and copying --------------------------------------------------------------------------------------

    def delete(self, thread_id: str, *, at: float) -> bool:
        there: Sequence[ThreadRow] = ()
        if thread_id not in self._front.unsent(thread_id).deleted:
            try:
                there = self._waker.ask(
                    lambda b: b.threads(ThreadQuery(limit=1, thread_id=thread_id))
                )
            except BackendUnavailable:
                if self.options.on_offline == "raise":
                    raise
        existed = self._front.delete(thread_id, at=at)
        self._shipper.kick()
        return existed or bool(there)

    def delete_if(self, thread_id: str, seen: Seen, *, at: float) -> bool:
        """Delete a thread at the remote, if it is there as it was seen, and here after that.

        A step that this device takes between the two is one on a thread that was deleted elsewhere: it does not stay.
        """
        self._send_first(thread_id, "deleted")
        deleted = self._remote.call(lambda b: delete_as_seen(b, thread_id, seen, at=at))
        # Also if it was not: perhaps it is the answer to a repeated call.
        self._waker.refresh(thread_id, self.options.send_timeout)
        return deleted

    def copy(self, source: str, target: str, *, at: float) -> None:
        self._send_first(source, "copied")
        self._send_first(target, "copied to")
        self._remote.call(lambda backend: backend.copy(source, target, at=at))
        self._waker.wake(target)

    def prune(self, thread_id: str, drop: Sequence[tuple[str, str]]) -> int:
        self._send_first(thread_id, "pruned")
        removed = self._remote.call(lambda backend: backend.prune(thread_id, drop))
        return max(removed, self._front.prune(thread_id, drop))

    def _send_first(self, thread_id: str, what: str) -> None:
        if not self._shipper.wait(thread_id, self.options.send_timeout):
            raise BackendUnavailable(
                f"thread {thread_id!r} cannot be {what} before all of it is at {self._remote.backend.name}: "
                f"{self._remote.offline or 'it is still being sent'}"
            )

    def sizes(self, thread_id: str) -> Mapping[tuple[str, str], int] | None:
        """What the remote says, if it can."""
        tell = getattr(self._remote.backend, "sizes", None)
        return None if tell is None else self._remote.call(lambda _: tell(thread_id))

    def compact(self, *, pack: bool = True) -> Compacted:
        """As of any `SqliteBackend`, this device's file only."""
        return self._front.compact(pack=pack)

    # -- looking after it ------------------------------------------------------------------------------------------

    def here(self, look: Callable[[Backend], T]) -> T:
        """Call a function with this device's file, as a backend that knows of no remote."""
        return look(self._front)

    def there(self, look: Callable[[Backend], T]) -> T:
        """Call a function with the remote.

        Raises:
            BackendUnavailable: It could not be reached.
        """
        return self._remote.call(look)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything is at the remote. False if `timeout` (seconds) ran out."""
        return self._shipper.wait(None, timeout)

    def wait_synced(self, thread_id: str, timeout: float | None = None) -> bool:
        """Wait until all of a thread is at the remote. False if `timeout` (seconds) ran out."""
        return self._shipper.wait(thread_id, timeout)

    def refresh(self, thread_id: str, timeout: float | None = None) -> None:
        """Take over where a thread is now, so that it can be gone on with offline.

        Raises:
            BackendUnavailable: The remote cannot be asked within `timeout` seconds (by default `wake_timeout`).
        """
        self._waker.refresh(thread_id, timeout, anyway=True)

    def sync_status(self) -> SyncStatus:
        """Tell how far the remote is behind. Reads this device's file only, and sets nothing going."""
        self._prepare()
        refusals = self._shipper.refusals()
        threads = {
            thread_id: Waiting(entries, size, since, _text(refusals.get(thread_id)))
            for thread_id, (entries, size, since) in self._front.waiting().items()
        }
        state = self._front.state()
        return SyncStatus(
            remote=self._remote.backend.name,
            path=str(self._front.path),
            waiting=Waiting(
                sum(w.entries for w in threads.values()),
                sum(w.bytes for w in threads.values()),
                min((w.since for w in threads.values() if w.since is not None), default=None),
            ),
            threads=threads,
            last_success=_number(state.get("last_success")),
            last_error=state.get("last_error"),
            # What the file says may have been noted by a process that is gone.
            offline_since=None if self._remote.answers else _number(state.get("offline_since")),
            conflicts=len(self._front.conflicts()),
        )

    def conflicts(self, thread_id: str | None = None) -> list[Conflict]:
        """Branches that this device made because another was first, the oldest first. Sets nothing going."""
        self._prepare()
        return self._front.conflicts(thread_id)

    def dismiss(self, conflict: Conflict) -> None:
        """Take a conflict off the list; its branch stays in the thread's history."""
        self._front.settle([conflict])

    def promote(self, conflict: Conflict, *, device: str) -> None:
        """Make the branch of a conflict what the thread goes on from; what stood in its way stays as a branch.

        Raises:
            ThreadConflictError: Another device moved the thread on at the same moment; look again.
            BackendUnavailable: The remote cannot be asked, or not all of the thread could be sent to it.
        """
        thread_id = conflict.thread_id
        self._send_first(thread_id, "moved to its branch")
        together = self._front.branch(conflict)
        targets = {c.namespace: c.tip_id for c in together}
        heads = self._remote.call(lambda backend: read_heads(backend, thread_id))
        if conflict.namespace == "":
            left = [h for h in heads.values() if h.namespace not in targets]
            targets |= self._remote.call(
                lambda backend: left_behind(backend, thread_id, conflict.tip_id, left)
            )
        # The root graph's last: what it leads to is there before.
        for namespace in sorted(targets, reverse=True):
            over = heads[namespace].checkpoint_id if namespace in heads else ""
            move = MoveHead(thread_id, namespace, targets[namespace], over, device, time.time())
            outcome = self._remote.call(lambda backend, move=move: backend.write([move]))[0]  # type: ignore[misc]
            if outcome.status != "stored":
                head = outcome.head or HeadRow(namespace, "", "", 0.0)
                raise ThreadConflictError(thread_id, namespace, over, *head[1:])
        self._front.settle(together)
        self._waker.refresh(thread_id, self.options.send_timeout)

    # -- what the parts tell ---------------------------------------------------------------------------------------

    def _remote_changed(self, error: BackendUnavailable | None) -> None:
        if self._shipper.closed:
            return  # a late answer: the file is closed, too
        # What is noted may be another process's, which is gone.
        since = self._front.state().get("offline_since")
        if error is not None:
            self._front.note(offline_since=since or repr(time.time()), last_error=str(error))
        elif since is not None:
            self._front.note(offline_since=None, last_error=None)
        if error is None:
            self._shipper.kick(reopen=False)

    def _deleted_elsewhere(self, thread_id: str) -> None:
        logger.warning(
            "thread %r was deleted on another device; what this one did in it since is gone with it",
            thread_id,
        )
        with suppress(BackendUnavailable):  # the next wake does it
            self._waker.refresh(thread_id)


def settle_name(remote: Backend, names: Callable[[], Iterable[str]]) -> None:
    """Have a remote's name, which tells replicas apart, be its last one. See `Backend`.

    Args:
        remote: The remote.
        names: Tells of which remotes there are replicas on this device.

    Raises:
        BackendUnavailable: It cannot be found out now.
    """
    if settle := getattr(remote, "settle_name", None):
        settle(names)


def _size(unit: Unit) -> int:
    if isinstance(unit, PutCheckpoint):
        return len(unit.row.body) + len(unit.row.metadata) + sum(len(b.data) for b in unit.blobs)
    return sum(len(row.data) for row in unit.rows) if isinstance(unit, PutWrites) else 0


def _text(error: Exception | None) -> str | None:
    return None if error is None else str(error)


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)
