"""Copies threads from any source into a backend: resumable, verified, never over what is another's.

One loop does it all: read the source and what the target has of it side by side, send what is lacking, until nothing
is. So a copy that was interrupted goes on, one that is repeated does nothing, and the last round is the proof that
everything arrived: values and writes by their bytes, a checkpoint's own fields and metadata as the JSON that they are.
Only then the heads are set, all in one transaction: till there a thread is not listed, and nobody goes on from the half
of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from charm_checkpoint.backend import (
    BlobRow,
    CheckpointRow,
    Entry,
    HeadRow,
    MoveHead,
    Outcome,
    PutCheckpoint,
    PutWrites,
    Snapshot,
    ThreadQuery,
    Unit,
)
from charm_checkpoint.codec import valid_id
from charm_checkpoint.engine import Engine
from charm_checkpoint.errors import (
    BackendError,
    ConfigError,
    DeletedInTargetError,
    InvalidIdError,
    ThreadExistsError,
    ThreadNotFoundError,
)
from charm_checkpoint.moving.source import (
    Key,
    Listing,
    Place,
    Source,
    Thread,
    engine_of,
    key_of,
    size_of,
    source_of,
)

__all__ = ["ROUNDS", "CopiedThread", "Copier", "CopyReport", "OnExisting", "copy_threads"]

# One request to the target, and so one transaction.
_BATCH_UNITS, _BATCH_BYTES = 200, 2 * 1024 * 1024
# What is read of both sides at a time.
_CHUNK_ENTRIES, _CHUNK_BYTES = 100, 8 * 1024 * 1024
# A thread that agents work on may have more each time that it is looked at.
ROUNDS = 8

OnExisting = Literal["fail", "skip"]


class CopiedThread(NamedTuple):
    """What became of one thread."""

    thread_id: str
    outcome: Literal["copied", "updated", "same", "differs", "deleted", "invalid"]
    """`"copied"`; `"updated"`: the target had an earlier state of it; `"same"`: it had all of it. Left as it was:
    `"differs"`, the target has another thread of that id; `"deleted"`, there the thread was deleted; `"invalid"`, its
    id is none that a store of this project takes."""
    checkpoints: int = 0
    """How many there are in the source."""
    sent: int = 0
    """How many checkpoints were sent; in a dry run, would be."""
    bytes: int = 0
    """What they hold."""
    detail: str = ""
    """Why it was left as it was, for people."""
    deleted_at: float = 0.0
    """For `"deleted"`: when, seconds since the epoch."""


class CopyReport(NamedTuple):
    """What `copy_threads` did."""

    source: str
    target: str
    threads: tuple[CopiedThread, ...]
    dry_run: bool = False

    @property
    def left(self) -> tuple[CopiedThread, ...]:
        """The threads of which the target has not what the source has."""
        return tuple(t for t in self.threads if t.outcome in ("differs", "deleted", "invalid"))


def copy_threads(
    source: Place,
    target: Place,
    threads: Iterable[str] | None = None,
    *,
    on_existing: OnExisting = "fail",
    dry_run: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> CopyReport:
    """Copy threads with their whole history, their values byte for byte, and compare both sides afterwards.

    Interrupted at any moment and called again, it goes on; called once more, it finds everything there. A thread of
    which the target has an earlier state is brought up to date, also where the source went back in it and on from
    there; one that it has in another state, or that somebody moved to another branch there, is left as it is. Deletions
    are not copied. Agents may work on the source meanwhile; copying once more brings what they added.

    Args:
        source: A store, any LangGraph saver, a backend, or a `Source`. Nothing in it is altered.
        target: A store, one of this project's savers, or a backend.
        threads: Their ids; `None` for all.
        on_existing: What to do about a thread that the target has in another state, or cannot have under its id:
            `"fail"`, or `"skip"` it.
        dry_run: Only tell what would be done. A thread of whose id the target has deleted one is told as deleted; in
            truth it is copied if it is not that one, but another.
        progress: Called with how many threads are done, and how many there are.

    Returns:
        What became of every thread.

    Raises:
        ThreadNotFoundError: The source has no such thread; nothing was copied.
        ThreadExistsError: The target has another thread of that id. It was left as it is; those before it are copied.
        DeletedInTargetError: The thread was deleted in the target, likewise.
        InvalidIdError: The source has a thread whose id no store of this project takes, likewise.
        BackendError: One of the two failed, or agents added to a thread faster than it could be compared.
    """
    if on_existing not in ("fail", "skip"):
        raise ConfigError(f"on_existing={on_existing!r} is not one of fail, skip")
    origin = source_of(source)
    copier = Copier(origin, engine_of(target), dry_run=dry_run)
    names = list(origin.threads()) if threads is None else _named(origin, threads)
    done = []
    for count, name in enumerate(names):
        if progress is not None:
            progress(count, len(names))
        try:
            copied = copier.copy(name)
        except ThreadNotFoundError:
            if threads is not None:
                raise
            continue  # deleted since it was listed
        if on_existing == "fail":
            copier.insist(copied)
        done.append(copied)
    if progress is not None:
        progress(len(names), len(names))
    return CopyReport(origin.name, copier.name, tuple(done), dry_run)


def _named(source: Source, threads: Iterable[str]) -> list[str]:
    names = list(dict.fromkeys(valid_id(name, "thread_id") for name in threads))
    for name in names:
        if source.thread(name) is None:
            raise ThreadNotFoundError(f"there is no thread {name!r} in {source.name}")
    return names


class _Round(NamedTuple):
    """What one look at both sides found."""

    checkpoints: int = 0
    lacking: int = 0
    bytes: int = 0
    difference: str | None = None
    deleted_at: float | None = None
    broken_off: bool = False
    """A head of the source was not among its checkpoints: some of them went while they were read."""
    first: CheckpointRow | None = None
    """The root graph's first checkpoint in the source."""


class Copier:
    """Copies threads of one source to one target.

    Args:
        source: Where from.
        target: Runs the backend where they go.
        dry_run: Write nothing.
    """

    def __init__(self, source: Source, target: Engine, *, dry_run: bool = False) -> None:
        self._source = source
        self._target = target
        self._dry_run = dry_run

    @property
    def name(self) -> str:
        """Where the threads go."""
        return self._target.backend.name

    def insist(self, copied: CopiedThread) -> None:
        """Raise what a thread that was left as it was means.

        Raises:
            ThreadExistsError: The target has another one.
            DeletedInTargetError: It was deleted there.
            InvalidIdError: Nobody could ask for it there.
        """
        name = copied.thread_id
        if copied.outcome == "invalid":
            raise InvalidIdError(
                f"a thread of {self._source.name} cannot be copied: {copied.detail}"
            )
        if copied.outcome == "differs":
            raise ThreadExistsError(
                f"thread {name!r} is in {self.name} in another state ({copied.detail}); it was left as it is. To "
                "have both, fork it in the source under another id and copy that one; or copy without it"
            )
        if copied.outcome == "deleted":
            raise DeletedInTargetError(name, copied.deleted_at)

    def copy(self, thread_id: str) -> CopiedThread:
        """Copy one thread.

        Raises:
            ThreadNotFoundError: The source has no such thread, or it was deleted meanwhile; then nothing of it stays in
                the target, unless that had an earlier state of it.
            BackendError: One side failed, or the source changed all the while.
        """
        try:
            valid_id(thread_id, "its id")
        except InvalidIdError as error:
            return CopiedThread(thread_id, "invalid", detail=str(error))
        sent = size = 0
        was_there = is_earlier = False
        for count in range(ROUNDS):
            # The heads first: what they name is among the checkpoints that are read after them.
            thread = self._source.thread(thread_id)
            if thread is None or not thread.heads:
                if count and not self._dry_run:
                    self._take_back(thread_id)
                raise ThreadNotFoundError(
                    f"there is no thread {thread_id!r} in {self._source.name}"
                )
            there = Listing(self._target, thread_id)
            # What has no head yet is the beginning of a copy. What has one is changed only once it is known to be an
            # earlier state of this thread.
            was_there = was_there or (count == 0 and bool(there.heads))
            sends = not self._dry_run and (is_earlier or not was_there)
            found = self._look(thread, there, sends=sends)
            if sends:
                sent, size = sent + found.lacking, size + found.bytes
            if found.deleted_at is not None:
                detail = "it was deleted there"
                return CopiedThread(
                    thread_id, "deleted", found.checkpoints, 0, 0, detail, found.deleted_at
                )
            if found.difference is not None:
                return CopiedThread(
                    thread_id, "differs", found.checkpoints, detail=found.difference
                )
            if found.broken_off:
                continue
            is_earlier = True
            if self._dry_run and (deleted_at := self._deleted(thread_id, there, found.first)):
                detail = "a thread of this id was deleted there"
                return CopiedThread(
                    thread_id, "deleted", found.checkpoints, 0, 0, detail, deleted_at
                )
            if self._dry_run:
                outcome: Any = "updated" if was_there else "copied"
                if was_there and not found.lacking and _stands(thread, there):
                    return CopiedThread(thread_id, "same", found.checkpoints)
                return CopiedThread(
                    thread_id, outcome, found.checkpoints, found.lacking, found.bytes
                )
            if found.lacking:
                continue
            if was_there and not sent and _stands(thread, there):
                return CopiedThread(thread_id, "same", found.checkpoints)
            if (moved := self._set_heads(thread, there)) is not None:
                return CopiedThread(thread_id, "differs", found.checkpoints, sent, size, moved)
            outcome = "updated" if was_there else "copied"
            return CopiedThread(thread_id, outcome, found.checkpoints, sent, size)
        raise BackendError(
            f"thread {thread_id!r} changed each of the {ROUNDS} times that it was compared; let the agents that work "
            "on it pause, and copy again"
        )

    def _take_back(self, thread_id: str) -> None:
        """Remove the beginning of a copy of what is gone in the source; it may come again, so without a tombstone."""
        there = Listing(self._target, thread_id)
        if there.heads:
            return
        places = [(namespace, checkpoint_id) for checkpoint_id, namespace in there.stubs]
        for start in range(0, len(places), _BATCH_UNITS):
            drop = places[start : start + _BATCH_UNITS]
            self._target.call(lambda backend, drop=drop: backend.prune(thread_id, drop))  # type: ignore[misc]

    def _deleted(self, thread_id: str, there: Listing, first: CheckpointRow | None) -> float | None:
        """When the target deleted a thread of this id that, as far as can be told without writing, is the same."""
        if there.stubs or first is None:
            return None
        tombstone = self._target.call(lambda backend: backend.pull(thread_id, ())).tombstone
        if tombstone is None:
            return None
        late = (first.parent_id or first.checkpoint_id) <= tombstone.deleted_through
        return tombstone.deleted_at if late else None

    # -- one round -------------------------------------------------------------------------------------------------

    def _look(self, thread: Thread, there: Listing, *, sends: bool) -> _Round:
        """Compare every checkpoint, and send what is lacking if it is not known yet that nothing differs."""
        thread_id, half = thread.thread_id, not there.heads
        extra = set(there.stubs)
        known = set(there.stubs)
        values: set[tuple[str, str, str]] = set()
        sent_last: dict[str, Mapping[str, str]] = {}
        steps: dict[Key, CheckpointRow] = {}
        first: CheckpointRow | None = None
        batch = _Batch(self._target)
        checkpoints = lacking = size = 0
        for chunk in _chunks(self._source.entries(thread_id)):
            stored = there.read(key for key in map(key_of, chunk) if key in there.stubs)
            for entry in chunk:
                key = key_of(entry)
                row = entry.snapshot.checkpoint
                assert row is not None
                checkpoints += 1
                steps[key] = row._replace(body=b"", versions={}, metadata=b"")
                if first is None and entry.namespace == "":
                    first = row
                extra.discard(key)
                values.update((entry.namespace, *_name(blob)) for blob in entry.snapshot.blobs)
                units: list[Unit] = []
                if key not in stored:
                    units = _units(thread_id, entry, known, sent_last.get(entry.namespace, {}))
                else:
                    difference, missing = _compare(entry, stored[key].snapshot, values, half)
                    if difference is not None:
                        batch.flush()
                        return _Round(checkpoints, difference=difference)
                    if missing:
                        units = [PutWrites(thread_id, entry.namespace, key[0], missing)]
                known.add(key)
                sent_last[entry.namespace] = dict(map(_name, entry.snapshot.blobs))
                if units:
                    lacking, size = lacking + 1, size + size_of(entry)
                if sends and units:
                    batch.add(units, size_of(entry))
                if batch.refused is not None:
                    return _refusal(batch.refused, checkpoints)
        batch.flush()
        if batch.refused is not None:
            return _refusal(batch.refused, checkpoints)
        if any((head.checkpoint_id, head.namespace) not in steps for head in thread.heads):
            return _Round(checkpoints, lacking, size, broken_off=True)
        if extra:
            some = min(extra)[0]
            difference = f"its checkpoint {some} is not in {self._source.name}"
            return _Round(checkpoints, difference=difference)
        for head in thread.heads:
            other = there.heads.get(head.namespace)
            if other is not None and not _may_move(head, other, steps, sends or lacking > 0):
                return _Round(checkpoints, difference=_apart(other, head))
        return _Round(checkpoints, lacking, size, first=first)

    def _set_heads(self, thread: Thread, there: Listing) -> str | None:
        """Make the thread seen, as far as it goes; tells what stands in the way."""
        name = thread.thread_id
        moves: list[Unit] = []
        heads = sorted(thread.heads, key=lambda head: head.namespace)
        first = min((id for id, namespace in there.stubs if namespace == ""), default="")
        began = not there.heads and heads[0].namespace == "" and first != heads[0].checkpoint_id
        if began:
            # A database that dates a thread by its first head shall date it by its beginning.
            moves.append(MoveHead(name, "", first, "", heads[0].device, thread.created_at))
        # The root graph's last: what it leads to is there before, wherever they do not arrive together.
        for head in reversed(heads):
            found = there.heads.get(head.namespace)
            over = found.checkpoint_id if found else first if began and not head.namespace else ""
            if over != head.checkpoint_id:
                place = (name, head.namespace, head.checkpoint_id)
                moves.append(MoveHead(*place, over, head.device, head.moved_at))
        if moves:
            self._target.call(lambda backend: backend.write(moves))
        # Not judged by the answers: those to a repeated request differ.
        query = ThreadQuery(1, thread_id=name)
        rows = self._target.call(lambda backend: backend.threads(query))
        now = {head.namespace: head for row in rows for head in row.heads}
        for head in thread.heads:
            found = now.get(head.namespace)
            if found is None or found.checkpoint_id != head.checkpoint_id:
                return "somebody moved it on there meanwhile"
        return None


def _stands(thread: Thread, there: Listing) -> bool:
    """Whether the target goes on everywhere from where the source does."""
    return all(
        (other := there.heads.get(head.namespace)) is not None
        and other.checkpoint_id == head.checkpoint_id
        for head in thread.heads
    )


def _may_move(
    head: HeadRow, other: HeadRow, steps: Mapping[Key, CheckpointRow], lacks: bool
) -> bool:
    """Whether the target's head is an earlier state of the source's, and no choice that somebody made there.

    Args:
        head: The source's.
        other: The target's.
        steps: The source's checkpoints; the target has no others.
        lacks: Whether the target lacks some of them, or did.
    """
    made = steps.get((other.checkpoint_id, other.namespace))
    if made is None:
        return False  # it was pruned or deleted there meanwhile
    if (other.device, other.moved_at) == (made.device, made.created_at):
        return True  # it is where whoever made the checkpoint left it
    if not _grew_from(head, other.checkpoint_id, steps):
        return False
    if lacks or other.checkpoint_id == head.checkpoint_id:
        return True
    # An update broke off before it set the heads, or somebody went back there: that is later than what they left.
    newest = steps[head.checkpoint_id, head.namespace]
    return made.created_at <= other.moved_at <= max(newest.created_at, head.moved_at)


def _grew_from(head: HeadRow, checkpoint_id: str, steps: Mapping[Key, CheckpointRow]) -> bool:
    """Whether a head is a checkpoint, or has it among its ancestors."""
    step: str | None = head.checkpoint_id
    seen: set[str] = set()
    while step is not None and step != checkpoint_id and step not in seen:
        seen.add(step)  # a forged cycle of parents has to end
        row = steps.get((step, head.namespace))
        step = row.parent_id if row else None
    return step == checkpoint_id


def _apart(there: HeadRow, here: HeadRow) -> str:
    where = f" in its subgraph {here.namespace!r}" if here.namespace else ""
    return f"it goes on from {there.checkpoint_id}{where}, here from {here.checkpoint_id}"


class _Batch:
    """Collects units, and writes them in transactions of some size."""

    def __init__(self, target: Engine) -> None:
        self._target = target
        self._units: list[Unit] = []
        self._size = 0
        self.refused: Outcome | None = None

    def add(self, units: Sequence[Unit], size: int) -> None:
        """Add what belongs together; it goes in one transaction."""
        if self._size + size > _BATCH_BYTES or len(self._units) >= _BATCH_UNITS:
            self.flush()
        self._units += units
        self._size += size

    def flush(self) -> None:
        """Write what was collected."""
        units, self._units, self._size = self._units, [], 0
        if units and self.refused is None:
            outcomes = self._target.call(lambda backend: backend.write(units))
            refused = (o for o in outcomes if o.status not in ("stored", "branched"))
            self.refused = next(refused, None)


def _refusal(refused: Outcome, checkpoints: int) -> _Round:
    if refused.status == "deleted":
        return _Round(checkpoints, deleted_at=refused.deleted_at)
    return _Round(checkpoints, difference="somebody changed it there meanwhile")


def _units(
    thread_id: str, entry: Entry, known: set[Key], sent_last: Mapping[str, str]
) -> list[Unit]:
    """What stores a checkpoint beside the heads, with its writes, less the values that came with the one before."""
    namespace, snapshot = entry.namespace, entry.snapshot
    row = snapshot.checkpoint
    assert row is not None
    whole = row.parent_id is not None and (row.parent_id, namespace) not in known
    blobs = tuple(b for b in snapshot.blobs if whole or sent_last.get(b.channel) != b.version)
    put = PutCheckpoint(
        thread_id, namespace, row, blobs, fenced=True, on_conflict="beside", whole=whole
    )
    if not snapshot.writes:
        return [put]
    return [put, PutWrites(thread_id, namespace, row.checkpoint_id, tuple(snapshot.writes))]


def _compare(
    entry: Entry, stored: Snapshot, values: set[tuple[str, str, str]], half: bool
) -> tuple[str | None, tuple[Any, ...]]:
    """Tell how a stored checkpoint differs, and which writes it lacks.

    Args:
        entry: As it is in the source.
        stored: As it is in the target.
        values: What the source was seen to have, by namespace, channel and version: some savers name a version where
            they no longer keep its value.
        half: Nobody goes on from what the target has; writes that replace may.
    """
    row = entry.snapshot.checkpoint
    assert row is not None
    where = f"checkpoint {row.checkpoint_id}"
    other_row = stored.checkpoint
    if other_row is None or (other_row != row and _told(other_row) != _told(row)):
        return f"{where} has other fields", ()
    there = {_name(blob): blob for blob in stored.blobs}
    for blob in entry.snapshot.blobs:
        if (other := there.pop(_name(blob), None)) != blob:
            what = "lacks" if other is None else "has another value of"
            return f"{where} {what} channel {blob.channel!r}", ()
    if more := next((b for b in there if (entry.namespace, *b) not in values), None):
        return f"{where} has a value of channel {more[0]!r}", ()
    writes = {(w.task_id, w.idx): w for w in stored.writes}
    missing = []
    for write in entry.snapshot.writes:
        held = writes.pop((write.task_id, write.idx), None)
        if held == write:
            continue
        if held is not None and not (half and write.idx < 0):
            return f"{where} has other writes of task {write.task_id}", ()
        missing.append(write)
    if writes:
        return f"{where} has more writes", ()
    return None, tuple(missing)


def _told(row: CheckpointRow) -> CheckpointRow:
    """A row with its JSON in one form: databases that keep it as such give it back with its keys in another order."""
    return row._replace(body=_sorted(row.body), metadata=_sorted(row.metadata))


def _sorted(document: bytes) -> bytes:
    return json.dumps(json.loads(document), sort_keys=True).encode()


def _name(blob: BlobRow) -> tuple[str, str]:
    return blob.channel, blob.version


def _chunks(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    chunk: list[Entry] = []
    size = 0
    for entry in entries:
        chunk.append(entry)
        size += size_of(entry)
        if size > _CHUNK_BYTES or len(chunk) >= _CHUNK_ENTRIES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
