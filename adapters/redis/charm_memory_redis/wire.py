"""Rows as the scripts take and answer them. Ids are parts (`keys.part`), everything else bytes; `lua/common.lua` says
what is stored where."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgpack  # type: ignore[import-untyped]

from charm_checkpoint import delta
from charm_checkpoint.backend import (
    SEALED,
    STORED,
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
from charm_checkpoint.errors import BackendCorrupt
from charm_checkpoint.rules import labels_of, status_of
from charm_memory_redis.bases import MIN_BYTES, Bases, Held
from charm_memory_redis.keys import id_of, pair, part, raw, text

__all__ = [
    "Batch",
    "Stored",
    "Values",
    "batch",
    "entries",
    "fields_held",
    "lineage",
    "marks_held",
    "outcome",
    "packed",
    "pulled",
    "seconds",
    "snapshot",
    "stamps",
    "thread_row",
]

_PUT, _WRITES, _MOVE = 1, 2, 3

# More changes on top of each other, or changes of more bytes than the value has, are slower to read than they save.
_MOST_CHANGES = 128

_STAMP = struct.Struct(">20sIHI")
"""A value's SHA-1 and length, how many changes it takes to rebuild it, their bytes."""
_NO_STAMP = b"\x00"


def packed(value: Any) -> bytes:
    """Texts of bytes as Lua's cmsgpack knows them: it is older than MessagePack's binary type."""
    return msgpack.packb(value, use_bin_type=False)  # type: ignore[no-any-return]


def _unpacked(data: bytes) -> Any:
    return msgpack.unpackb(data, raw=True)


def seconds(at: float) -> bytes:
    """A time, which survives whole as a text."""
    return repr(float(at)).encode()


# -- writing -----------------------------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """A value that the server holds once a unit is stored."""

    unit: int
    thread_id: str
    namespace: str
    held: Held


class Batch(NamedTuple):
    """Units as `write.lua` takes them."""

    arguments: list[Any]
    values: list[Stored]


def batch(
    units: Sequence[Unit],
    threads: Sequence[str],
    bases: Bases | None,
    *,
    ttl: bytes,
    waits: bool,
) -> Batch:
    """Encode units of the named threads; without `bases` every value goes whole."""
    number = {thread_id: n for n, thread_id in enumerate(threads, 1)}
    known = None if bases is None else _Known(bases)
    told = Batch([b""], [])
    encoded: list[list[Any]] = []
    for n, unit in enumerate(units):
        thread = number[unit.thread_id]
        if isinstance(unit, PutCheckpoint):
            encoded.append([_PUT, thread, *_put(n, unit, known, told)])
        elif isinstance(unit, PutWrites):
            encoded.append([_WRITES, thread, *_writes(unit, told.arguments)])
        else:
            encoded.append([_MOVE, thread, *_move(unit)])
    named = [raw(thread_id) for thread_id in threads]
    told.arguments[0] = packed([encoded, named, ttl, waits])
    return told


class _Known:
    """What a value can be a change to: one that comes with an earlier unit of the batch, or is held."""

    def __init__(self, bases: Bases) -> None:
        self._bases = bases
        self._places: dict[tuple[str, str], dict[str, tuple[Held, int]]] = {}

    def at(self, unit: PutCheckpoint) -> dict[str, tuple[Held, int]]:
        """By channel, with the number among the arguments of one that comes with the batch, else 0."""
        place = (unit.thread_id, unit.namespace)
        if place not in self._places:
            held = self._bases.held(*place).get(unit.namespace, {})
            self._places[place] = {channel: (each, 0) for channel, each in held.items()}
        return self._places[place]


def _put(n: int, unit: PutCheckpoint, known: _Known | None, told: Batch) -> list[Any]:
    row, arguments = unit.row, told.arguments
    parent, root = _optional(row.parent_id), _optional(row.root_id)
    device, at = raw(row.device), seconds(row.created_at)
    arguments.append(
        packed(
            [
                [parent, root, None if row.run_id is None else raw(row.run_id), row.format],
                [part(channel) + part(version) for channel, version in row.versions.items()],
                [row.body, row.metadata, device, at],
            ]
        )
    )
    first = len(arguments)
    place = known.at(unit) if known else {}
    blobs = []
    for blob in unit.blobs:
        base, number = place.get(blob.channel, (None, 0))
        base, held, record = _value(blob, base)
        blobs.append(
            (held.version, base.version, base.stamp, number)
            if base
            else (held.version, b"", b"", 0)
        )
        if held.stamp != _NO_STAMP:
            told.values.append(Stored(n, unit.thread_id, unit.namespace, held))
            if known:
                place[blob.channel] = (held, len(arguments) + 1)
        arguments.append(record)
    return [
        *(part(unit.namespace), part(row.checkpoint_id), parent, root),
        *(unit.fenced, unit.on_conflict.encode(), _optional(unit.over), unit.whole),
        *(device, at, first, blobs, unit.namespace == ""),
    ]


def _value(blob: BlobRow, base: Held | None) -> tuple[Held | None, Held, bytes]:
    """Tell what a value is a change to, what it is known by, and how it is stored."""
    data = blob.data
    version = part(blob.channel) + part(blob.version)
    if len(data) < MIN_BYTES or blob.type.endswith(SEALED):
        record = _NO_STAMP + packed([[raw(blob.type), b""], data])
        return None, Held(blob, version, _NO_STAMP), record
    depth = weight = 0
    change = None
    if base is not None and base.blob.version != blob.version:
        _, _, depth, weight = _STAMP.unpack_from(base.stamp, 1)
        if depth < _MOST_CHANGES and weight <= len(data):
            change = delta.diff(base.blob.data, data)
    digest = hashlib.sha1(data, usedforsecurity=False).digest()
    if base is None or change is None:
        stamp = _stamp(digest, len(data), 0, 0)
        record = stamp + packed([[raw(blob.type), b""], data])
        return None, Held(blob, version, stamp), record
    stamp = _stamp(digest, len(data), depth + 1, weight + len(change))
    record = stamp + packed([[raw(blob.type), base.version], change])
    return base, Held(blob, version, stamp), record


def _stamp(digest: bytes, size: int, depth: int, weight: int) -> bytes:
    return bytes([_STAMP.size]) + _STAMP.pack(digest, size, depth, weight)


def _writes(unit: PutWrites, arguments: list[Any]) -> list[Any]:
    first = len(arguments) + 1
    names = []
    for row in unit.rows:
        facts = [part(row.channel), raw(row.task_id), row.idx, raw(row.task_path), raw(row.type)]
        arguments.append(packed([facts, row.data]))
        names.append((part(row.task_id) + b"%d" % row.idx, row.idx < 0))
    # Whatever the server holds under another mark is something else.
    mark = os.urandom(12).hex().encode()
    place = (part(unit.namespace), part(unit.checkpoint_id))
    return [*place, unit.fenced, mark, first, names]


def _move(unit: MoveHead) -> list[Any]:
    return [
        *(part(unit.namespace), part(unit.checkpoint_id), part(unit.over)),
        *(raw(unit.device), seconds(unit.at)),
    ]


def _optional(id: str | None) -> bytes | None:
    return None if id is None else part(id)


def outcome(unit: Unit, told: Sequence[Any]) -> Outcome:
    """One answer of `write.lua`."""
    status = text(told[0])
    if status == "stored":
        return STORED
    if status == "deleted":
        return Outcome("deleted", deleted_at=float(told[1]))
    head = _head(part(unit.namespace), *told[2:]) if len(told) > 2 else None
    return Outcome(status, head)  # type: ignore[arg-type]


def _head(namespace: bytes, id: bytes, device: bytes, at: bytes) -> HeadRow:
    return HeadRow(id_of(namespace), id_of(id), text(device), float(at))


# -- reading -----------------------------------------------------------------------------------------------------------


def fields_held(held: Mapping[str, Mapping[str, Held]]) -> dict[bytes, Held]:
    """What is held, by the name of its field."""
    return {
        b"b" + part(namespace) + each.version: each
        for namespace, channels in held.items()
        for each in channels.values()
    }


def stamps(held: Mapping[bytes, Held]) -> bytes:
    """What is held, for the scripts."""
    return packed({field: each.stamp for field, each in held.items()})


class Values:
    """The values of an answer, rebuilt when asked for.

    Args:
        thread_id: Whose they are.
        told: Fields and records of an answer, one after the other; an empty record stands for what is held.
        held: What was said to be held.
        bases: Remembers what is asked for.
    """

    def __init__(
        self,
        thread_id: str,
        told: Sequence[bytes],
        held: Mapping[bytes, Held] | None = None,
        bases: Bases | None = None,
    ) -> None:
        self._thread_id = thread_id
        self._records = dict(zip(told[::2], told[1::2], strict=True))
        # What is held counts only where the server says that it is the same.
        self._found = {f: each for f, each in (held or {}).items() if self._records.get(f) == b""}
        self._bases = bases

    def of(self, namespace: bytes, versions: Iterable[bytes]) -> list[BlobRow]:
        """The stored ones among these versions."""
        found = []
        for version in versions:
            if b"b" + namespace + version in self._records:
                held = self._value(namespace, version)
                if self._bases is not None and held.stamp != _NO_STAMP:
                    self._bases.remember(self._thread_id, id_of(namespace), held)
                found.append(held.blob)
        return found

    def _value(self, namespace: bytes, version: bytes) -> Held:
        changes: list[tuple[bytes, bytes, bytes, bytes]] = []
        at = version
        while True:
            field = b"b" + namespace + at
            record = self._records.get(field)
            if record == b"" or (record is not None and field in self._found):
                data = self._found[field].blob.data
                break
            if record is None:
                raise self._corrupt(version, "a value that it is built on is missing")
            stamp = record[: record[0] + 1]
            (type_, base), data = _unpacked(record[len(stamp) :])
            if not base:
                self._found[field] = self._held(at, stamp, type_, data)
                break
            changes.append((at, stamp, type_, data))
            at = base
        for at, stamp, type_, change in reversed(changes):
            try:
                data = delta.apply(data, change)
            except ValueError as error:
                raise self._corrupt(at, str(error)) from error
            self._found[b"b" + namespace + at] = self._held(at, stamp, type_, data)
        found = self._found[b"b" + namespace + version]
        if changes and hashlib.sha1(data, usedforsecurity=False).digest() != found.stamp[1:21]:
            raise self._corrupt(version, "what was rebuilt is not what was stored")
        return found

    @staticmethod
    def _held(version: bytes, stamp: bytes, type_: bytes, data: bytes) -> Held:
        channel, number = pair(version)
        return Held(BlobRow(channel, number, text(type_), data), version, stamp)

    def _corrupt(self, version: bytes, told: str) -> BackendCorrupt:
        channel, number = pair(version)
        return BackendCorrupt(
            f"thread {self._thread_id!r}: version {number} of channel {channel!r} cannot be read: {told}. Restore a "
            "backup, or delete the thread"
        )


def _checkpoint(id: str, row: bytes) -> tuple[CheckpointRow, list[bytes]]:
    (parent, root, run, format_), versions, (body, metadata, device, at) = _unpacked(row)
    found = CheckpointRow(
        id,
        None if parent is None else id_of(parent),
        format_,
        body,
        dict(map(pair, versions)),
        metadata,
        None if run is None else text(run),
        None if root is None else id_of(root),
        text(device),
        float(at),
    )
    return found, versions


def _write_rows(told: Iterable[bytes]) -> list[WriteRow]:
    rows = []
    for each in told:
        (channel, task_id, idx, path, type_), data = _unpacked(each)
        rows.append(((path, task_id, idx), id_of(channel), text(type_), data))
    rows.sort(key=lambda row: row[0])
    return [
        WriteRow(text(task_id), idx, channel, text(path), type_, data)
        for (path, task_id, idx), channel, type_, data in rows
    ]


def _entry(thread_id: str, told: Sequence[Any], values: Values) -> Entry:
    name, row, head, writes, sends, *missing = told
    id, namespace = pair(name)
    checkpoint, versions = _checkpoint(id, row)
    snapshot = Snapshot(
        checkpoint,
        values.of(part(namespace), missing[0] if missing else versions),
        _write_rows(writes),
        _write_rows(sends),
        id_of(head) if head else None,
    )
    return Entry(thread_id, namespace, snapshot)


def entries(
    thread_id: str, told: Iterable[Sequence[Any]], values: Values
) -> Iterator[Entry | None]:
    """The checkpoints of an answer, `None` for those that are gone."""
    for each in told:
        yield _entry(thread_id, each, values) if len(each) > 1 else None


def snapshot(
    thread_id: str, told: Sequence[Any], held: Mapping[bytes, Held], bases: Bases
) -> Snapshot:
    """The answer of `read.lua`; `bases` remembers it."""
    head, through, entry, values = told
    found = Snapshot(head=id_of(head) if head else None)
    if entry:
        found = _entry(thread_id, entry, Values(thread_id, values, held, bases)).snapshot
    return found._replace(deleted_through=id_of(through) if through else None)


def marks_held(marks: Iterable[HeadMark]) -> bytes:
    """Marks for `pull.lua`."""
    told: dict[bytes, list[tuple[bytes, bytes | None]]] = {}
    for mark in marks:
        writes = None if mark.writes is None else raw(mark.writes)
        place = part(mark.head.namespace)
        told.setdefault(place, []).append((part(mark.head.checkpoint_id), writes))
    return packed(told)


def pulled(thread_id: str, told: Sequence[Any], held: Mapping[bytes, Held], bases: Bases) -> Pulled:
    """The answer of `pull.lua`; `bases` remembers it."""
    at, through, heads, found, values = told
    rebuilt = Values(thread_id, values, held, bases)
    return Pulled(
        [HeadMark(_head(*heads[n : n + 4]), text(heads[n + 4])) for n in range(0, len(heads), 5)],
        [entry for entry in entries(thread_id, found, rebuilt) if entry is not None],
        Tombstone(float(at), id_of(through)) if at else None,
    )


def lineage(
    thread_id: str, namespace: str, told: Sequence[Any], held: Mapping[bytes, Held], bases: Bases
) -> list[Ancestor]:
    """The answer of `lineage.lua`; `bases` remembers it."""
    found, values = told
    rebuilt, place = Values(thread_id, values, held, bases), part(namespace)
    return [
        Ancestor(id_of(id), rebuilt.of(place, seeds), _write_rows(writes))
        for id, seeds, writes in found
    ]


def thread_row(thread_id: str, told: Sequence[Any]) -> ThreadRow | None:
    """The answer of `thread.lua`, `None` if the thread has no head."""
    if not told or not told[2]:
        return None
    created, updated, heads, root, channels = told
    return ThreadRow(
        thread_id,
        float(created),
        float(updated),
        [_head(*heads[n : n + 4]) for n in sorted(range(0, len(heads), 4), key=heads.__getitem__)],
        status_of(id_of(channel) for channel in channels),
        labels_of(_unpacked(root)[2][1]) if root else {},
    )
