"""Checkpoints to rows and back. No I/O.

Channel values and writes go through the serializer. The checkpoint's own fields and its metadata are JSON, so that a
database can be looked into, and so that no stored type is ever needed to list a thread.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    PendingWrite,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.types import TASKS, _DeltaSnapshot

from charm_checkpoint.backend import (
    SENDS_IN_PARENT_BELOW,
    Ancestor,
    BlobRow,
    CheckpointRow,
    Snapshot,
    WriteRow,
)
from charm_checkpoint.config import mask
from charm_checkpoint.errors import (
    CheckpointNotFoundError,
    CheckpointStoreError,
    DeserializationError,
    InvalidIdError,
    SerializationError,
)
from charm_checkpoint.secrets import is_secret_name
from charm_checkpoint.serializer import StrictSerializer

__all__ = ["Codec", "Place", "delta_channels", "forks", "named_by", "place_of", "valid_id"]

# A subgraph's namespace holds one task id per level; nothing else comes near these.
_MAX_ID_BYTES = 1024
_MAX_NAMESPACE_BYTES = 16 * 1024
_MAX_PATH_STEPS = 20


class PastId(str):
    """The id of a checkpoint that was not the head when it was handed out: whoever builds on it means a fork.

    LangGraph carries ids from a read to the put that grows from it, so this says what a run read, and not merely that
    somebody in this process looked at that checkpoint. It equals the plain id.
    """

    __slots__ = ()


class Place(NamedTuple):
    """Where a config points."""

    thread_id: str
    namespace: str
    checkpoint_id: str | None


def forks(config: Mapping[str, Any]) -> bool:
    """Whether a put with this config is meant to grow from a checkpoint that is not the head."""
    return isinstance((config.get("configurable") or {}).get("checkpoint_id"), PastId)


def valid_id(value: Any, what: str, *, limit: int = _MAX_ID_BYTES) -> str:
    """Return `value` as an id; an `int` becomes its text, as LangGraph's own runs do.

    Raises:
        InvalidIdError: Not text, empty, over `limit` bytes of UTF-8, with a NUL or a lone surrogate.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            value = str(value)
        except ValueError as error:
            raise InvalidIdError(f"{what} is a number of too many digits") from error
    if not isinstance(value, str):
        raise InvalidIdError(f"{what} must be text, not {type(value).__name__}")
    if not value:
        raise InvalidIdError(f"{what} is empty")
    if "\x00" in value:
        raise InvalidIdError(f"{what} {value[:40]!r} holds a NUL")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise InvalidIdError(f"{what} {value[:40]!r} holds a lone surrogate") from error
    if size > limit:
        raise InvalidIdError(
            f"{what} {value[:40]!r}… has {size} bytes, at most {limit} are allowed"
        )
    return value


def named_by(beginning: str, checkpoint_ids: Iterable[str], thread_id: str) -> str:
    """The one checkpoint of a thread whose id begins so.

    Raises:
        CheckpointNotFoundError: There is none, or there are several.
    """
    found = {id for id in checkpoint_ids if beginning and id.startswith(beginning)}
    if beginning in found:
        return beginning
    if len(found) != 1:
        told = (
            f"{len(found)} checkpoints whose ids begin"
            if found
            else "no checkpoint whose id begins"
        )
        raise CheckpointNotFoundError(
            f"thread {thread_id!r} has {told} with {beginning!r}; history lists them"
        )
    return found.pop()


def place_of(config: Mapping[str, Any]) -> Place:
    """Read and check the ids of a config.

    Raises:
        InvalidIdError: `thread_id` is missing or one of the ids is not valid.
    """
    configurable = config.get("configurable") or {}
    if "thread_id" not in configurable:
        raise InvalidIdError('the config names no thread: pass {"configurable": {"thread_id": …}}')
    namespace = configurable.get("checkpoint_ns")
    if namespace:
        namespace = valid_id(namespace, "checkpoint_ns", limit=_MAX_NAMESPACE_BYTES)
    checkpoint_id = configurable.get("checkpoint_id")
    return Place(
        valid_id(configurable["thread_id"], "thread_id"),
        namespace or "",
        str(valid_id(checkpoint_id, "checkpoint_id")) if checkpoint_id else None,
    )


class Codec:
    """Encodes and decodes with one serializer. Thread-safe.

    Args:
        serde: The serializer of channel values and writes.
        channels: If given, only in these a type that is not allowed is an error.
    """

    def __init__(
        self, serde: SerializerProtocol, *, channels: Collection[str] | None = None
    ) -> None:
        self._serde = serde
        self._channels = channels

    # -- to rows ---------------------------------------------------------------------------------------------------

    def checkpoint(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
        *,
        device: str,
    ) -> tuple[Place, CheckpointRow, tuple[BlobRow, ...]]:
        """Encode a checkpoint and the values that are new with it.

        Raises:
            InvalidIdError: An id in the config or the checkpoint's own id is not valid.
            SerializationError: A value, or the metadata, cannot be stored.
        """
        place = place_of(config)
        body: dict[str, Any] = dict(checkpoint)
        values: dict[str, Any] = body.pop("channel_values")
        versions = checkpoint["channel_versions"]
        if all(isinstance(v, str) for v in versions.values()):
            # They are kept once, in the row's own column; other types have to survive as they are.
            del body["channel_versions"]
        checkpoint_id = valid_id(body.pop("id"), "checkpoint id")
        full_metadata = _metadata(config, metadata)
        parents = full_metadata.get("parents")
        for channel in versions:
            _check_text(channel, "channel name")
        row = CheckpointRow(
            checkpoint_id=checkpoint_id,
            parent_id=place.checkpoint_id,
            format=int(body.pop("v")),
            body=_to_json(body, "checkpoint"),
            versions={channel: str(version) for channel, version in versions.items()},
            metadata=_to_json(full_metadata, "metadata"),
            run_id=_text(full_metadata.get("run_id"), "run_id"),
            root_id=_text(parents.get(""), "parents") if place.namespace and parents else None,
            device=device,
            created_at=time.time(),
        )
        blobs = tuple(
            BlobRow(channel, str(version), *self._dump(place, channel, values[channel]))
            for channel, version in new_versions.items()
            if channel in values
        )
        return place, row, blobs

    def writes(
        self, place: Place, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> tuple[WriteRow, ...]:
        """Encode a task's writes.

        Raises:
            InvalidIdError: The task id is not valid.
            SerializationError: A value cannot be stored.
        """
        task_id = valid_id(task_id, "task id")
        _check_text(task_path, "task path")
        for channel, _ in writes:
            _check_text(channel, "channel name")
        return tuple(
            WriteRow(
                task_id,
                WRITES_IDX_MAP.get(channel, index),
                channel,
                task_path,
                *self._dump(place, channel, value),
            )
            for index, (channel, value) in enumerate(writes)
        )

    def _dump(self, place: Place, channel: str, value: Any) -> tuple[str, bytes]:
        try:
            type_, data = self._serde.dumps_typed(value)
            return type_, bytes(data)
        except CheckpointStoreError:
            raise
        except Exception as error:
            path, culprit = _find_culprit(self._serde, value, channel)
            raise SerializationError(
                f"thread {place.thread_id!r}: {path} cannot be stored: {type(culprit).__module__}."
                f"{type(culprit).__qualname__} ({error}). Nothing of this step was stored. Keep such objects out of "
                "the state, or turn them into plain data"
            ) from error

    # -- from rows -------------------------------------------------------------------------------------------------

    def tuple(
        self,
        thread_id: str,
        namespace: str,
        snapshot: Snapshot,
        config: RunnableConfig | None = None,
        *,
        may_fork: bool = False,
    ) -> CheckpointTuple:
        """Decode a stored checkpoint.

        Args:
            thread_id: Where it was read.
            namespace: Likewise.
            snapshot: Its rows.
            config: The config that asked for it, `None` to make one.
            may_fork: Whether a put that grows from it is meant as a fork if it is not the head; see `forks`.

        Raises:
            DeserializationError: Something stored cannot be read back; `TypeNotAllowedError` if for its type.
        """
        row = snapshot.checkpoint
        assert row is not None
        where = f"thread {thread_id!r}, checkpoint {row.checkpoint_id}"
        body = _from_json(row.body, where)
        past = may_fork and row.checkpoint_id != snapshot.head
        own_id = PastId(row.checkpoint_id) if past else row.checkpoint_id
        checkpoint: dict[str, Any] = {"v": row.format, "id": own_id, **body}
        checkpoint.setdefault("channel_versions", dict(row.versions))
        values = {b.channel: self._load(where, b.channel, b.type, b.data) for b in snapshot.blobs}
        checkpoint["channel_values"] = values
        sends = [w for w in snapshot.sends if w.channel == TASKS]
        if sends and row.format < SENDS_IN_PARENT_BELOW:
            # What LangGraph before format 4 kept as the parent's writes is now a channel like any other.
            values[TASKS] = [self._load(where, TASKS, w.type, w.data) for w in sends]
            versions = checkpoint["channel_versions"]
            versions[TASKS] = max(versions.values()) if versions else "1"
        if config is None:
            config = _config(thread_id, namespace, own_id)
        elif past or forks(config):
            config = {**config, "configurable": {**config["configurable"], "checkpoint_id": own_id}}
        # `update_state` copies a checkpoint by growing from its parent.
        parent_id = PastId(row.parent_id) if row.parent_id else None
        return CheckpointTuple(
            config=config,
            checkpoint=cast(Checkpoint, checkpoint),
            metadata=cast(CheckpointMetadata, self.metadata(row)),
            parent_config=_config(thread_id, namespace, parent_id) if parent_id else None,
            pending_writes=self._load_writes(where, snapshot.writes),
        )

    @staticmethod
    def metadata(row: CheckpointRow) -> dict[str, Any]:
        """Decode a checkpoint's metadata."""
        return _from_json(row.metadata, f"checkpoint {row.checkpoint_id}")

    def delta_history(
        self, thread_id: str, ancestors: Sequence[Ancestor], channels: Sequence[str]
    ) -> dict[str, DeltaChannelHistory]:
        """Decode what each DeltaChannel is rebuilt from. `ancestors` come nearest first."""
        where = f"thread {thread_id!r}"
        history: dict[str, DeltaChannelHistory] = {c: {"writes": []} for c in channels}
        for ancestor in reversed(ancestors):
            for task_id, channel, value in self._load_writes(where, ancestor.writes):
                history[channel]["writes"].append((task_id, channel, value))
            for blob in ancestor.blobs:
                seed = self._load(where, blob.channel, blob.type, blob.data)
                history[blob.channel]["seed"] = seed
        return history

    def _load_writes(self, where: str, rows: Iterable[WriteRow]) -> list[PendingWrite]:
        return [(w.task_id, w.channel, self._load(where, w.channel, w.type, w.data)) for w in rows]

    def _load(self, where: str, channel: str, type_: str, data: bytes) -> Any:
        passed_by = self._channels is not None and channel not in self._channels
        try:
            if passed_by and isinstance(self._serde, StrictSerializer):
                return self._serde.loads_opaque((type_, data))
            return self._serde.loads_typed((type_, data))
        except DeserializationError as error:
            raise type(error)(f"{where}, channel {channel!r}: {error}") from error
        except Exception as error:
            raise DeserializationError(
                f"{where}: the value of channel {channel!r} ({type_}, {len(data)} bytes) cannot be read back: {error}"
            ) from error


def _config(thread_id: str, namespace: str, checkpoint_id: str) -> RunnableConfig:
    return {
        "configurable": {
            "thread_id": thread_id,
            "checkpoint_ns": namespace,
            "checkpoint_id": checkpoint_id,
        }
    }


def _metadata(config: RunnableConfig, metadata: CheckpointMetadata) -> dict[str, Any]:
    """LangGraph's rule (it adds plain values from the config), less what looks like a credential."""
    full = dict(get_checkpoint_metadata(config, metadata))
    return {k: v for k, v in full.items() if k in metadata or not _is_secret(k, v)}


def _is_secret(name: str, value: Any) -> bool:
    return is_secret_name(name) or (
        isinstance(value, str) and "://" in value and mask(value) != value
    )


def delta_channels(checkpoint: Checkpoint, metadata: Mapping[str, Any]) -> set[str]:
    """The channels that a checkpoint shows to be DeltaChannels."""
    values = checkpoint["channel_values"]
    counted = metadata.get("counters_since_delta_snapshot") or ()
    return {*counted, *(c for c, value in values.items() if isinstance(value, _DeltaSnapshot))}


def _text(value: Any, what: str) -> str | None:
    return None if value is None else _check_text(str(value), what)


def _check_text(value: str, what: str) -> str:
    """Names are stored as text: a NUL or a lone surrogate, which no database takes, is an error here."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise SerializationError(f"{what} {value[:40]!r} holds a lone surrogate") from error
    if "\x00" in value:
        raise SerializationError(f"{what} {value[:40]!r} holds a NUL")
    return value


def _to_json(value: dict[str, Any], what: str) -> bytes:
    try:
        return json.dumps(value, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        path, culprit = what, value
        for key, part in value.items():
            try:
                json.dumps(part)
            except (TypeError, ValueError, RecursionError):
                path, culprit = f"{what}[{key!r}]", part
        raise SerializationError(
            f"{path} cannot be stored: {type(culprit).__qualname__} ({error}). Only plain JSON values fit there"
        ) from error


def _from_json(data: bytes, where: str) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", json.loads(data))
    except ValueError as error:
        raise DeserializationError(f"{where} cannot be read back: {error}") from error


def _find_culprit(serde: SerializerProtocol, value: Any, path: str) -> tuple[str, Any]:
    """Name the innermost part of `value` that does not serialize on its own, in values that hold themselves too."""
    for _ in range(_MAX_PATH_STEPS):
        for step, part in _parts(value):
            try:
                serde.dumps_typed(part)
            except Exception:  # noqa: BLE001 - whatever it is, this part is the one
                path, value = path + step, part
                break
        else:
            break
    return path, value


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(f"[{k!r}]", v) for k, v in value.items()] + [(f"[{k!r}]", k) for k in value]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [(f"[{i}]", v) for i, v in enumerate(value)]
    if isinstance(value, type):
        return []
    if dataclasses.is_dataclass(value):
        return [(f".{f.name}", getattr(value, f.name, None)) for f in dataclasses.fields(value)]
    return [(f".{k}", v) for k, v in getattr(value, "__dict__", {}).items()]
