"""Rows as the server's functions take and answer them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from charm_checkpoint.backend import (
    Ancestor,
    BlobRow,
    CheckpointRow,
    Entry,
    HeadMark,
    HeadRow,
    MoveHead,
    Outcome,
    Pulled,
    PutCheckpoint,
    PutWrites,
    Snapshot,
    ThreadRow,
    Tombstone,
    Unit,
    WriteRow,
)
from charm_memory_postgres.bases import Bases, Held

__all__ = [
    "Message",
    "Row",
    "blobs_held",
    "encode",
    "entries",
    "held",
    "info",
    "lineage",
    "outcome",
    "pulled",
    "thread_row",
]

# What JSONB refuses or changes: NUL, lone surrogates, NaN and infinities, floats that are whole numbers, minus zero.
# Too much is found (also pairs of surrogates, and such text in strings), which only costs a second copy.
_INEXACT = re.compile(rb"\\u0000|\\u[dD][89a-fA-F]|NaN|Infinity|[0-9]e[+-]?[0-9]|-0\.0")
_UNFIT = re.compile("[\x00\ud800-\udfff]")

# Types of values that other savers keep in the checkpoint; any LangGraph serializer reads them.
_INLINE_TYPE = "json"


class Message(NamedTuple):
    """What `charm_write_v1` takes."""

    info: str
    payload: bytes


class Row(NamedTuple):
    """One row that a function answers."""

    kind: str
    fact: Any
    data: bytes | None


class _Payload:
    """Collects pieces and tells where they are."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.size = 0

    def add(self, piece: bytes) -> tuple[int, int]:
        at = self.size
        self.pieces.append(piece)
        self.size += len(piece)
        return at, len(piece)


def encode(units: Sequence[Unit], bases: Bases | None, *, near: bool = False) -> Message:
    """Units for `charm_write_v1`; values as changes to what `bases` remembers, if given."""
    payload = _Payload()
    encoded = [_unit(unit, payload, bases, near) for unit in units]
    return Message(f"[{','.join(encoded)}]", b"".join(payload.pieces))


def _unit(unit: Unit, payload: _Payload, bases: Bases | None, near: bool) -> str:
    if isinstance(unit, PutCheckpoint):
        return _put(unit, payload, bases, near)
    return _writes(unit, payload) if isinstance(unit, PutWrites) else _move(unit)


def _put(put: PutCheckpoint, payload: _Payload, bases: Bases | None, near: bool) -> str:
    row = put.row
    unit: dict[str, Any] = {
        "thread": put.thread_id,
        "ns": put.namespace,
        "id": row.checkpoint_id,
        "parent": row.parent_id,
        "run": row.run_id,
        "root": row.root_id,
        "device": row.device,
        "at": row.created_at,
        "fenced": put.fenced,
        "on_conflict": put.on_conflict,
        "over": put.over,
        "whole": put.whole,
    }
    blobs, changes = [], []
    for blob in put.blobs:
        change = bases.change(put.thread_id, put.namespace, blob, near=near) if bases else None
        place = payload.add(blob.data if change is None else change.data)
        if change is None:
            blobs.append((*blob[:3], *place))
        else:
            changes.append((*blob[:3], *place, *change[:-1]))
    unit["blobs"] = blobs
    if changes:
        unit["changes"] = changes
    body, exact_body = _jsonb(row.body)
    metadata, exact_metadata = _jsonb(row.metadata)
    if exact_body or exact_metadata:
        unit["exact"] = [
            place
            for exact in (exact_body, exact_metadata)
            for place in (payload.add(exact) if exact else (None, None))
        ]
    fields = {
        "v": row.format,
        "id": row.checkpoint_id,
        "channel_values": {},
        "channel_versions": dict(row.versions),
    }
    # The body's own `channel_versions`, where it has some, come later and so count.
    rest = body.strip()[1:].lstrip()
    checkpoint = f"{_compact(fields)[:-1]}{',' if rest != '}' else ''}{rest}"
    return f'{_compact(unit)[:-1]},"checkpoint":{checkpoint},"metadata":{metadata}}}'


def _writes(put: PutWrites, payload: _Payload) -> str:
    unit: dict[str, Any] = {
        "thread": put.thread_id,
        "ns": put.namespace,
        "id": put.checkpoint_id,
        "fenced": put.fenced,
        "writes": [(*row[:5], *payload.add(row.data)) for row in put.rows if row.idx >= 0],
    }
    # One statement cannot replace a row twice.
    replacing = {(row.task_id, row.idx): row for row in put.rows if row.idx < 0}
    if replacing:
        unit["replacing"] = [(*row[:5], *payload.add(row.data)) for row in replacing.values()]
    return _compact(unit)


def _move(move: MoveHead) -> str:
    return _compact(
        {
            "thread": move.thread_id,
            "ns": move.namespace,
            "id": move.checkpoint_id,
            "over": move.over,
            "device": move.device,
            "at": move.at,
        }
    )


def _compact(fields: Mapping[str, Any]) -> str:
    """JSON without what is null or false."""
    told = {key: value for key, value in fields.items() if value is not None and value is not False}
    return json.dumps(told, separators=(",", ":"))


def _jsonb(text: bytes) -> tuple[str, bytes | None]:
    """JSON that JSONB takes, and the text itself where that is not the same."""
    if _INEXACT.search(text) is None:
        return text.decode(), None
    return json.dumps(_fit(json.loads(text)), allow_nan=False), text


def _fit(value: Any) -> Any:
    if isinstance(value, str):
        return _UNFIT.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_fit(key): _fit(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_fit(item) for item in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value


def outcome(told: Mapping[str, Any]) -> Outcome:
    """One answer of `charm_write_v1`."""
    head = told.get("head")
    return Outcome(told["status"], HeadRow(*head) if head else None, told.get("deleted_at") or 0.0)


def thread_row(told: Mapping[str, Any]) -> ThreadRow:
    """One answer of `charm_threads_v1`."""
    return ThreadRow(
        told["thread"],
        told["created_at"],
        told["updated_at"],
        [HeadRow(*head) for head in told["heads"] or ()],
        frozenset(told["pending"] or ()),
    )


def held(marks: Iterable[HeadMark]) -> str:
    """Marks for `charm_pull_v1`."""
    told: dict[str, list[tuple[str, str | None]]] = {}
    for mark in marks:
        told.setdefault(mark.head.namespace, []).append((mark.head.checkpoint_id, mark.writes))
    return json.dumps(told)


def blobs_held(held: Mapping[str, Held]) -> str:
    """Values for `charm_read_v1`."""
    return json.dumps({channel: (blob.version, xid) for channel, (blob, xid) in held.items()})


def pulled(rows: Sequence[Row], bases: Bases) -> Pulled:
    """The answer of `charm_pull_v1`; `bases` remembers it."""
    told = info(rows)
    return Pulled(
        [HeadMark(HeadRow(*head), mark) for *head, mark in told["heads"] or ()],
        entries(rows, bases),
        Tombstone(*told["tombstone"]) if told["tombstone"] else None,
    )


def info(rows: Sequence[Row]) -> Any:
    """What an answer of rows tells beside them."""
    return rows[0].fact


def entries(
    rows: Sequence[Row], bases: Bases | None = None, held: Mapping[str, Held] | None = None
) -> list[Entry]:
    """The checkpoints of an answer.

    Args:
        rows: The answer.
        bases: Remembers the values.
        held: What was told to be held.
    """
    found: list[_Found] = []
    blobs: dict[tuple[str, ...], BlobRow] = {}
    for row in rows:
        if row.kind == "checkpoint":
            found.append(_Found(row.fact, row.data))
        elif row.kind == "metadata":
            found[-1].metadata = row.data
        elif row.kind in ("blob", "held"):
            place = found[-1].place
            channel, version, type_, xid = row.fact
            if row.kind == "held" and held is not None:
                blob = held[channel].blob
            else:
                blob = BlobRow(channel, version, type_, row.data or b"")
                if bases is not None:
                    bases.remember(*place, blob, xid)
            key = (*place, channel, version)
            blobs[key] = blob
        elif row.kind == "write":
            found[-1].writes.append(_write_row(row))
        elif row.kind == "send":
            found[-1].sends.append(_write_row(row))
    return [each.entry(blobs) for each in found]


def _write_row(row: Row) -> WriteRow:
    task_id, idx, channel, path, type_ = row.fact
    return WriteRow(task_id, idx, channel, path, type_ or "null", row.data or b"")


@dataclass
class _Found:
    """A checkpoint as it is told, with what belongs to it."""

    told: Mapping[str, Any]
    body: bytes | None
    metadata: bytes | None = None
    writes: list[WriteRow] = field(default_factory=list)
    sends: list[WriteRow] = field(default_factory=list)

    @property
    def place(self) -> tuple[str, str]:
        return self.told["thread"], self.told["ns"]

    def entry(self, blobs: Mapping[tuple[str, ...], BlobRow]) -> Entry:
        row = _checkpoint(self.told, self.body, self.metadata)
        values = _blobs_of(self.told, row, blobs)
        return Entry(*self.place, Snapshot(row, values, self.writes, self.sends, self.told["head"]))


def _checkpoint(
    entry: Mapping[str, Any], body: bytes | None, metadata: bytes | None
) -> CheckpointRow:
    checkpoint = dict(entry["checkpoint"])
    versions = checkpoint.get("channel_versions") or {}
    format_ = checkpoint.pop("v", None)
    for key in ("id", "channel_values"):
        checkpoint.pop(key, None)
    if all(isinstance(version, str) for version in versions.values()):
        checkpoint.pop("channel_versions", None)
    return CheckpointRow(
        entry["id"],
        entry["parent"],
        int(format_ or 1),
        _dump(checkpoint) if body is None else body,
        {channel: str(version) for channel, version in versions.items()},
        _dump(entry["metadata"]) if metadata is None else metadata,
        entry["run"],
        entry["root"],
        entry["device"],
        entry["at"],
    )


def _blobs_of(
    entry: Mapping[str, Any], row: CheckpointRow, blobs: Mapping[Any, BlobRow]
) -> list[BlobRow]:
    place = (entry["thread"], entry["ns"])
    found = [blobs[key] for item in row.versions.items() if (key := (*place, *item)) in blobs]
    inline = entry["checkpoint"].get("channel_values")
    if inline:
        # A value in the blob table counts first: what stands here for a DeltaChannel's snapshot is only a mark.
        there = {blob.channel for blob in found}
        found += [
            _inline(channel, row.versions.get(channel, ""), value)
            for channel, value in inline.items()
            if channel not in there
        ]
    return found


def _inline(channel: str, version: str, value: Any) -> BlobRow:
    return BlobRow(channel, version, _INLINE_TYPE, _dump(value))


def lineage(rows: Sequence[Row]) -> list[Ancestor]:
    """The answer of `charm_lineage_v1`."""
    found: list[tuple[str, list[BlobRow], list[WriteRow]]] = []
    for row in rows:
        if row.kind == "ancestor":
            found.append((row.fact, [], []))
        elif row.kind == "blob":
            channel, version, type_, _ = row.fact
            found[-1][1].append(BlobRow(channel, version, type_, row.data or b""))
        elif row.kind == "inline":
            channel, version, value = row.fact
            found[-1][1].append(_inline(channel, version or "", value))
        elif row.kind == "write":
            found[-1][2].append(_write_row(row))
    return [Ancestor(*each) for each in found if each[1] or each[2]]


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
