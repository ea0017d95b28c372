"""What this process knows of the newest checkpoint of each namespace.

LangGraph says everything anew at each step: all channels' versions, what each node has seen, and a message as the
input, as the write of a task and within the list it was added to. What the checkpoint before has is not sent again over
a long line: versions go as those that changed, and bytes as quotations.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, AnyStr, NamedTuple

from charm_checkpoint.backend import BlobRow, CheckpointRow, WriteRow
from charm_checkpoint.forks import ForkAware

__all__ = ["Change", "Quotation", "Source", "Step", "Steps", "quotation"]

# The device of checkpoints that others wrote, who may write them again.
_FOREIGN = "another saver"
_MAX_PLACES = 128
_MAX_CHECKPOINTS = 3
_MAX_VALUES = 8
# Of less, what it takes to tell about it is not worth it; more is rarely said again, but as a change to a base.
_MIN_BYTES = 200
_MAX_BYTES = 16 * 1024
_ANCHOR = 24

Source = tuple[str | int, ...]
"""A channel, or the task and index of a write."""


class Quotation(NamedTuple):
    """A piece of bytes, of which a range is somewhere else."""

    source: Source
    at: int
    """Where in the piece it begins."""
    start: int
    """Where in the source it begins."""
    length: int


class Change(NamedTuple):
    """A checkpoint as what differs from its parent."""

    version: str
    """That of all channels which changed."""
    alike: int
    """How many characters it begins with as the greatest of the parent's."""
    channels: list[str]
    seen: dict[str, list[str]]
    """Nodes that saw something new: which of the parent's versions."""
    rest: dict[str, Any]
    """The checkpoint's other fields."""
    metadata: dict[str, Any]
    """What is new or another."""


class Step:
    """A stored checkpoint."""

    def __init__(self, row: CheckpointRow) -> None:
        self.row = row

    def change(self, row: CheckpointRow) -> Change | None:
        """Tell a checkpoint that grew from this one as a change to it, if it can be."""
        before, rest = json.loads(self.row.body), json.loads(row.body)
        metadata_before, metadata = json.loads(self.row.metadata), json.loads(row.metadata)
        seen_before, seen = before.get("versions_seen"), rest.pop("versions_seen", None)
        if not (isinstance(seen, dict) and isinstance(seen_before, dict)):
            return None
        changed = [c for c, v in row.versions.items() if self.row.versions.get(c) != v]
        versions = {row.versions[channel] for channel in changed}
        new = _differing(seen_before, seen)
        if (
            len(versions) > 1
            or "channel_versions" in before
            or "channel_versions" in rest
            or not self.row.versions.keys() <= row.versions.keys()
            or not seen_before.keys() <= seen.keys()
            or not metadata_before.keys() <= metadata.keys()
            or not all(self._has(saw) for saw in new.values())
        ):
            return None
        nodes = {node: list(saw) for node, saw in new.items()}
        version = versions.pop() if versions else ""
        alike = _alike(version, max(self.row.versions.values(), default=""))
        return Change(version, alike, changed, nodes, rest, _differing(metadata_before, metadata))

    def _has(self, saw: Any) -> bool:
        return isinstance(saw, dict) and all(
            self.row.versions.get(channel) == version for channel, version in saw.items()
        )


class Steps(ForkAware):
    """Bounded, thread-safe. Whether the server still has it as it is known here is found out by using it."""

    def __init__(self) -> None:
        super().__init__()
        self._places: OrderedDict[tuple[str, str], _Place] = OrderedDict()
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()

    def stored(
        self, thread_id: str, namespace: str, row: CheckpointRow, blobs: Sequence[BlobRow]
    ) -> None:
        """Keep a checkpoint that was stored, or read, and values that are in the table of values."""
        if row.device == _FOREIGN:
            return
        values: dict[Source, bytes] = {(blob.channel,): blob.data for blob in blobs}
        with self._lock:
            place = self._place(thread_id, namespace)
            place.newest = Step(row)
            place.add(row.checkpoint_id, values)

    def written(
        self, thread_id: str, namespace: str, checkpoint_id: str, rows: Sequence[WriteRow]
    ) -> None:
        """Keep pending writes that were stored, maybe before their checkpoint."""
        values: dict[Source, bytes] = {(w.task_id, w.idx): w.data for w in rows if w.idx >= 0}
        with self._lock:
            self._place(thread_id, namespace).add(checkpoint_id, values)

    def find(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Step | None:
        """The checkpoint, if it is known."""
        with self._lock:
            step = self._place(thread_id, namespace).newest
            return step if step and step.row.checkpoint_id == checkpoint_id else None

    def values(
        self, thread_id: str, namespace: str, checkpoint_id: str | None
    ) -> Mapping[Source, bytes]:
        """What can be quoted from a checkpoint and its writes."""
        with self._lock:
            return dict(self._place(thread_id, namespace).values.get(checkpoint_id, {}))

    def _place(self, thread_id: str, namespace: str) -> _Place:
        key = (thread_id, namespace)
        place = self._places.setdefault(key, _Place())
        self._places.move_to_end(key)
        if len(self._places) > _MAX_PLACES:
            self._places.popitem(last=False)
        return place


class _Place:
    """A namespace of a thread: its newest checkpoint, and values of some, by their ids."""

    def __init__(self) -> None:
        self.newest: Step | None = None
        self.values: OrderedDict[str | None, dict[Source, bytes]] = OrderedDict()

    def add(self, checkpoint_id: str, values: Mapping[Source, bytes]) -> None:
        known = self.values.setdefault(checkpoint_id, {})
        for source, value in values.items():
            if _is_quotable(value) and len(known) < _MAX_VALUES:
                known.setdefault(source, value)
        if len(self.values) > _MAX_CHECKPOINTS:
            self.values.popitem(last=False)


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    # 1, 1.0 and true are the same to Python, and not in JSON.
    return {key: value for key, value in after.items() if repr(before.get(key, ...)) != repr(value)}


def quotation(piece: bytes, values: Mapping[Source, bytes]) -> Quotation | None:
    """Find most of a piece in one of some values."""
    if not _is_quotable(piece):
        return None
    best = None
    for source, value in values.items():
        middle = len(value) // 2
        at = piece.find(value[middle : middle + _ANCHOR])
        if at >= 0:
            before = _alike(piece[:at][::-1], value[:middle][::-1])
            length = before + _alike(piece[at:], value[middle:])
            if length >= _MIN_BYTES and (best is None or length > best.length):
                best = Quotation(source, at - before, middle - before, length)
    return best


def _is_quotable(data: bytes) -> bool:
    return _MIN_BYTES <= len(data) <= _MAX_BYTES


def _alike(a: AnyStr, b: AnyStr) -> int:
    """How much is the same at the beginning."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
