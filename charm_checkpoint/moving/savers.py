"""Any LangGraph saver as a source, by the interface that all of them have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from charm_checkpoint.backend import Entry, HeadRow
from charm_checkpoint.moving.foreign import FOREIGN_DEVICE, ForeignCheckpoint, write_rows
from charm_checkpoint.moving.source import Source, Thread

__all__ = ["from_saver"]

# Some savers cut a list that is asked for without a limit; none minds a large one.
_EVERYTHING = 1_000_000
_plain = JsonPlusSerializer()


def from_saver(saver: BaseCheckpointSaver[Any]) -> Source:
    """Make a source of any saver that can `list` and `get_tuple`.

    Values are loaded by the saver's own serializer and written by LangGraph's; where that is the saver's, too, the
    bytes are the same. The interface does not tell two things of pending writes: the place of each among its task's,
    and where the task stood. Both are made up so that the order stays.

    Args:
        saver: A synchronous one, set up. It is not closed.
    """
    return _SaverSource(saver)


class _SaverSource:
    def __init__(self, saver: BaseCheckpointSaver[Any]) -> None:
        self._saver = saver

    @property
    def name(self) -> str:
        return type(self._saver).__name__

    def threads(self) -> Iterator[str]:
        seen: set[str] = set()
        for found in self._saver.list(None, limit=_EVERYTHING):
            thread_id = str(found.config["configurable"]["thread_id"])
            if thread_id not in seen:
                seen.add(thread_id)
                yield thread_id

    def thread(self, thread_id: str) -> Thread | None:
        times = dict[str, tuple[str, float]]()
        created_at = 0.0
        for made_at, checkpoint_id, namespace in self._listed(thread_id):
            # To a saver without heads the greatest id is the newest.
            if (checkpoint_id, made_at) > times.get(namespace, ("", 0.0)):
                times[namespace] = checkpoint_id, made_at
            created_at = min(created_at or made_at, made_at)
        heads = [HeadRow(n, id, FOREIGN_DEVICE, at) for n, (id, at) in sorted(times.items())]
        return Thread(thread_id, created_at, tuple(heads)) if heads else None

    def entries(self, thread_id: str) -> Iterator[Entry]:
        # Only the ids are kept: some savers list newest first only.
        for _, checkpoint_id, namespace in sorted(self._listed(thread_id), key=lambda k: k[1:]):
            place = {"checkpoint_ns": namespace, "checkpoint_id": checkpoint_id}
            found = self._saver.get_tuple({"configurable": {"thread_id": thread_id, **place}})
            if found is not None:
                yield self._foreign(found).entry()

    def _listed(self, thread_id: str) -> Iterator[tuple[float, str, str]]:
        asked: RunnableConfig = {"configurable": {"thread_id": thread_id}}
        for found in self._saver.list(asked, limit=_EVERYTHING):
            foreign = self._foreign(found._replace(pending_writes=[]), values=False)
            yield foreign.made_at, foreign.checkpoint_id, foreign.namespace

    @staticmethod
    def _foreign(found: CheckpointTuple, *, values: bool = True) -> ForeignCheckpoint:
        place = found.config["configurable"]
        parent = ((found.parent_config or {}).get("configurable") or {}).get("checkpoint_id")
        loaded = found.checkpoint.get("channel_values") or {} if values else {}
        dumped = {channel: _plain.dumps_typed(value) for channel, value in loaded.items()}
        return ForeignCheckpoint(
            str(place["thread_id"]),
            place.get("checkpoint_ns") or "",
            str(place["checkpoint_id"]),
            parent,
            found.checkpoint,
            {channel: (type_, bytes(data)) for channel, (type_, data) in dumped.items()},
            found.metadata,
            write_rows(found.pending_writes or ()),
        )
