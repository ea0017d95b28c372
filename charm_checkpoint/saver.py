"""LangGraph's checkpointer over any backend, for `invoke` and `ainvoke` alike.

Thin: each method prepares a request, hands it to the engine in one colour or the other, and reads the answer.
Everything that a copy of the saver must share (LangGraph copies it to add a graph's types) lives in `_Shared`.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import random
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from charm_checkpoint import clock, graph_types, retention
from charm_checkpoint.backend import (
    Backend,
    Entry,
    OnConflict,
    Outcome,
    PutCheckpoint,
    PutWrites,
    Scan,
    Snapshot,
)
from charm_checkpoint.codec import Codec, Place, delta_channels, forks, place_of, valid_id
from charm_checkpoint.device import device_name
from charm_checkpoint.encryption import Encryption
from charm_checkpoint.engine import Engine, RetryPolicy
from charm_checkpoint.errors import (
    CheckpointNotFoundError,
    CheckpointStoreError,
    ConfigError,
    ThreadConflictError,
    ThreadDeletedError,
)
from charm_checkpoint.fencing import Bounded, ReadLog
from charm_checkpoint.serializer import AllowedType, StrictSerializer

__all__ = ["CheckpointSaver"]

logger = logging.getLogger("charm_checkpoint")

_PAGE = 50
_random = random.SystemRandom()
_POLICIES = ("raise", "branch", "overwrite")


@dataclass(frozen=True)
class _Shared:
    engine: Engine
    on_conflict: OnConflict
    device: str
    reads: ReadLog = field(default_factory=ReadLog)
    refused: Bounded[tuple[str, str, str], CheckpointStoreError] = field(
        default_factory=lambda: Bounded(1000)
    )
    """Checkpoints that were refused, so that writes which come for them later are too."""
    deltas: Bounded[tuple[str, str], frozenset[str]] = field(
        default_factory=lambda: Bounded(100_000)
    )
    """By thread and namespace, the channels that were seen to be DeltaChannels."""


class CheckpointSaver(BaseCheckpointSaver[str]):
    """Keeps a graph's threads in a backend: pass it to `compile(checkpointer=…)`.

    One object for synchronous and asynchronous use, from any thread, task and event loop, also across `os.fork`. The
    first use prepares the backend. What was answered is durable.

    A run's step is stored only if no other writer moved the thread on since the run read it: see `on_conflict`.

    Args:
        backend: Where rows go. The saver closes it.
        on_conflict: `"raise"`: the step is refused with `ThreadConflictError`. `"branch"`: it is stored beside the
            thread, which stays where the other writer took it. `"overwrite"`: it becomes the newest, as with other
            savers.
        allow: Types that may be read back beside LangGraph's, LangChain's and those of the graph's state:
            `"module:Class"`, `(module, class)` or the class.
        device: This device's name, shown to others; by default `$CHARM_DEVICE` or the host's name.
        serde: Another serializer; `allow` does not apply to it.
        retry: How long to repeat calls while the backend is unavailable.
        encryption: With what channel values and pending writes are encrypted; by default they are not.

    Raises:
        ConfigError: An argument is not valid.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        on_conflict: OnConflict = "raise",
        allow: Iterable[AllowedType] = (),
        device: str | None = None,
        serde: SerializerProtocol | None = None,
        retry: RetryPolicy | None = None,
        encryption: Encryption | None = None,
    ) -> None:
        if on_conflict not in _POLICIES:
            raise ConfigError(f"on_conflict={on_conflict!r} is not one of {', '.join(_POLICIES)}")
        super().__init__(serde=serde or StrictSerializer(allow=allow))
        graph_types.announce_graph_types()
        through = None if encryption is None else encryption.over
        engine = Engine(backend, retry=retry, through=through)
        self._shared = _Shared(engine, on_conflict, device_name(device))
        self._channels: Collection[str] | None = None

    def narrowed(self, channels: Collection[str]) -> CheckpointSaver:
        """A copy for somebody who uses only these channels, whatever graph the thread belongs to.

        In the others a type that is not allowed is no error: such values come as bare fields and are never written
        back. A conflict is raised whatever this saver's `on_conflict` is.
        """
        clone = copy.copy(self)
        clone._shared = dataclasses.replace(self._shared, on_conflict="raise")
        clone._channels = channels
        return clone

    @property
    def engine(self) -> Engine:
        """What runs the backend; shared by all copies of this saver."""
        return self._shared.engine

    @property
    def device(self) -> str:
        """This device's name."""
        return self._shared.device

    @property
    def codec(self) -> Codec:
        """Encodes and decodes with this copy's serializer."""
        return Codec(self.serde, channels=self._channels)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything handed over is stored. False if `timeout` (seconds) ran out."""
        return self.engine.flush(timeout)

    def close(self) -> None:
        """Flush and release the backend; this saver and its copies cannot be used any more."""
        self.engine.close()

    # -- reading one -----------------------------------------------------------------------------------------------

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Read the checkpoint the config names, or the newest of its thread and namespace."""
        place = place_of(config)
        return self.engine.call(lambda backend: self._read(backend, place, config))

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Like `get_tuple`."""
        place = place_of(config)
        return await self.engine.acall(lambda backend: self._read(backend, place, config))

    def _read(
        self, backend: Backend, place: Place, config: RunnableConfig
    ) -> CheckpointTuple | None:
        snapshot = backend.read(*place)
        clock.observe(snapshot.deleted_through)
        clock.observe(snapshot.head)
        by_id = place.checkpoint_id is not None
        if snapshot.checkpoint is None:
            if not by_id:
                self._shared.reads.read_empty(place.thread_id, place.namespace)
            return None
        clock.observe(snapshot.checkpoint.checkpoint_id)
        found = self.codec.tuple(
            place.thread_id, place.namespace, snapshot, config if by_id else None, may_fork=by_id
        )
        deltas = delta_channels(found.checkpoint, found.metadata)
        self._note_deltas(place.thread_id, place.namespace, deltas)
        return found

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Read what DeltaChannels are rebuilt from, in one round trip."""
        if not channels:
            return {}
        return self.engine.call(self._delta_history(config, channels))

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Like `get_delta_channel_history`."""
        if not channels:
            return {}
        return await self.engine.acall(self._delta_history(config, channels))

    def _delta_history(
        self, config: RunnableConfig, channels: Sequence[str]
    ) -> Callable[[Backend], Mapping[str, DeltaChannelHistory]]:
        place = place_of(config)

        def read(backend: Backend) -> Mapping[str, DeltaChannelHistory]:
            self._note_deltas(place.thread_id, place.namespace, channels)
            ancestors = backend.lineage(*place, channels)
            return self.codec.delta_history(place.thread_id, ancestors, channels)

        return read

    # -- listing ---------------------------------------------------------------------------------------------------

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """List checkpoints, newest first, reading in pages as the caller goes on.

        Args:
            config: A thread, and if given one namespace and checkpoint of it; `None` for all threads.
            filter: Metadata entries that must be equal.
            before: Only checkpoints with ids below this one's.
            limit: At most so many.
        """
        listing = _Listing(self, config, filter, before, limit)
        while not listing.done:
            yield from listing.take(self.engine.call(listing.read))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Like `list`."""
        listing = _Listing(self, config, filter, before, limit)
        while not listing.done:
            for found in listing.take(await self.engine.acall(listing.read)):
                yield found

    # -- writing ---------------------------------------------------------------------------------------------------

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint and make it the newest; durable on return.

        Raises:
            ThreadConflictError: Another writer moved the thread on first (`on_conflict="raise"`).
            ThreadDeletedError: The thread was deleted after the run read it.
            CheckpointNotFoundError: The checkpoint it grew from was pruned meanwhile.
            SerializationError: A value cannot be stored.
        """
        unit = self._unit(config, checkpoint, metadata, new_versions)
        return self._stored(unit, self.engine.write(unit))

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Like `put`."""
        unit = self._unit(config, checkpoint, metadata, new_versions)
        return self._stored(unit, await self.engine.awrite(unit))

    def _unit(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> PutCheckpoint:
        shared = self._shared
        place, row, blobs = self.codec.checkpoint(
            config, checkpoint, metadata, new_versions, device=shared.device
        )
        self._note_deltas(place.thread_id, place.namespace, delta_channels(checkpoint, metadata))
        fenced = not forks(config) and shared.reads.fenced(*place)
        return PutCheckpoint(
            place.thread_id, place.namespace, row, blobs, fenced, shared.on_conflict
        )

    def _stored(self, unit: PutCheckpoint, outcome: Outcome) -> RunnableConfig:
        row = unit.row
        key = (unit.thread_id, unit.namespace, row.checkpoint_id)
        error: CheckpointStoreError | None = None
        if outcome.status == "deleted":
            error = ThreadDeletedError(unit.thread_id, outcome.deleted_at)
        elif outcome.status == "orphaned":
            error = CheckpointNotFoundError(
                f"thread {unit.thread_id!r}: checkpoint {row.parent_id}, which this step grew from, is gone: pruned, "
                "or deleted with its run. Nothing of this step was stored. Read the thread again and repeat the turn"
            )
        elif outcome.status == "conflict":
            error = _conflict(unit.thread_id, unit.namespace, row.parent_id, outcome)
        elif outcome.status == "branched" and outcome.head is not None:
            logger.warning(
                "thread %r was moved on by device %r; checkpoint %s was stored as a branch beside its head %s",
                unit.thread_id,
                outcome.head.device,
                row.checkpoint_id,
                outcome.head.checkpoint_id,
            )
        if error is not None:
            self._shared.refused.set(key, error)
            raise error
        return {
            "configurable": {
                "thread_id": unit.thread_id,
                "checkpoint_ns": unit.namespace,
                "checkpoint_id": row.checkpoint_id,
            }
        }

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store a task's writes beside their checkpoint; durable on return.

        Raises:
            ThreadConflictError, ThreadDeletedError: The checkpoint they belong to was refused.
            SerializationError: A value cannot be stored.
        """
        unit = self._writes_unit(config, writes, task_id, task_path)
        self._wrote(unit, self.engine.write(unit))

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Like `put_writes`."""
        unit = self._writes_unit(config, writes, task_id, task_path)
        self._wrote(unit, await self.engine.awrite(unit))

    def _writes_unit(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str,
    ) -> PutWrites:
        place = place_of(config)
        checkpoint_id = valid_id(place.checkpoint_id, "checkpoint_id")
        if error := self._shared.refused.get((place.thread_id, place.namespace, checkpoint_id)):
            raise error
        rows = self.codec.writes(place, writes, task_id, task_path)
        # A DeltaChannel is rebuilt from writes, so those of a run that was overtaken must not be there. LangGraph
        # stores them before the next checkpoint; other writes may rightly come after it.
        shared = self._shared
        deltas = shared.deltas.get((place.thread_id, place.namespace)) or frozenset()
        fenced = (
            shared.on_conflict == "raise"
            and not forks(config)
            and any(channel in deltas for channel, _ in writes)
        )
        return PutWrites(place.thread_id, place.namespace, checkpoint_id, rows, fenced)

    @staticmethod
    def _wrote(unit: PutWrites, outcome: Outcome) -> None:
        if outcome.status == "deleted":
            raise ThreadDeletedError(unit.thread_id, outcome.deleted_at)
        if outcome.status == "conflict":
            raise _conflict(unit.thread_id, unit.namespace, unit.checkpoint_id, outcome)

    def _note_deltas(self, thread_id: str, namespace: str, channels: Iterable[str]) -> None:
        """Remember which channels of a thread are DeltaChannels, as far as is seen."""
        key = (thread_id, namespace)
        known = self._shared.deltas.get(key) or frozenset()
        if more := known.union(channels):
            self._shared.deltas.set(key, more)

    # -- deleting, copying, pruning --------------------------------------------------------------------------------

    def delete_thread(self, thread_id: str) -> None:
        """Remove a thread. Late writes of runs that began before are refused; a fresh run starts it anew."""
        self.engine.call(self._delete(thread_id))

    async def adelete_thread(self, thread_id: str) -> None:
        """Like `delete_thread`."""
        await self.engine.acall(self._delete(thread_id))

    @staticmethod
    def _delete(thread_id: str) -> Callable[[Backend], bool]:
        thread_id = valid_id(thread_id, "thread_id")
        return lambda backend: backend.delete(thread_id, at=time.time())

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread with its whole history.

        Raises:
            ThreadNotFoundError: The source has no checkpoints.
            ThreadExistsError: The target has some.
        """
        self.engine.call(self._copy(source_thread_id, target_thread_id), repeat=False)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Like `copy_thread`."""
        await self.engine.acall(self._copy(source_thread_id, target_thread_id), repeat=False)

    @staticmethod
    def _copy(source: str, target: str) -> Callable[[Backend], None]:
        source, target = valid_id(source, "thread_id"), valid_id(target, "thread_id")
        return lambda backend: backend.copy(source, target, at=time.time())

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Remove the checkpoints that the named runs made, in all threads, with their writes."""
        self.engine.call(lambda backend: retention.drop_runs(backend, run_ids))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Like `delete_for_runs`."""
        await self.engine.acall(lambda backend: retention.drop_runs(backend, run_ids))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Remove history: `"keep_latest"` keeps each namespace's newest checkpoint, `"delete"` nothing.

        What a DeltaChannel of the newest checkpoint is rebuilt from is kept.

        Raises:
            ConfigError: Another strategy.
        """
        self.engine.call(self._prune(thread_ids, strategy))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Like `prune`."""
        await self.engine.acall(self._prune(thread_ids, strategy))

    def _prune(self, thread_ids: Sequence[str], strategy: str) -> Callable[[Backend], None]:
        ids = [valid_id(t, "thread_id") for t in thread_ids]
        if strategy not in ("keep_latest", "delete"):
            raise ConfigError(f"prune strategy {strategy!r} is not one of keep_latest, delete")

        def prune(backend: Backend) -> None:
            for thread_id in ids:
                if strategy == "delete":
                    backend.delete(thread_id, at=time.time())
                else:
                    retention.keep_latest(backend, thread_id)

        return prune

    # -- LangGraph's odds and ends ---------------------------------------------------------------------------------

    def get_next_version(self, current: str | int | float | None, channel: None) -> str:
        """Name a channel's next version: a counter, and a random part that keeps branches apart."""
        if current is None:
            count = 0
        elif isinstance(current, str):
            count = int(current.split(".")[0])
        else:
            count = int(current)
        # Not the program's own generator: two runs that seed it alike would give different values one name.
        return f"{count + 1:032}.{_random.random():016}"


def _conflict(
    thread_id: str, namespace: str, expected: str | None, outcome: Outcome
) -> ThreadConflictError:
    head = outcome.head
    actual, device, moved_at = ("", "", 0.0) if head is None else head[1:]
    return ThreadConflictError(thread_id, namespace, expected, actual, device, moved_at)


class _Listing:
    """The state of one `list`: which page is next, how many more are wanted."""

    def __init__(
        self,
        saver: CheckpointSaver,
        config: RunnableConfig | None,
        filter: dict[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> None:
        configurable = (config or {}).get("configurable") or {}
        place = place_of(config) if config else Place(None, "", None)  # type: ignore[arg-type]
        named_namespace = configurable.get("checkpoint_ns") is not None
        before_id = (before or {}).get("configurable", {}).get("checkpoint_id")
        self._saver = saver
        self._filter = filter or {}
        self._left = limit
        # A subgraph's replay asks like this for where to go on from; what it finds may be built on.
        self._replay = before_id is not None and limit == 1 and bool(place.namespace)
        self._scan = Scan(
            thread_id=place.thread_id,
            namespace=place.namespace if named_namespace else None,
            checkpoint_id=place.checkpoint_id,
            before=before_id,
            limit=min(_PAGE, limit) if limit and not filter else _PAGE,
            values=not filter,
        )
        self.done = limit is not None and limit <= 0

    def read(self, backend: Backend) -> list[CheckpointTuple]:
        page = backend.scan(self._scan)
        if page.next is None:
            self.done = True
        else:
            self._scan = self._scan._replace(after=page.next)
        found = [self._tuple(backend, e) for e in page.entries if self._matches(e.snapshot)]
        if self._replay and self.done and not found:
            self._saver._shared.reads.replayed_nothing(
                self._scan.thread_id or "", self._scan.namespace or ""
            )
        return found

    def _tuple(self, backend: Backend, entry: Entry) -> CheckpointTuple:
        snapshot = entry.snapshot
        if not self._scan.values and snapshot.checkpoint is not None:
            # Filtered: only what matched is read whole. The head stays as the page saw it.
            checkpoint_id = snapshot.checkpoint.checkpoint_id
            whole = backend.read(entry.thread_id, entry.namespace, checkpoint_id)
            snapshot = (whole if whole.checkpoint else snapshot)._replace(head=snapshot.head)
        return self._saver.codec.tuple(
            entry.thread_id, entry.namespace, snapshot, may_fork=self._replay
        )

    def take(self, found: list[CheckpointTuple]) -> list[CheckpointTuple]:
        if self._left is None:
            return found
        found = found[: self._left]
        self._left -= len(found)
        if self._left <= 0:
            self.done = True
        return found

    def _matches(self, snapshot: Snapshot) -> bool:
        if not self._filter:
            return True
        assert snapshot.checkpoint is not None
        metadata = Codec.metadata(snapshot.checkpoint)
        return all(metadata.get(key) == value for key, value in self._filter.items())
