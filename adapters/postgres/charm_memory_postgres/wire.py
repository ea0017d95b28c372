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
    Page,
    Pulled,
    PutCheckpoint,
    PutWrites,
    Scan,
    Seen,
    Snapshot,
    ThreadQuery,
    ThreadRow,
    Tombstone,
    Unit,
    WriteRow,
)
from charm_checkpoint.rules import is_label, labels_of
from charm_memory_postgres.bases import Bases, Held, digest
from charm_memory_postgres.steps import Source, Step, quotation

__all__ = [
    "VERSION",
    "Message",
    "Row",
    "blobs_held",
    "doomed",
    "encode",
    "entries",
    "held",
    "info",
    "lineage",
    "outcomes",
    "page",
    "pulled",
    "scan_asked",
    "seen",
    "snapshot",
    "thread_row",
    "threads_asked",
]

VERSION = 4
"""Of the tables and functions, raised whenever a file in sql/ changes. A function keeps its answer under its version
for good, so that releases before and after a change work side by side."""

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
    """Collects pieces, tells where they are, and leaves out what can be quoted."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.size = 0
        self.sent: list[bytes] = []
        self.quotations: list[tuple[int | str, ...]] = []
        self._unit = -1
        self._values: Mapping[Source, bytes] = {}

    def begin(self, values: Mapping[Source, bytes]) -> None:
        """Go on with the next unit, which may quote these."""
        self._unit += 1
        self._values = values

    def add(self, piece: bytes) -> tuple[int, int]:
        at = self.size
        self.pieces.append(piece)
        self.size += len(piece)
        found = quotation(piece, self._values) if self._values else None
        if found is None:
            self.sent.append(piece)
        else:
            self.sent += [piece[: found.at], piece[found.at + found.length :]]
            place = (at + found.at, found.start, found.length)
            self.quotations.append((*place, self._unit, *found.source))
        return at, len(piece)


def encode(units: Sequence[Unit], bases: Bases | None, *, near: bool = False) -> Message:
    """Units for `charm_write_v1`.

    Args:
        units: In order.
        bases: What the server has is told by it, if given.
        near: The line is short: it takes longer to find out what could be left out than to send it, unless it is much.
    """
    payload = _Payload()
    encoded = [_unit(unit, payload, bases, near) for unit in units]
    if payload.quotations:
        # Of the whole payload, and yet told with the first unit: the server's other doors take an array of units.
        told = {"quotations": payload.quotations, "digest": digest(payload.pieces)}
        encoded[0] = f"{_compact(told)[:-1]},{encoded[0][1:]}"
    return Message(f"[{','.join(encoded)}]", b"".join(payload.sent))


def _unit(unit: Unit, payload: _Payload, bases: Bases | None, near: bool) -> str:
    if isinstance(unit, MoveHead):
        payload.begin({})
        return _move(unit)
    origin = unit.row.parent_id if isinstance(unit, PutCheckpoint) else unit.checkpoint_id
    steps = bases.steps if bases is not None and not near else None
    place = (unit.thread_id, unit.namespace, origin)
    payload.begin(steps.values(*place) if steps else {})
    if isinstance(unit, PutWrites):
        return _writes(unit, payload)
    return _put(unit, payload, bases, near, steps.find(*place) if steps else None)


def _put(
    put: PutCheckpoint, payload: _Payload, bases: Bases | None, near: bool, parent: Step | None
) -> str:
    row = put.row
    body, exact_body = _jsonb(row.body)
    metadata, exact_metadata = _jsonb(row.metadata)
    change = parent.change(row) if parent and not (exact_body or exact_metadata) else None
    unit: dict[str, Any] = {
        "thread": put.thread_id,
        "ns": put.namespace or None,
        "id": row.checkpoint_id,
        "parent": row.parent_id,
        "run": row.run_id,
        "root": row.root_id,
        "device": row.device,
        "at": row.created_at,
        "unfenced": not put.fenced,
        "on_conflict": None if put.on_conflict == "raise" else put.on_conflict,
        "over": put.over,
        "whole": put.whole,
    }
    # Versions that are told already are left out.
    known = change.version if change else None
    known_bases = parent.row.versions if change and parent else {}
    blobs, changes = [], []
    for blob in put.blobs:
        to_base = bases.change(put.thread_id, put.namespace, blob, near=near) if bases else None
        place = payload.add(blob.data if to_base is None else to_base.data)
        version = None if blob.version == known else blob.version
        told = (blob.channel, version, blob.type, *place)
        if to_base is None:
            blobs.append(told)
        else:
            base = None if known_bases.get(blob.channel) == to_base.base else to_base.base
            changes.append((*told, base, *to_base[1:-1]))
    unit["blobs"] = blobs or None
    unit["changes"] = changes or None
    if change and parent:
        named = {channel for channel, version, *_ in (*blobs, *changes) if version is None}
        unit |= {
            "version": (change.alike, change.version[change.alike :]),
            "changed": [c for c in change.channels if c not in named] or None,
            "seen": change.seen or None,
            "device": None if parent.row.device == row.device else row.device,
        }
    if exact_body or exact_metadata:
        unit["exact"] = [
            place
            for exact in (exact_body, exact_metadata)
            for place in (payload.add(exact) if exact else (None, None))
        ]
    if exact_metadata:
        unit["labels"] = labels_of(exact_metadata)
    if change is not None:
        # Whole: a field that is null or false is a field.
        checkpoint = json.dumps({**change.rest, "v": row.format}, separators=(",", ":"))
        metadata = json.dumps(change.metadata, separators=(",", ":"))
    else:
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
    rows = [row for row in put.rows if row.idx >= 0]
    writes = [
        # Mostly all are of one task.
        (
            row.task_id if n == 0 or row.task_id != rows[0].task_id else None,
            row.idx,
            row.channel,
            row.task_path if n == 0 or row.task_path != rows[0].task_path else None,
            row.type,
            *payload.add(row.data),
        )
        for n, row in enumerate(rows)
    ]
    unit: dict[str, Any] = {
        "thread": put.thread_id,
        "ns": put.namespace or None,
        "id": put.checkpoint_id,
        "fenced": put.fenced,
        "writes": writes,
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
            "ns": move.namespace or None,
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


def outcomes(
    units: Sequence[Unit], told: Sequence[Mapping[str, Any]], bases: Bases
) -> list[Outcome]:
    """The answer of `charm_write_v1`; `bases` remembers what was stored."""
    values = set()
    for unit, each in zip(units, told, strict=True):
        place = (unit.thread_id, unit.namespace)
        if each["status"] not in ("stored", "branched"):
            continue
        if isinstance(unit, PutCheckpoint):
            for blob in unit.blobs:
                # Of two values under one version the first stays, which the transaction does not tell.
                key = (*place, blob.channel, blob.version)
                bases.remember(*place, blob, None if key in values else each.get("xid"))
                values.add(key)
            if "xid" in each:  # not what was there under its id
                bases.steps.stored(*place, unit.row, unit.blobs)
        elif isinstance(unit, PutWrites):
            bases.steps.written(*place, unit.checkpoint_id, unit.rows)
    return [_outcome(each) for each in told]


def _outcome(told: Mapping[str, Any]) -> Outcome:
    head = told.get("head")
    return Outcome(told["status"], HeadRow(*head) if head else None, told.get("deleted_at") or 0.0)


def scan_asked(query: Scan, max_bytes: int) -> dict[str, Any]:
    """A query for `charm_scan_v1`."""
    asked = {
        "thread": query.thread_id,
        "ns": query.namespace,
        "id": query.checkpoint_id,
        "before": query.before,
        "runs": query.run_ids,
        "after": query.after,
        "limit": query.limit,
        "values": query.values,
        "max_bytes": max_bytes,
    }
    return {key: value for key, value in asked.items() if value is not None}


def doomed(drop: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """What `charm_prune_v1` takes."""
    told: dict[str, list[str]] = {}
    for namespace, checkpoint_id in drop:
        told.setdefault(namespace, []).append(checkpoint_id)
    return told


def seen(thread: Seen) -> dict[str, Any]:
    """What `charm_delete_if_v1` takes."""
    return {"heads": dict(thread.heads), "checkpoints": thread.checkpoints}


def threads_asked(query: ThreadQuery) -> dict[str, Any] | None:
    """A query for `charm_threads_v1`, `None` if no thread can fit."""
    labels = query.labels or {}
    if not all(is_label(value, name) for name, value in labels.items()):
        return None
    told = {
        "limit": query.limit,
        "after": query.after and (str(query.after[0]), query.after[1]),
        "thread": query.thread_id,
        "status": query.status,
        "labels": labels or None,
    }
    return {key: value for key, value in told.items() if value is not None}


def thread_row(told: Mapping[str, Any]) -> ThreadRow:
    """One answer of `charm_threads_v1`."""
    return ThreadRow(
        told["thread"],
        told["created_at"],
        told["updated_at"],
        [HeadRow(*head) for head in told["heads"] or ()],
        told["status"],
        told["labels"] or {},
    )


def held(marks: Iterable[HeadMark]) -> dict[str, list[tuple[str, str | None]]]:
    """Marks for `charm_pull_v1`."""
    told: dict[str, list[tuple[str, str | None]]] = {}
    for mark in marks:
        told.setdefault(mark.head.namespace, []).append((mark.head.checkpoint_id, mark.writes))
    return told


def blobs_held(held: Mapping[str, Held]) -> dict[str, tuple[str, str | None]]:
    """Values for `charm_read_v1`."""
    return {channel: (blob.version, xid) for channel, (blob, xid) in held.items()}


def pulled(rows: Sequence[Row], bases: Bases) -> Pulled:
    """The answer of `charm_pull_v1`; `bases` remembers it."""
    told = info(rows)
    return Pulled(
        [HeadMark(HeadRow(*head), mark) for *head, mark in told["heads"] or ()],
        entries(rows, bases),
        Tombstone(*told["tombstone"]) if told["tombstone"] else None,
    )


def snapshot(rows: Sequence[Row], bases: Bases, held: Mapping[str, Held]) -> Snapshot:
    """The answer of `charm_read_v1`; `bases` remembers it."""
    for entry in entries(rows, bases, held):
        return entry.snapshot._replace(**info(rows))
    return Snapshot(**info(rows))


def page(rows: Sequence[Row]) -> Page:
    """The answer of `charm_scan_v1`."""
    found = entries(rows)
    return Page(found, _key(found[-1]) if info(rows)["more"] else None)


def _key(entry: Entry) -> tuple[str, str, str]:
    assert entry.snapshot.checkpoint is not None
    return entry.snapshot.checkpoint.checkpoint_id, entry.thread_id, entry.namespace


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
                # Without an xid it is packed, and nothing can be sent as a change to it.
                if bases is not None and xid is not None:
                    bases.remember(*place, blob, xid)
            key = (*place, channel, version)
            blobs[key] = blob
        elif row.kind == "write":
            found[-1].writes.append(_write_row(row))
        elif row.kind == "send":
            found[-1].sends.append(_write_row(row))
    return [each.entry(blobs, bases) for each in found]


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

    def entry(self, blobs: Mapping[tuple[str, ...], BlobRow], bases: Bases | None) -> Entry:
        row = _checkpoint(self.told, self.body, self.metadata)
        values = _blobs_of(self.told, row, blobs)
        if bases is not None:
            bases.steps.stored(*self.place, row, ())
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
