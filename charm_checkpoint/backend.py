"""The seam: what a database has to do to keep threads.

A backend moves rows. It is synchronous and thread-safe, knows no LangGraph object and decodes no value.
Everything above it (retries, batching, both colours, fencing policy) is the engine's and the saver's.

| verb | what it does, atomically | idempotent |
|---|---|---|
| `setup` | make or check the schema; safe beside other processes doing the same | yes |
| `write` | store units in order, each whole or refused; answer when durable | yes, by key |
| `read` | one checkpoint with its blobs and writes, or the head | – |
| `scan` | checkpoints newest first, in pages | – |
| `pull` | a thread's heads, and of them what somebody who held them once lacks now | – |
| `lineage` | what a DeltaChannel is rebuilt from | – |
| `threads` | threads by recency, in pages; by status and labels | – |
| `delete` | remove a thread and leave a tombstone | yes |
| `copy` | a thread under another id | no: `ThreadExistsError` |
| `prune` | remove named checkpoints and what only they need | yes |
| `close` | release everything; a later call opens anew | yes |

**Errors.** Drivers' errors become the `BackendError` family (`raise … from`). `BackendUnavailable` means "the same
call may be repeated": since writes are idempotent by key, the engine repeats it even when an answer was lost.

**Ordering.** Ids compare as plain strings; `checkpoint_id` order is the order of `scan`. What "latest" means is the
head pointer, moved in the transaction that stores a checkpoint, never the greatest id.

**Fork.** After `os.fork` a child may go on using the object: a backend notices that its process id changed and opens
connections of its own, without touching the parent's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

__all__ = [
    "SEALED",
    "SENDS_IN_PARENT_BELOW",
    "STORED",
    "Ancestor",
    "Backend",
    "BlobRow",
    "CheckpointRow",
    "Compacted",
    "Entry",
    "HeadMark",
    "HeadRow",
    "Labels",
    "MoveHead",
    "OnConflict",
    "Outcome",
    "Page",
    "Pulled",
    "PutCheckpoint",
    "PutWrites",
    "Scan",
    "Seen",
    "Snapshot",
    "Status",
    "ThreadCursor",
    "ThreadQuery",
    "ThreadRow",
    "Tombstone",
    "Unit",
    "WriteRow",
]

OnConflict = Literal["raise", "branch", "overwrite"]

SENDS_IN_PARENT_BELOW = 4
"""Checkpoints of a format below this keep their pending sends among their parent's writes."""

SEALED = "+aesgcm"
"""Ends the type of a value that is encrypted. Two such values have nothing in common, and neither can be compressed."""


class CheckpointRow(NamedTuple):
    """One checkpoint without its channel values."""

    checkpoint_id: str
    parent_id: str | None
    format: int
    """LangGraph's checkpoint format `v`. Below 4, pending sends live in the parent's writes."""
    body: bytes
    """The rest of the checkpoint, JSON in UTF-8 with ASCII escapes."""
    versions: Mapping[str, str]
    """Channel to version. A channel whose value was empty has a version and no blob."""
    metadata: bytes
    """JSON in UTF-8 with ASCII escapes."""
    run_id: str | None
    root_id: str | None
    """For a subgraph's checkpoint: the root graph's checkpoint it was made under."""
    device: str
    created_at: float
    """Seconds since the epoch, by the writing device's clock."""


class BlobRow(NamedTuple):
    """The value of one channel at one version. Immutable: the first one stored under its key stays."""

    channel: str
    version: str
    type: str
    data: bytes


class WriteRow(NamedTuple):
    """One pending write of one task. `idx` below 0 replaces, from 0 on the first one stays."""

    task_id: str
    idx: int
    channel: str
    task_path: str
    type: str
    data: bytes


class HeadRow(NamedTuple):
    """What "latest" means for one namespace of a thread."""

    namespace: str
    checkpoint_id: str
    device: str
    moved_at: float


class PutCheckpoint(NamedTuple):
    """Store a checkpoint and the blobs that are new with it, and move the head.

    Rules, in this order, within the transaction:

    1. The same id is there: store nothing, leave the head, answer `"stored"`. But answer `"branched"` if it is
       `fenced`, `on_conflict` is `"branch"` or `"beside"`, and the head is not and did not grow from it: a repeated
       call learns what became of the first.
    2. The thread has a tombstone, and `row.parent_id` or `row.root_id` is neither stored nor above the tombstone's
       `deleted_through`, or the checkpoint is one of its `first_ids`: answer `"deleted"`.
    3. `fenced`, a head exists that is not `over` (without one: `row.parent_id`), and `on_conflict` is `"raise"`: answer
       `"conflict"`.
    4. `row.parent_id` is given and not stored (it was pruned), and the unit is not `whole`: answer `"orphaned"`, since
       values it carried on may be gone too.
    5. As in 3, but `on_conflict` is `"branch"`, or it is `"beside"`: store it, leave the head, answer `"branched"`.
    6. Otherwise store it, move the head, answer `"stored"`.

    A refused unit (any other answer than `"stored"` and `"branched"`) also removes pending writes that came before
    their checkpoint. For backends that can call Python within their transaction `judge_again` decides 1, `judge` the
    others.
    """

    thread_id: str
    namespace: str
    row: CheckpointRow
    blobs: tuple[BlobRow, ...]
    fenced: bool
    on_conflict: OnConflict | Literal["beside"]
    over: str | None = None
    """The head that its writer found, where that was not the parent (a fork). It stands in for the parent in rule 3
    only."""
    whole: bool = False
    """`blobs` are all values of the checkpoint, not only the new ones: it stands without its parent, whose id it keeps.
    A walk up the parents ends at it."""


class PutWrites(NamedTuple):
    """Store pending writes of a checkpoint, which may be stored only later.

    Answers `"deleted"` when the thread has a tombstone, the checkpoint is not stored, and its id is not above the
    tombstone's `deleted_through`; else `"stored"`. If `fenced`, it answers `"conflict"` and stores nothing when the
    checkpoint is stored and not the head, or a row differs from the one stored under its key with `idx` from 0 on.
    """

    thread_id: str
    namespace: str
    checkpoint_id: str
    rows: tuple[WriteRow, ...]
    fenced: bool = False


class MoveHead(NamedTuple):
    """Make a stored checkpoint the head of its namespace: what promoting a branch does.

    It is the head already: `"stored"`, and nothing changes. It is not stored: `"orphaned"`, also in a deleted thread. A
    head exists that is not `over`: `"conflict"`. Otherwise the head moves, with `device` and `at` for who moved it and
    when. Only the head is touched.

    Repeated after the head has moved on from there, it is a `"conflict"`: also where a later unit of the same batch
    moved it, and the batch comes again because its answer was lost.
    """

    thread_id: str
    namespace: str
    checkpoint_id: str
    over: str
    """The head that this was decided upon."""
    device: str
    at: float


Unit = PutCheckpoint | PutWrites | MoveHead


class Outcome(NamedTuple):
    """What became of one unit."""

    status: Literal["stored", "branched", "conflict", "deleted", "orphaned"]
    head: HeadRow | None = None
    """For `"branched"`, `"conflict"` and `"orphaned"`: the head that is there."""
    deleted_at: float = 0.0
    """For `"deleted"`: when the thread was deleted."""


class Tombstone(NamedTuple):
    """What a deleted thread leaves behind. It stays when the thread begins anew."""

    deleted_at: float
    deleted_through: str
    """The greatest checkpoint id that was deleted."""
    first_ids: tuple[str, ...] = ()
    """Deleted checkpoints of the root graph that had no parent. One that comes again is a late repeat, no fresh start.
    `pull` leaves them out."""


STORED = Outcome("stored")


class Snapshot(NamedTuple):
    """One checkpoint as it is stored. All empty when there is none."""

    checkpoint: CheckpointRow | None = None
    blobs: Sequence[BlobRow] = ()
    writes: Sequence[WriteRow] = ()
    """Sorted by `(task_path, task_id, idx)`, compared as UTF-8 bytes."""
    sends: Sequence[WriteRow] = ()
    """The parent's writes, sorted alike, when `format` is below 4 and there is a parent."""
    head: str | None = None
    """Id of the namespace's head, whatever checkpoint was asked for."""
    deleted_through: str | None = None
    """The tombstone's, if the thread was ever deleted."""


class Entry(NamedTuple):
    """One checkpoint of a `scan`."""

    thread_id: str
    namespace: str
    snapshot: Snapshot


class Scan(NamedTuple):
    """Which checkpoints to list; `None` means any."""

    thread_id: str | None = None
    namespace: str | None = None
    checkpoint_id: str | None = None
    before: str | None = None
    """Only ids below this one."""
    run_ids: tuple[str, ...] | None = None
    after: tuple[str, str, str] | None = None
    """Go on behind this `(checkpoint_id, thread_id, namespace)`: a page's `next`."""
    limit: int = 100
    values: bool = True
    """Whether blobs, writes and sends are wanted too."""


class Page(NamedTuple):
    """Entries by descending `(checkpoint_id, thread_id, namespace)`."""

    entries: Sequence[Entry]
    next: tuple[str, str, str] | None
    """`Scan.after` of the next page, `None` on the last. Of few that fit among many a page may be short, or empty, and
    not the last."""


class Ancestor(NamedTuple):
    """One step of a checkpoint's parent chain, as far as the asked channels need it."""

    checkpoint_id: str
    blobs: Sequence[BlobRow]
    """Seeds found here: for each asked channel at most one on the whole chain, the nearest."""
    writes: Sequence[WriteRow]
    """Writes to channels that no nearer ancestor seeded, sorted like `Snapshot.writes`."""


class HeadMark(NamedTuple):
    """A head as somebody saw it."""

    head: HeadRow
    writes: str | None
    """Stands for its pending writes: equal marks from one database mean equal writes. Empty: it has none. `None`: what
    somebody holds of them is not known."""


class Pulled(NamedTuple):
    """A thread's live heads: of the namespaces that a run which goes on from the thread's newest state may ask for.

    These are the root graph's, those of subgraphs with a checkpointer of their own (no `:` in the name), and those
    whose head was made under the root's head (`root_id`).
    """

    heads: Sequence[HeadMark] = ()
    """All of them, as they are now, in any order."""
    entries: Sequence[Entry] = ()
    """The heads that were not held, or with other writes, in any order; less the blobs of those versions that the held
    checkpoint of the namespace (of several the first that is stored) names, too."""
    tombstone: Tombstone | None = None
    """Also when the thread began anew. The entries leave it out."""


ThreadCursor = tuple[float, str]

Status = Literal["idle", "interrupted", "failed"]

Labels = Mapping[str, "str | int | bool"]


class ThreadQuery(NamedTuple):
    """Which threads to list; `None` means any."""

    limit: int = 100
    after: ThreadCursor | None = None
    """Go on behind this `(updated_at, thread_id)`: the last row's of the page before."""
    thread_id: str | None = None
    status: Status | None = None
    labels: Labels | None = None
    """Only threads that have each of these among their `labels`."""


class ThreadRow(NamedTuple):
    """One thread in a listing. Deleted threads are not listed."""

    thread_id: str
    created_at: float
    updated_at: float
    """When one of its heads moved last."""
    heads: Sequence[HeadRow]
    """By namespace, the root graph's (`''`) first where there is one."""
    status: Status
    """By the pending writes of the root head, see `status_of`."""
    labels: Labels
    """Of the root head's metadata, see `labels_of`."""


class Seen(NamedTuple):
    """A thread as somebody saw it, less the pending writes."""

    heads: Mapping[str, str]
    """By namespace the checkpoint that it goes on from, of those that have one."""
    checkpoints: int
    """How many there are in all namespaces."""


class Compacted(NamedTuple):
    """What `compact` made of the place where rows live."""

    before: int
    """Bytes of the file; of a server: of the values."""
    after: int
    complete: bool | None
    """False if others were reading all the while: the file shrinks, and forgets what was deleted, when they end. `None`
    of a server, which keeps the room for what comes, and what was deleted until then."""


class Backend(Protocol):
    """A place where rows live. See the module's page for the contract of every verb.

    One that is far away and takes writes side by side may have an attribute `parallel_writes: int`: how many the engine
    may have in flight at once (by default 1). One that knows what its database needs may have a method `diagnose()`,
    whose `(name, "ok" | "warn" | "fail", detail)` `charm-checkpoint doctor` prints.

    One that can tell what checkpoints cost may have `sizes(thread_id) -> Mapping[tuple[str, str], int] | None`: by
    `(namespace, checkpoint_id)` the bytes stored for it, each counted once, with the greatest id that is read from it.

    One whose name depends on what it has to ask for, such as whose token it is, may have `settle_name(names)`: what a
    replica calls before the name decides which of its files is taken. `names()` tells of which remotes there are
    replicas here, so that one of them can be meant where there is no answer; else it raises `BackendUnavailable`.

    One whose tables or file the first use makes may have `is_made() -> bool`: whether they are there, or anything that
    it would adopt, without making them. Else a look at an empty database makes them.

    One that can compare and delete in one transaction may have `delete_if(thread_id, seen: Seen, *, at) -> bool`: as
    `delete`, but of a thread only that is as it was `seen`; else it removes nothing and answers `False`. Without it, a
    step that an agent takes in the very moment before an idle thread is deleted is deleted with it.

    One that can store old values in less room may have `compact(*, pack: bool = True) -> Compacted`: do so with `pack`,
    and if it lives in a file give back the room of what was deleted, so that no byte of it is left. Safe beside
    writers, who may have to wait.
    """

    @property
    def name(self) -> str:
        """Where the rows are, for people: no secrets in it."""

    def setup(self) -> None:
        """Make the schema or check it.

        Raises:
            BackendCorrupt: Not ours, damaged, or written by a newer release.
            BackendReadOnly: It is not there and cannot be made.
        """

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        """Store `units` in order in one transaction and answer when it is durable.

        A refused unit is left out whole and does not disturb the others. On an exception nothing was stored, except
        for `BackendUnavailable`, after which it may or may not have been.

        Returns:
            One outcome per unit, in order.
        """

    def read(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Snapshot:
        """Read one checkpoint, or the head for `None`, from one consistent view."""

    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        """Read a thread's live heads, and whole those that are not `held` as they are, from one consistent view.

        Little is read and answered when nothing changed: this is what a replica asks before every run. Of a namespace
        several checkpoints may be held, the newest first: who wrote some a moment ago does not know which is the head
        by now.
        """

    def scan(self, query: Scan) -> Page:
        """List checkpoints in one page. Branches are listed like everything else."""

    def lineage(
        self, thread_id: str, namespace: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> Sequence[Ancestor]:
        """Walk up from the parent of a checkpoint (the head for `None`), nearest first.

        Each channel's walk ends at the nearest ancestor with a blob for it, whose own writes still count. The answer
        ends where every channel has ended, or at the root. Ancestors with nothing to tell may be left out.
        """

    def threads(self, query: ThreadQuery) -> Sequence[ThreadRow]:
        """List threads in one page, by descending `(updated_at, thread_id)`."""

    def delete(self, thread_id: str, *, at: float) -> bool:
        """Remove a thread with all namespaces and leave a tombstone. False if there was nothing."""

    def copy(self, source: str, target: str, *, at: float) -> None:
        """Copy all rows of a thread, heads and branches included.

        Raises:
            ThreadNotFoundError: `source` has no checkpoints.
            ThreadExistsError: `target` has some.
        """

    def prune(self, thread_id: str, drop: Sequence[tuple[str, str]]) -> int:
        """Remove the named `(namespace, checkpoint_id)`, their writes, and blobs nothing else refers to.

        A head among them moves to its nearest remaining ancestor, else to the greatest remaining id; a namespace
        left empty loses its head. No tombstone. Returns the number of checkpoints removed.
        """

    def close(self) -> None:
        """Release connections and threads, put files in order. Called again after more calls, and at exit."""
