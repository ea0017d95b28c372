"""Rows as the server's functions take and answer them: one JSON, and one payload for all bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from charm_checkpoint.backend import (
    Ancestor,
    BlobRow,
    CheckpointRow,
    Entry,
    HeadRow,
    Outcome,
    PutCheckpoint,
    PutWrites,
    Snapshot,
    ThreadRow,
    Unit,
    WriteRow,
)
from charm_memory_postgres.bases import Bases, Change

__all__ = ["Message", "encode", "entries", "lineage", "outcome", "thread_row"]

# What JSONB refuses or changes: NUL, lone surrogates, NaN and infinities, floats that are whole numbers, minus zero.
# Too much is found (also pairs of surrogates, and such text in strings), which only costs a second copy.
_INEXACT = re.compile(rb"\\u0000|\\u[dD][89a-fA-F]|NaN|Infinity|[0-9]e[+-]?[0-9]|-0\.0")
_UNFIT = re.compile("[\x00\ud800-\udfff]")

# Types of values that other savers keep in the checkpoint; any LangGraph serializer reads them.
_INLINE_TYPE = "json"


class Message(NamedTuple):
    """What a function takes or answers."""

    info: str
    payload: bytes


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


def encode(units: Sequence[Unit], bases: Bases | None) -> Message:
    """Units for `charm_write_v1`; values as changes to what `bases` remembers."""
    payload = _Payload()
    encoded = [
        _put(unit, payload, bases) if isinstance(unit, PutCheckpoint) else _writes(unit, payload)
        for unit in units
    ]
    return Message(f"[{','.join(encoded)}]", b"".join(payload.pieces))


def _put(put: PutCheckpoint, payload: _Payload, bases: Bases | None) -> str:
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
        "blobs": [_blob(put, blob, payload, bases) for blob in put.blobs],
    }
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
    checkpoint = f"{json.dumps(fields)[:-1]}{',' if rest != '}' else ''}{rest}"
    return f'{json.dumps(unit)[:-1]},"checkpoint":{checkpoint},"metadata":{metadata}}}'


def _blob(put: PutCheckpoint, blob: BlobRow, payload: _Payload, bases: Bases | None) -> list[Any]:
    change = bases.change(put.thread_id, put.namespace, blob) if bases else None
    if change is None:
        return [blob.channel, blob.version, blob.type, *payload.add(blob.data)]
    place = payload.add(change.data)
    return [blob.channel, blob.version, blob.type, *place, change[: Change._fields.index("data")]]


def _writes(put: PutWrites, payload: _Payload) -> str:
    # One statement cannot replace a row twice.
    rows: dict[tuple[str, int], WriteRow] = {}
    for row in put.rows:
        if row.idx < 0 or (row.task_id, row.idx) not in rows:
            rows[row.task_id, row.idx] = row
    return json.dumps(
        {
            "thread": put.thread_id,
            "ns": put.namespace,
            "id": put.checkpoint_id,
            "fenced": put.fenced,
            "writes": [(*row[:5], *payload.add(row.data)) for row in rows.values()],
        }
    )


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


def entries(found: Mapping[str, Any], payload: bytes) -> list[Entry]:
    """What `charm_entries_v1` found."""
    told = found["entries"] or ()
    pieces = _pieces(payload)
    rows = []
    for entry in told:
        body, metadata = (
            next(pieces)(entry[size]) if entry[size] is not None else None
            for size in ("body", "exact_metadata")
        )
        rows.append(_checkpoint(entry, body, metadata))
    blobs = {
        tuple(key): BlobRow(key[2], key[3], type_, next(pieces)(size))
        for *key, type_, size in found["blobs"] or ()
    }
    writes: dict[tuple[int, str], list[WriteRow]] = {}
    for place, kind, task_id, idx, channel, path, type_, size in found["writes"] or ():
        row = WriteRow(task_id, idx, channel, path, type_ or "null", next(pieces)(size))
        writes.setdefault((place, kind), []).append(row)
    return [
        Entry(
            entry["thread"],
            entry["ns"],
            Snapshot(
                row,
                _blobs_of(entry, row, blobs),
                writes.get((place, "w"), []),
                writes.get((place, "s"), []),
                entry["head"],
            ),
        )
        for place, (entry, row) in enumerate(zip(told, rows, strict=True))
    ]


def _pieces(payload: bytes) -> Iterator[Any]:
    """Functions that cut the next `size` bytes off."""
    at = 0

    def cut(size: int) -> bytes:
        nonlocal at
        at += size
        return payload[at - size : at]

    while True:
        yield cut


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


def lineage(told: Mapping[str, Any], payload: bytes) -> list[Ancestor]:
    """The answer of `charm_lineage_v1`."""
    pieces = _pieces(payload)
    blobs: list[list[BlobRow]] = [[] for _ in told["ids"]]
    writes: list[list[WriteRow]] = [[] for _ in told["ids"]]
    for place, channel, version, type_, size in told["blobs"]:
        blobs[place].append(BlobRow(channel, version, type_, next(pieces)(size)))
    for place, channel, version, value in told["inline"]:
        blobs[place].append(_inline(channel, version or "", value))
    for place, task_id, idx, channel, path, type_, size in told["writes"]:
        row = WriteRow(task_id, idx, channel, path, type_ or "null", next(pieces)(size))
        writes[place].append(row)
    steps = zip(told["ids"], blobs, writes, strict=True)
    return [Ancestor(*step) for step in steps if step[1] or step[2]]


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
