"""Checkpoints of other savers as rows, without loading what they hold.

Other savers keep a checkpoint in one piece, or in pieces of their own. Here its values are taken apart and kept as the
bytes that LangGraph's serializer gives for each, so that no stored type has to be known, and none is imported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import ormsgpack
from langgraph.checkpoint.base import WRITES_IDX_MAP
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import TASKS

from charm_checkpoint.backend import (
    SENDS_IN_PARENT_BELOW,
    BlobRow,
    CheckpointRow,
    Entry,
    Snapshot,
    WriteRow,
)
from charm_checkpoint.errors import DeserializationError, SerializationError

__all__ = ["FOREIGN_DEVICE", "ForeignCheckpoint", "Typed", "dump", "moment", "split", "write_rows"]

FOREIGN_DEVICE = "another saver"
"""The device of checkpoints whose saver kept none."""

Typed = tuple[str, bytes]
"""A serialized value with its serializer's name for the form."""

# As LangGraph's serializer packs, but for what it would turn into its own forms: unpacked they are none any more.
_OPTIONS = ormsgpack.OPT_NON_STR_KEYS | ormsgpack.OPT_REPLACE_SURROGATES
_plain = JsonPlusSerializer()


class ForeignCheckpoint(NamedTuple):
    """One checkpoint as another saver keeps it."""

    thread_id: str
    namespace: str
    checkpoint_id: str
    parent_id: str | None
    fields: Mapping[str, Any]
    """The checkpoint without its values: plain data, as it was loaded."""
    values: Mapping[str, Typed]
    """By channel."""
    metadata: Mapping[str, Any]
    writes: Sequence[WriteRow] = ()

    def entry(self) -> Entry:
        """Make rows of it.

        Raises:
            SerializationError: It has fields or metadata that are no plain JSON.
        """
        body = {k: v for k, v in self.fields.items() if k not in ("id", "v", "channel_values")}
        format_ = int(self.fields.get("v", 1))
        values = dict(self.values)
        versions = dict(body.pop("channel_versions", None) or {})
        if format_ < SENDS_IN_PARENT_BELOW and body.get("pending_sends"):
            # What LangGraph before format 4 kept beside the values is a channel like any other.
            values[TASKS] = dump(body.pop("pending_sends"))
            versions[TASKS] = max(versions.values()) if versions else "1"
        if not all(isinstance(version, str) for version in versions.values()):
            versions, body["versions_seen"] = _dated(
                versions, values, body.get("versions_seen") or {}
            )
        blobs = [
            BlobRow(channel, versions[channel], *values[channel])
            for channel in versions
            if channel in values
        ]
        root_id = (self.metadata.get("parents") or {}).get("") if self.namespace else None
        run_id = self.metadata.get("run_id")
        row = CheckpointRow(
            checkpoint_id=self.checkpoint_id,
            parent_id=self.parent_id or None,
            format=format_,
            body=self._json(body, "checkpoint"),
            versions=versions,
            metadata=self._json(self.metadata, "metadata"),
            run_id=None if run_id is None else str(run_id),
            root_id=None if root_id is None else str(root_id),
            device=FOREIGN_DEVICE,
            created_at=self.made_at,
        )
        writes = sorted(
            self.writes, key=lambda w: (w.task_path.encode(), w.task_id.encode(), w.idx)
        )
        return Entry(self.thread_id, self.namespace, Snapshot(row, blobs, writes))

    @property
    def made_at(self) -> float:
        """When it was made, seconds since the epoch; 0 if it does not tell."""
        return moment(self.fields.get("ts"))

    def _json(self, value: Mapping[str, Any], what: str) -> bytes:
        try:
            return json.dumps(value, separators=(",", ":")).encode()
        except (TypeError, ValueError) as error:
            raise SerializationError(
                f"thread {self.thread_id!r}, checkpoint {self.checkpoint_id}: its {what} is no plain JSON ({error})"
            ) from error


def moment(ts: Any) -> float:
    """A checkpoint's `ts` in seconds since the epoch; 0 if it is none."""
    try:
        return datetime.fromisoformat(ts.replace("Z", "+00:00")).timestamp()
    except (AttributeError, TypeError, ValueError, OverflowError):
        return 0.0


def split(type_: str, data: bytes, where: str) -> tuple[dict[str, Any], dict[str, Typed]]:
    """Take a checkpoint that was serialized in one piece apart: its fields, and its values as they are.

    Raises:
        DeserializationError: It is in another form (pickled, say: that is never loaded), or damaged.
    """
    try:
        if type_ == "msgpack":
            fields = ormsgpack.unpackb(
                data, ext_hook=ormsgpack.Ext, option=ormsgpack.OPT_NON_STR_KEYS
            )
            return fields, {c: dump(v) for c, v in fields.pop("channel_values", {}).items()}
        if type_ == "json":
            fields = json.loads(data)
            return fields, {c: _json_value(v) for c, v in fields.pop("channel_values", {}).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise DeserializationError(f"{where} cannot be read: {error}") from error
    raise DeserializationError(
        f"{where} is in the form {type_!r}, which is not loaded here: only msgpack and JSON are"
    )


def dump(value: Any) -> Typed:
    """Serialize a value as LangGraph does; what `split` left opaque comes out as it went in."""
    if value is None or isinstance(value, (bytes, bytearray)):
        type_, data = _plain.dumps_typed(value)
        return type_, bytes(data)
    return "msgpack", ormsgpack.packb(value, option=_OPTIONS)


def write_rows(writes: Sequence[tuple[str, str, Any]]) -> list[WriteRow]:
    """Make rows of `(task_id, channel, value)` in the order in which they are to be read back.

    Which place a write had among those of its task is only told by that order, and so is where the task stood.
    """
    rows, counts = [], dict[str, int]()
    tasks = list(dict.fromkeys(task_id for task_id, _, _ in writes))
    in_order = tasks == sorted(tasks, key=str.encode)
    for task_id, channel, value in writes:
        idx = WRITES_IDX_MAP.get(channel)
        if idx is None:
            idx = counts.get(task_id, 0)
            counts[task_id] = idx + 1
        path = "" if in_order else f"{tasks.index(task_id):08}"
        type_, data = _plain.dumps_typed(value)
        rows.append(WriteRow(task_id, idx, channel, path, type_, bytes(data)))
    return rows


def _json_value(value: Any) -> Typed:
    if value is None:
        return "null", b""
    return "json", json.dumps(value).encode()


def _dated(
    versions: Mapping[str, Any], values: Mapping[str, Typed], seen: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Give versions that are numbers this project's form: the number, and what tells two values of one number apart.

    Branches of a thread count on from the same number. Here a version names one value.
    """
    named = {
        channel: version if isinstance(version, str) else _version(version, values.get(channel))
        for channel, version in versions.items()
    }
    reached = {
        node: {
            channel: named[channel] if versions.get(channel) == version else _version(version, None)
            for channel, version in channels.items()
        }
        for node, channels in seen.items()
    }
    return named, reached


def _version(version: Any, value: Typed | None) -> str:
    if isinstance(version, str):
        return version
    number = 0
    if value is not None:
        # Short enough for the sixteen digits that LangGraph's own versions have there.
        digest = hashlib.sha256(value[0].encode() + b"\0" + value[1]).digest()
        number = int.from_bytes(digest[:6], "big") + 1
    return f"{int(version):032}.{number:016}"
