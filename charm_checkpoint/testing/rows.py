"""Short ways to write rows, and to compare them."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from charm_checkpoint.backend import (
    Backend,
    BlobRow,
    CheckpointRow,
    MoveHead,
    OnConflict,
    Outcome,
    PutCheckpoint,
    PutWrites,
    Scan,
    Snapshot,
    Unit,
    WriteRow,
)

THREAD = "thread"
AT = 1_700_000_000.125
"""When rows are made unless a test says otherwise, seconds since the epoch."""


def blob(channel: str, version: str = "1", data: bytes = b"value", type: str = "bytes") -> BlobRow:
    return BlobRow(channel, version, type, data)


def write(
    task: str = "task",
    idx: int = 0,
    channel: str = "channel",
    *,
    path: str = "",
    data: bytes = b"written",
    type: str = "bytes",
) -> WriteRow:
    return WriteRow(task, idx, channel, path, type, data)


def put(
    checkpoint_id: str,
    parent: str | None = None,
    *blobs: BlobRow,
    thread: str = THREAD,
    namespace: str = "",
    versions: dict[str, str] | None = None,
    fenced: bool = False,
    on_conflict: OnConflict | Literal["beside"] = "raise",
    format: int = 4,
    body: bytes = b'{"ts":"2024-01-01T00:00:00+00:00"}',
    metadata: bytes = b'{"step":1}',
    run: str | None = None,
    root: str | None = None,
    device: str = "laptop",
    at: float = AT,
    over: str | None = None,
    whole: bool = False,
) -> PutCheckpoint:
    """A checkpoint whose versions are its blobs' and `versions`."""
    row = CheckpointRow(
        checkpoint_id,
        parent,
        format,
        body,
        {**{b.channel: b.version for b in blobs}, **(versions or {})},
        metadata,
        run,
        root,
        device,
        at,
    )
    return PutCheckpoint(thread, namespace, row, blobs, fenced, on_conflict, over, whole)


def pending(
    checkpoint_id: str, *rows: WriteRow, thread: str = THREAD, namespace: str = ""
) -> PutWrites:
    return PutWrites(thread, namespace, checkpoint_id, rows or (write(),))


def move(
    checkpoint_id: str,
    over: str,
    *,
    thread: str = THREAD,
    namespace: str = "",
    device: str = "phone",
    at: float = AT + 1,
) -> MoveHead:
    return MoveHead(thread, namespace, checkpoint_id, over, device, at)


def store(backend: Backend, *units: Unit) -> None:
    """Write units of which none may be refused."""
    outcomes = statuses(backend.write(units))
    assert len(outcomes) == len(units)
    assert set(outcomes) <= {"stored", "branched"}


def chain(backend: Backend, *ids: str, thread: str = THREAD, namespace: str = "") -> None:
    """Store checkpoints, each grown from the one before, the last one the head."""
    parent: str | None = None
    for checkpoint_id in ids:
        store(backend, put(checkpoint_id, parent, thread=thread, namespace=namespace))
        parent = checkpoint_id


def statuses(outcomes: Sequence[Outcome]) -> list[str]:
    return [outcome.status for outcome in outcomes]


def plain(row: CheckpointRow | None) -> dict[str, Any]:
    """A checkpoint's fields, its JSON read: that is to survive, not the spelling."""
    assert row is not None
    fields = row._asdict()
    return {
        **fields,
        "body": json.loads(row.body),
        "metadata": json.loads(row.metadata),
        "versions": dict(row.versions),
    }


def head(backend: Backend, thread: str = THREAD, namespace: str = "") -> str | None:
    """The id of the head, as `read` tells it in three ways."""
    newest = backend.read(thread, namespace, None)
    found = newest.checkpoint.checkpoint_id if newest.checkpoint else None
    assert newest.head == found
    assert backend.read(thread, namespace, "no such checkpoint").head == found
    return found


def read(
    backend: Backend, checkpoint_id: str | None, thread: str = THREAD, namespace: str = ""
) -> Snapshot:
    return backend.read(thread, namespace, checkpoint_id)


def blobs_of(snapshot: Snapshot) -> dict[str, tuple[str, str, bytes]]:
    """Channel to version, type and data."""
    found = {b.channel: (b.version, b.type, bytes(b.data)) for b in snapshot.blobs}
    assert len(found) == len(snapshot.blobs), "a channel has more than one blob"
    return found


def writes_of(rows: Iterable[WriteRow]) -> list[WriteRow]:
    return [row._replace(data=bytes(row.data)) for row in rows]


def ids(backend: Backend, query: Scan | None = None) -> list[str]:
    """The ids that a scan lists, over all its pages."""
    return [checkpoint_id for checkpoint_id, _, _ in keys(backend, query)]


def keys(backend: Backend, query: Scan | None = None) -> list[tuple[str, str, str]]:
    """The `(checkpoint_id, thread_id, namespace)` that a scan lists, over all its pages."""
    query = query or Scan()
    found: list[tuple[str, str, str]] = []
    while True:
        page = backend.scan(query)
        assert len(page.entries) <= query.limit
        for entry in page.entries:
            row = entry.snapshot.checkpoint
            assert row is not None
            found.append((row.checkpoint_id, entry.thread_id, entry.namespace))
        if page.next is None:
            return found
        if page.entries:
            assert tuple(page.next) <= found[-1], "a page goes on behind its last entry"
        query = query._replace(after=page.next)


def contents(backend: Backend, thread: str) -> dict[tuple[str, str], Any]:
    """Everything stored under a thread, by namespace and checkpoint, for comparing."""
    found = {}
    for checkpoint_id, _, namespace in keys(backend, Scan(thread_id=thread)):
        snapshot = read(backend, checkpoint_id, thread, namespace)
        found[namespace, checkpoint_id] = (
            plain(snapshot.checkpoint),
            blobs_of(snapshot),
            writes_of(snapshot.writes),
            writes_of(snapshot.sends),
            snapshot.head,
        )
    return found


def beside_a_writer(step: Callable[[int], None], look: Callable[[], Hashable]) -> None:
    """Call `step` with 0, then with 1, 2, … in another thread, and `look` meanwhile until it has seen 30 states."""
    enough = threading.Event()

    def write_on() -> None:
        for n in itertools.count(1):
            step(n)
            if enough.is_set():
                return

    step(0)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write_on)
        seen: set[Hashable] = set()
        try:
            while len(seen) < 30 and not writing.done():
                seen.add(look())
        finally:
            enough.set()
        writing.result()
