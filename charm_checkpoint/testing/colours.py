"""Both colours of a saver and of a graph, behind asynchronous names, so that each test is written once."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Literal

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.base.id import uuid6
from langgraph.pregel import Pregel
from langgraph.types import StateSnapshot

from charm_checkpoint.backend import OnConflict
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.testing.fixtures import BackendFixtures

Colour = Literal["async", "sync"]
Durability = Literal["sync", "async", "exit"]
Saver = BaseCheckpointSaver[Any]

COLOURS: tuple[Colour, ...] = ("async", "sync")
DURABILITIES: tuple[Durability, ...] = ("sync", "async", "exit")


class SyncFace(BaseCheckpointSaver[Any]):
    """The synchronous half of a saver under the asynchronous names: LangGraph's suite calls only those."""

    def __init__(self, saver: Saver) -> None:
        super().__init__(serde=saver.serde)
        self._saver = saver

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self._saver.get_tuple(config)

    async def alist(
        self, config: RunnableConfig | None, **options: Any
    ) -> AsyncIterator[CheckpointTuple]:
        for found in self._saver.list(config, **options):
            yield found

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return self._saver.put(config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        self._saver.put_writes(config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        self._saver.delete_thread(thread_id)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        self._saver.delete_for_runs(run_ids)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        self._saver.copy_thread(source_thread_id, target_thread_id)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        self._saver.prune(thread_ids, strategy=strategy)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return self._saver.get_delta_channel_history(config=config, channels=channels)


class Driver:
    """Runs a graph on one thread, in one colour and durability."""

    def __init__(
        self,
        graph: Pregel[Any, Any, Any, Any],
        colour: Colour,
        durability: Durability = "async",
        thread: str = "thread",
    ) -> None:
        self._graph = graph
        self._colour = colour
        self._durability: Durability = durability
        self.config: RunnableConfig = {"configurable": {"thread_id": thread}}

    async def invoke(self, input: Any, config: RunnableConfig | None = None) -> Any:
        config = config or self.config
        if self._colour == "async":
            return await self._graph.ainvoke(input, config, durability=self._durability)
        return self._graph.invoke(input, config, durability=self._durability)

    async def state(
        self, config: RunnableConfig | None = None, *, subgraphs: bool = False
    ) -> StateSnapshot:
        config = config or self.config
        if self._colour == "async":
            return await self._graph.aget_state(config, subgraphs=subgraphs)
        return self._graph.get_state(config, subgraphs=subgraphs)

    async def update(
        self, values: Any, config: RunnableConfig | None = None, *, as_node: str | None = None
    ) -> RunnableConfig:
        config = config or self.config
        if self._colour == "async":
            return await self._graph.aupdate_state(config, values, as_node=as_node)
        return self._graph.update_state(config, values, as_node=as_node)

    async def bulk_update(self, supersteps: Sequence[Sequence[Any]]) -> RunnableConfig:
        if self._colour == "async":
            return await self._graph.abulk_update_state(self.config, supersteps)
        return self._graph.bulk_update_state(self.config, supersteps)

    async def history(self) -> list[StateSnapshot]:
        """All states of the root graph, newest first."""
        if self._colour == "async":
            return [state async for state in self._graph.aget_state_history(self.config)]
        return list(self._graph.get_state_history(self.config))


class ColourFixtures(BackendFixtures):
    """Savers in both colours; a test that takes `colour`, or one of these, runs in each."""

    @pytest.fixture(params=COLOURS)
    def colour(self, request: pytest.FixtureRequest) -> Colour:
        """One colour, then the other."""
        colour: Colour = request.param
        return colour

    @pytest.fixture
    def face(self, saver: CheckpointSaver, colour: Colour) -> Saver:
        """The laptop's saver, behind asynchronous names."""
        return face_of(saver, colour)

    @pytest.fixture
    def phone_face(self, phone: CheckpointSaver, colour: Colour) -> Saver:
        """The phone's saver, behind asynchronous names."""
        return face_of(phone, colour)

    @pytest.fixture(params=["raise", "branch", "overwrite"])
    def on_conflict(self, request: pytest.FixtureRequest) -> OnConflict:
        """Each policy."""
        policy: OnConflict = request.param
        return policy

    @pytest.fixture
    def tablet(self, ready: Any, on_conflict: OnConflict) -> Iterator[CheckpointSaver]:
        """The saver of a third device, with one policy after the other."""
        backend = self.reopen(ready) or ready
        saver = CheckpointSaver(backend, device="tablet", on_conflict=on_conflict)
        yield saver
        saver.close()


def needs_context(colour: Colour) -> None:
    """Skip where nodes cannot look up the run they are in, as `interrupt` does."""
    if colour == "async" and sys.version_info < (3, 11):
        pytest.skip("before Python 3.11, LangGraph hands nodes under ainvoke no run to look up")


def face_of(saver: CheckpointSaver, colour: Colour) -> Saver:
    """A saver whose asynchronous names call the given colour."""
    return saver if colour == "async" else SyncFace(saver)


def place(
    thread: str = "thread", checkpoint_id: str | None = None, namespace: str = ""
) -> RunnableConfig:
    """A config that names a place."""
    configurable = {"thread_id": thread, "checkpoint_ns": namespace}
    if checkpoint_id is not None:
        configurable["checkpoint_id"] = checkpoint_id
    return {"configurable": configurable}


def id_of(config: RunnableConfig) -> str:
    """The checkpoint a config names."""
    checkpoint_id: str = config["configurable"]["checkpoint_id"]
    return checkpoint_id


async def grow(
    face: Saver,
    on: RunnableConfig,
    values: Mapping[str, Any] | None = None,
    *,
    checkpoint_id: str | None = None,
    **metadata: Any,
) -> RunnableConfig:
    """Put a checkpoint on the one a config names, with new `values`."""
    values = dict(values or {})
    checkpoint_id = checkpoint_id or str(uuid6(clock_seq=-1))
    versions: ChannelVersions = dict.fromkeys(values, checkpoint_id)
    checkpoint = Checkpoint(
        v=4,
        id=checkpoint_id,
        ts=datetime.now(timezone.utc).isoformat(),
        channel_values=values,
        channel_versions=versions,
        versions_seen={},
        updated_channels=None,
    )
    full: Any = {"source": "loop", "step": 0, "parents": {}, **metadata}
    return await face.aput(on, checkpoint, full, versions)


async def newest(face: Saver, config: RunnableConfig | None = None) -> CheckpointTuple:
    """Read a checkpoint that is there."""
    found = await face.aget_tuple(config or place())
    assert found is not None
    return found


async def listed(face: Saver, config: RunnableConfig | None = None, **options: Any) -> list[str]:
    """The ids that `alist` gives."""
    return [t.checkpoint["id"] async for t in face.alist(config or place(), **options)]
