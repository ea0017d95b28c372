"""Where a thread stands, read from the rows of its head: no graph's code is needed.

Every value is read back on its own: one of a type that is not allowed says so and hides no other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from langgraph.checkpoint.serde.base import SerializerProtocol

from charm_checkpoint.backend import CheckpointRow, Snapshot, WriteRow
from charm_checkpoint.cli.output import iso, shorten
from charm_checkpoint.cli.reports import Failure, Head, Interruption
from charm_checkpoint.codec import Codec
from charm_checkpoint.errors import DeserializationError

__all__ = ["Standing", "Value", "head_of", "load", "plain"]

_ERROR_TEXT = 500

# LangGraph's names for what is no part of the state.
_INTERRUPT, _ERROR, _RESUME, _SENDS = "__interrupt__", "__error__", "__resume__", "__pregel_tasks"
_BRANCH, _JOIN, _START = "branch:to:", "join:", "__start__"
_PULL, _PUSH = "~__pregel_pull, ", "~__pregel_push, "
_UNFINISHED = frozenset({_INTERRUPT, _ERROR, _RESUME, "__error_source_node__"})


class Value(NamedTuple):
    """A stored value, or why it cannot be read back."""

    value: Any = None
    error: str | None = None
    size: int = 0
    """Bytes, as stored."""


def load(serde: SerializerProtocol, type_: str, data: bytes) -> Value:
    """Read a stored value back, if that can be done."""
    try:
        return Value(serde.loads_typed((type_, data)), size=len(data))
    except DeserializationError as error:
        return Value(error=str(error), size=len(data))
    except Exception as error:  # noqa: BLE001 -- whatever a serializer stumbles over in damaged bytes
        return Value(error=f"it cannot be read back: {error}", size=len(data))


def head_of(row: CheckpointRow) -> Head:
    """Which checkpoint it is, for a report."""
    metadata = Codec.metadata(row)
    return {
        "checkpoint_id": row.checkpoint_id,
        "parent_id": row.parent_id,
        "step": metadata.get("step"),
        "source": metadata.get("source"),
        "device": row.device,
        "created_at": iso(row.created_at),
    }


class Standing:
    """What a checkpoint holds and waits for.

    Args:
        snapshot: The checkpoint as it is stored.
        serde: Reads its values back.
    """

    def __init__(self, snapshot: Snapshot, serde: SerializerProtocol) -> None:
        self._serde = serde
        self._writes = snapshot.writes
        self._channels = {b.channel: self._load(b.type, b.data) for b in snapshot.blobs}
        sends = self._channels.get(_SENDS, Value()).value
        self._sends = [getattr(s, "node", None) for s in sends] if isinstance(sends, list) else []
        # Tasks of this step that have run to their end, with their nodes.
        self._finished = {
            write.task_id: self._node_of(write)
            for write in self._writes
            if write.channel not in _UNFINISHED
        }

    def state(self) -> dict[str, Value]:
        """The state's channels by name, without LangGraph's own bookkeeping."""
        return {
            name: value
            for name, value in sorted(self._channels.items())
            if not name.startswith(("__", _BRANCH, _JOIN))
        }

    def next(self) -> list[str]:
        """The nodes that run when the thread goes on, but for those that have run in this step already."""
        waiting = [node for node in self._sends if node]
        waiting += filter(None, (_triggered(*channel) for channel in self._channels.items()))
        if _START in self._channels:
            # The first node, or a function, whose name only what it has left so far tells.
            pulled = (w.task_path for w in self._writes if w.task_path.startswith(_PULL))
            waiting += {path[len(_PULL) :] for path in pulled} or {_START}
        for node in self._finished.values():
            if node in waiting:
                waiting.remove(node)
        return sorted(waiting)

    def interruptions(self) -> Iterator[Interruption]:
        """The questions it waits for answers to."""
        for write in self._writes:
            if write.channel != _INTERRUPT or write.task_id in self._finished:
                continue
            node, found = self._node_of(write), self._load(write.type, write.data)
            if found.error:
                yield {"id": None, "node": node, "value": None, "error": found.error}
                continue
            for each in found.value if isinstance(found.value, (list, tuple)) else [found.value]:
                value = plain(getattr(each, "value", each))
                yield {"id": getattr(each, "id", None), "node": node, "value": value, "error": None}

    def failures(self) -> Iterator[Failure]:
        """The tasks that raised."""
        for write in self._writes:
            if write.channel == _ERROR and write.task_id not in self._finished:
                found = self._load(write.type, write.data)
                text = shorten(found.error or str(found.value), _ERROR_TEXT)
                yield {"node": self._node_of(write), "error": text}

    def _load(self, type_: str, data: bytes) -> Value:
        return load(self._serde, type_, data)

    def _node_of(self, write: WriteRow) -> str | None:
        """The node whose task made a write, `None` where its path does not tell."""
        if write.task_path.startswith(_PULL):
            return write.task_path[len(_PULL) :]
        index = write.task_path[len(_PUSH) :].partition(",")[0]
        if (
            write.task_path.startswith(_PUSH)
            and index.isdecimal()
            and int(index) < len(self._sends)
        ):
            return self._sends[int(index)]
        return None


def _triggered(channel: str, found: Value) -> str | None:
    """The node that a channel's value sets off."""
    value, ready = found.value, True
    if isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[1], bool):
        value, ready = value  # of a deferred node, which runs when all others have
    if ready and channel.startswith(_BRANCH):
        return channel[len(_BRANCH) :]
    if ready and channel.startswith(_JOIN):
        awaited, _, node = channel[len(_JOIN) :].rpartition(":")
        if isinstance(value, (set, list)) and set(value) >= set(awaited.split("+")):
            return node
    return None


def plain(value: Any) -> Any:
    """The value as JSON gives it back."""
    try:
        return json.loads(json.dumps(value, default=repr))
    except (TypeError, ValueError, RecursionError):
        return repr(value)
