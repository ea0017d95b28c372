"""The message face of a thread: what agents without a graph read and write, and graphs go on from.

There is one copy of a conversation, the channel of the thread's newest checkpoint, so what either side writes the other
side sees. A save is a checkpoint like the ones LangGraph's `update_state` makes: it grows from the newest one, keeps
every other channel as it is, and is fenced like any write.

**What the graph sees.** A message keeps its id as long as its dict comes back unchanged, and so does everything in it
that its dict does not show. Messages written as dicts without an id get one that dicts do not show. Where a graph keeps
plain dicts in its state, dicts are what is added.

**DeltaChannel.** Its value is rebuilt as `add_messages` would: by id, with `RemoveMessage` and `Overwrite`. A save
stores a snapshot.

**A graph that waits or has failed.** `load` shows the last finished step. A save leaves the step ahead of the graph:
`Command(resume=…)` and `invoke(None)` go on with it as before. The step's nodes begin anew, though, as they do after
`update_state`: an interrupt is listed again, under a new id, once its node has run, and tasks of the step that had
finished run again. A save is refused while the step has been given answers or updates that no checkpoint holds yet:
they would be lost, and the next answer would reach the wrong question.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.serde.types import RESUME, _DeltaSnapshot

from charm_checkpoint import clock
from charm_checkpoint.errors import (
    DeserializationError,
    ThreadBusyError,
    ThreadConflictError,
)
from charm_checkpoint.messages import same, to_dicts, to_messages, with_ids

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import (
        BaseCheckpointSaver,
        ChannelVersions,
        Checkpoint,
        CheckpointMetadata,
        CheckpointTuple,
        DeltaChannelHistory,
    )

__all__ = ["MessageHistory"]

_FORMAT = 4  # of the checkpoints LangGraph writes today
_COUNTERS = "counters_since_delta_snapshot"
_REMOVE_ALL = "__remove_all__"
_OVERWRITE = "__overwrite__"
# LangGraph's task id for what a `Command` brings to a step.
_INPUT_TASK = "00000000-0000-0000-0000-000000000000"

_RETRIES = 20
_FIRST_PAUSE = 0.01  # seconds; doubles up to
_LONGEST_PAUSE = 0.5


class _Thread(NamedTuple):
    """What was read of a thread."""

    thread_id: str
    head: CheckpointTuple | None
    stored: Sequence[Any]
    """Messages, or dicts where a graph keeps those. Belongs to the saver: not to be changed."""
    delta: bool
    """Whether the channel is a DeltaChannel."""


_Put = tuple["RunnableConfig", "Checkpoint", "CheckpointMetadata", "ChannelVersions"]


class MessageHistory:
    """The messages of threads, over any checkpointer.

    Two writers cannot overwrite each other where the checkpointer refuses the later one, as this project's does with
    `on_conflict="raise"`; over one that does not, the last one wins.

    Args:
        saver: Where the threads are.
        channel: The channel that holds the messages.
    """

    def __init__(self, saver: BaseCheckpointSaver[Any], *, channel: str = "messages") -> None:
        self._saver = saver
        self._channel = channel

    def load(
        self, thread_id: str, *, checkpoint_id: str | None = None, namespace: str = ""
    ) -> list[dict[str, Any]]:
        """Return the thread's messages, oldest first; an unknown thread has none.

        Args:
            thread_id: The thread.
            checkpoint_id: As they were at this checkpoint; by default the newest.
            namespace: The root graph's (`''`) or a subgraph's.

        Raises:
            DeserializationError: The channel holds something else than a list of messages.
        """
        return to_dicts(self._read(thread_id, checkpoint_id, namespace).stored)

    def save(self, thread_id: str, messages: Iterable[dict[str, Any] | BaseMessage]) -> None:
        """Make `messages` the thread's whole list; the same list again writes nothing.

        Raises:
            SerializationError: An element is neither a dict nor a message, or cannot be stored.
            ThreadConflictError: Another writer moved the thread on meanwhile.
            DeserializationError: The channel holds something else than a list of messages.
            ThreadBusyError: The graph is in the middle of a step that a save would spoil.
        """
        thread = self._read(thread_id)
        replaced = _replaced(thread, to_dicts(messages))
        if replaced is not None:
            self._saver.put(*self._update(thread, replaced))

    def begin(self, thread_id: str, messages: Iterable[dict[str, Any] | BaseMessage]) -> None:
        """Make `messages` the thread's list, unless it has begun already or somebody begins it meanwhile."""
        thread = self._read(thread_id)
        if thread.head is None:
            with suppress(ThreadConflictError):
                self._saver.put(*self._update(thread, with_ids(to_messages(messages))))

    def append(self, thread_id: str, messages: Iterable[dict[str, Any] | BaseMessage]) -> None:
        """Add to the end of the thread's list; of several writers at once, all are kept.

        Raises:
            SerializationError: An element is neither a dict nor a message, or cannot be stored.
            ThreadConflictError: Other writers got there first again and again.
            DeserializationError: The channel holds something else than a list of messages.
            ThreadBusyError: The graph is in the middle of a step that a save would spoil.
        """
        added = with_ids(to_messages(messages))
        for attempt in range(_RETRIES + 1) if added else ():
            thread = self._read(thread_id)
            try:
                self._saver.put(*self._update(thread, _extended(thread.stored, added)))
                return
            except ThreadConflictError:
                if attempt == _RETRIES:
                    raise
            time.sleep(_pause(attempt))

    async def aload(self, thread_id: str) -> list[dict[str, Any]]:
        """Like `load`."""
        return to_dicts((await self._aread(thread_id)).stored)

    async def asave(self, thread_id: str, messages: Iterable[dict[str, Any] | BaseMessage]) -> None:
        """Like `save`."""
        thread = await self._aread(thread_id)
        replaced = _replaced(thread, to_dicts(messages))
        if replaced is not None:
            await self._saver.aput(*self._update(thread, replaced))

    async def abegin(
        self, thread_id: str, messages: Iterable[dict[str, Any] | BaseMessage]
    ) -> None:
        """Like `begin`."""
        thread = await self._aread(thread_id)
        if thread.head is None:
            with suppress(ThreadConflictError):
                await self._saver.aput(*self._update(thread, with_ids(to_messages(messages))))

    async def aappend(
        self, thread_id: str, messages: Iterable[dict[str, Any] | BaseMessage]
    ) -> None:
        """Like `append`."""
        added = with_ids(to_messages(messages))
        for attempt in range(_RETRIES + 1) if added else ():
            thread = await self._aread(thread_id)
            try:
                await self._saver.aput(*self._update(thread, _extended(thread.stored, added)))
                return
            except ThreadConflictError:
                if attempt == _RETRIES:
                    raise
            await asyncio.sleep(_pause(attempt))

    # -- reading ---------------------------------------------------------------------------------------------------

    def _read(
        self, thread_id: str, checkpoint_id: str | None = None, namespace: str = ""
    ) -> _Thread:
        config = _config(thread_id, namespace)
        if checkpoint_id is not None:
            config["configurable"]["checkpoint_id"] = checkpoint_id
        head = self._saver.get_tuple(config)
        if head is None or not self._is_replayed(head):
            return self._thread(thread_id, head)
        found = self._saver.get_delta_channel_history(config=head.config, channels=[self._channel])
        return self._thread(thread_id, head, found[self._channel])

    async def _aread(self, thread_id: str) -> _Thread:
        head = await self._saver.aget_tuple(_config(thread_id))
        if head is None or not self._is_replayed(head):
            return self._thread(thread_id, head)
        found = await self._saver.aget_delta_channel_history(
            config=head.config, channels=[self._channel]
        )
        return self._thread(thread_id, head, found[self._channel])

    def _is_replayed(self, head: CheckpointTuple) -> bool:
        """Whether the value has to be put together from earlier checkpoints."""
        checkpoint = head.checkpoint
        return (
            self._channel in checkpoint["channel_versions"]
            and self._channel not in checkpoint["channel_values"]
        )

    def _thread(
        self,
        thread_id: str,
        head: CheckpointTuple | None,
        history: DeltaChannelHistory | None = None,
    ) -> _Thread:
        from langchain_core.messages import BaseMessage

        where = f"thread {thread_id!r}, channel {self._channel!r}"
        if history is not None:
            delta = True
            stored: Sequence[Any] = _replay(history, where)
        else:
            value = head.checkpoint["channel_values"].get(self._channel) if head else None
            delta = isinstance(value, _DeltaSnapshot)
            stored = _messages_in(value, where)
        for index, message in enumerate(stored):
            if not isinstance(message, (BaseMessage, dict)):
                raise DeserializationError(
                    f"{where} is no message history: its element {index} is a {type(message).__qualname__}. "
                    "If the messages are in another channel, name it"
                )
        return _Thread(thread_id, head, stored, delta)

    # -- writing ---------------------------------------------------------------------------------------------------

    def _update(self, thread: _Thread, messages: list[Any]) -> _Put:
        """What `put` has to store to make `messages` the value of the channel."""
        head, config = thread.head, _config(thread.thread_id)
        base: Mapping[str, Any] = {"v": _FORMAT, "versions_seen": {}}
        values: Mapping[str, Any] = {}
        versions: Mapping[str, Any] = {}
        metadata: dict[str, Any] = {"source": "update", "step": 0, "parents": {}}
        if head is not None:
            self._refuse_to_spoil(thread.thread_id, head)
            base = head.checkpoint
            values, versions = base["channel_values"], base["channel_versions"]
            config["configurable"]["checkpoint_id"] = base["id"]
            clock.observe(base["id"])
            metadata["step"] = head.metadata.get("step", -1) + 1
            counters = {
                c: (u, n + 1) for c, (u, n) in _counters(head).items() if c != self._channel
            }
            if counters:
                metadata[_COUNTERS] = counters
        version = self._saver.get_next_version(max(versions.values(), default=None), None)
        checkpoint = {
            **base,
            "id": str(uuid6(clock_seq=metadata["step"])),
            "ts": datetime.now(timezone.utc).isoformat(),
            "channel_values": {
                **values,
                self._channel: _DeltaSnapshot(messages) if thread.delta else messages,
            },
            "channel_versions": {**versions, self._channel: version},
            # Naming the channel here would have LangGraph look only for nodes that it triggers, and forget the ones
            # that were waiting.
            "updated_channels": None,
        }
        return (
            config,
            cast("Checkpoint", checkpoint),
            cast("CheckpointMetadata", metadata),
            {self._channel: version},
        )

    def _refuse_to_spoil(self, thread_id: str, head: CheckpointTuple) -> None:
        """Raise if a child of `head` would lose what its unfinished step was given, or apply it twice."""
        values = head.checkpoint["channel_values"]
        replayed = {c for c, v in values.items() if isinstance(v, _DeltaSnapshot)}
        replayed.update(_counters(head))
        replayed -= {self._channel}  # of this one, a save stores a snapshot
        for task_id, channel, _ in head.pending_writes or ():
            if task_id == _INPUT_TASK or channel == RESUME or channel in replayed:
                raise ThreadBusyError(
                    f"thread {thread_id!r}: a graph is in the middle of a step that was already given answers or "
                    f"updates (of {channel!r}); saving messages now would lose them. Nothing was stored. Let the graph "
                    "finish the step (`Command(resume=…)` or `invoke(None)`), or start its next turn, then save again"
                )


def _config(thread_id: str, namespace: str = "") -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": namespace}}


def _counters(head: CheckpointTuple) -> Mapping[str, tuple[int, int]]:
    """Of each DeltaChannel, how many updates and steps ago LangGraph stored its last snapshot."""
    return cast("Mapping[str, tuple[int, int]]", head.metadata.get(_COUNTERS) or {})


def _pause(attempt: int) -> float:
    return random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt))


# -- lists of messages -------------------------------------------------------------------------------------------------


def _replaced(thread: _Thread, wanted: list[dict[str, Any]]) -> list[Any] | None:
    """The list to store so that the thread shows as `wanted`, `None` if it does already.

    What is stored and shows as one of `wanted` is used again, with its id and all that its dict does not show.
    """
    stored = thread.stored
    shown = to_dicts(stored)
    if thread.head is not None and same(shown, wanted):
        return None
    unused: dict[str, list[Any]] = {}
    for dict_, message in zip(reversed(shown), reversed(stored), strict=True):
        unused.setdefault(_fingerprint(dict_), []).append(message)
    result: list[Any] = []
    for dict_ in wanted:
        if known := unused.get(_fingerprint(dict_)):
            result.append(known.pop())
        else:
            result += _as_stored(stored, with_ids(to_messages([dict_])))
    return result


def _extended(stored: Sequence[Any], added: list[BaseMessage]) -> list[Any]:
    return [*stored, *_as_stored(stored, added)]


def _as_stored(stored: Sequence[Any], messages: list[BaseMessage]) -> Sequence[Any]:
    """`messages` as the thread's graph keeps them: as dicts if that is all there is."""
    if stored and all(isinstance(m, dict) for m in stored):
        return to_dicts(messages)
    return messages


def _fingerprint(message: dict[str, Any]) -> str:
    return "\n".join(sorted(map(repr, message.items())))


def _messages_in(value: Any, where: str) -> Sequence[Any]:
    """The list in a channel's stored value."""
    if isinstance(value, _DeltaSnapshot):
        value = value.value
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise DeserializationError(
            f"{where} is no message history: it holds a {type(value).__qualname__}. "
            "If the messages are in another channel, name it"
        )
    return value


def _replay(history: DeltaChannelHistory, where: str) -> list[Any]:
    """Put a DeltaChannel's value together from its last stored value and the writes since."""
    merged: list[Any] = list(_messages_in(history.get("seed"), where))
    places = {_id_of(m): i for i, m in enumerate(merged)}
    for _, _, write in history["writes"]:
        overwritten, write = _unwrap_overwrite(write)
        if overwritten:
            merged, places = [], {}
            write = list(_messages_in(write, where))
        for message in _coerced(write, where):
            message_id = _id_of(message)
            place = places.get(message_id) if message_id is not None else None
            if getattr(message, "type", None) != "remove":
                if place is not None:
                    merged[place] = message
                else:
                    places[message_id] = len(merged)
                    merged.append(message)
            elif message_id == _REMOVE_ALL:
                merged, places = [], {}
            elif place is not None:
                merged[place] = None
                del places[message_id]
    return [m for m in merged if m is not None]


def _unwrap_overwrite(write: Any) -> tuple[bool, Any]:
    """Whether a write replaces the value, and with what. LangGraph writes its `Overwrite` in three ways."""
    if isinstance(write, dict):
        if write.keys() == {_OVERWRITE}:
            return True, write[_OVERWRITE]
        if write.get("type") == _OVERWRITE and "value" in write:
            return True, write["value"]
    elif getattr(write, "type", None) == _OVERWRITE:
        return True, write.value
    return False, write


def _coerced(write: Any, where: str) -> list[Any]:
    """The messages of one write: a message or a list of them, in any form that graphs accept."""
    from langchain_core.messages import BaseMessage, convert_to_messages

    messages: list[Any] = []
    for item in write if isinstance(write, list) else [write]:
        if isinstance(item, (BaseMessage, dict)):
            messages.append(item)
            continue
        try:
            messages += convert_to_messages([item])
        except (ValueError, NotImplementedError) as error:
            raise DeserializationError(
                f"{where} is no message history: a {type(item).__qualname__} was written to it. "
                "If the messages are in another channel, name it"
            ) from error
    return messages


def _id_of(message: Any) -> str | None:
    return message.get("id") if isinstance(message, dict) else getattr(message, "id", None)
