"""Stores: what a provider hands to an agent. A checkpointer, message history, and operations on threads."""

from __future__ import annotations

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from charm_checkpoint.config import number
from charm_checkpoint.errors import ConfigError

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
    from typing_extensions import Self

    from charm_checkpoint.backend import Backend, ThreadRow
    from charm_checkpoint.history import MessageHistory
    from charm_checkpoint.saver import CheckpointSaver

__all__ = ["BaseMemoryStore", "CheckpointStore", "SaverStore", "ThreadInfo", "store_from_saver"]

Message = dict[str, Any]

_PAGE = 100


class BaseMemoryStore(ABC):
    """The contract of `charm.memory` plugins, the same as charmos's own.

    A plugin needs `load_messages` and `save_messages`; the rest follows from them.

    Args:
        config: The provider's configuration, kept as `self.config`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # charmos takes only plugins that are subclasses of its own class of this name.
        if charmos := sys.modules.get("charm.core.storage"):
            charmos.BaseMemoryStore.register(cls)

    @abstractmethod
    def load_messages(self, thread_id: str) -> list[Message]:
        """Return the thread's messages, oldest first; an unknown thread has none."""

    @abstractmethod
    def save_messages(self, thread_id: str, messages: list[Message]) -> None:
        """Make `messages` the thread's whole list."""

    def append_messages(self, thread_id: str, messages: list[Message]) -> None:
        """Add to the end of the thread's list.

        This default reads and saves, so of two writers at once one can lose; stores built on a checkpointer keep both.
        """
        self.save_messages(thread_id, [*self.load_messages(thread_id), *messages])

    async def aload_messages(self, thread_id: str) -> list[Message]:
        """Like `load_messages`."""
        return await asyncio.to_thread(self.load_messages, thread_id)

    async def asave_messages(self, thread_id: str, messages: list[Message]) -> None:
        """Like `save_messages`."""
        await asyncio.to_thread(self.save_messages, thread_id, messages)

    async def aappend_messages(self, thread_id: str, messages: list[Message]) -> None:
        """Like `append_messages`."""
        await asyncio.to_thread(self.append_messages, thread_id, messages)

    def get_langgraph_checkpointer(self) -> BaseCheckpointSaver[Any] | None:
        """Return the checkpointer for compiled graphs, the same each time; `None` if this store has none."""
        return None

    def close(self) -> None:  # noqa: B027 - most plugins have nothing to release
        """Save what is pending and release everything. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class ThreadInfo(NamedTuple):
    """One thread in a listing."""

    thread_id: str
    status: str
    """`"interrupted"` (waits for an answer), `"failed"` (its last step raised), else `"idle"`."""
    updated_at: float
    """Seconds since the epoch, by the clock of the device that wrote last."""
    created_at: float
    device: str
    """The device that wrote the root graph's newest checkpoint."""
    checkpoint_id: str
    """That checkpoint."""
    namespaces: tuple[str, ...]


class SaverStore(BaseMemoryStore):
    """Message history over any `BaseCheckpointSaver`: what agents without a graph share with graphs.

    Args:
        saver: Where the threads are.
        config: Kept as `self.config`.
    """

    def __init__(
        self, saver: BaseCheckpointSaver[Any], config: dict[str, Any] | None = None
    ) -> None:
        super().__init__(config or {})
        self._saver = saver
        self._history: MessageHistory | None = None

    @property
    def messages(self) -> MessageHistory:
        """The message face of the threads."""
        if self._history is None:
            from charm_checkpoint.history import MessageHistory
            from charm_checkpoint.saver import CheckpointSaver

            saver = self.get_langgraph_checkpointer()
            if isinstance(saver, CheckpointSaver):
                saver = saver.narrowed({"messages"})
            self._history = MessageHistory(saver)
        return self._history

    def get_langgraph_checkpointer(self) -> BaseCheckpointSaver[Any]:
        return self._saver

    def load_messages(self, thread_id: str) -> list[Message]:
        return self.messages.load(thread_id)

    def save_messages(self, thread_id: str, messages: list[Message]) -> None:
        self.messages.save(thread_id, messages)

    def append_messages(self, thread_id: str, messages: list[Message]) -> None:
        """Add to the end of the thread's list; of two writers at once both are kept."""
        self.messages.append(thread_id, messages)

    async def aload_messages(self, thread_id: str) -> list[Message]:
        return await self.messages.aload(thread_id)

    async def asave_messages(self, thread_id: str, messages: list[Message]) -> None:
        await self.messages.asave(thread_id, messages)

    async def aappend_messages(self, thread_id: str, messages: list[Message]) -> None:
        await self.messages.aappend(thread_id, messages)

    def history(
        self, thread_id: str, *, namespace: str = "", limit: int | None = None
    ) -> Iterator[CheckpointTuple]:
        """The thread's checkpoints, newest first, branches included."""
        place = {"thread_id": thread_id, "checkpoint_ns": namespace}
        return self.get_langgraph_checkpointer().list({"configurable": place}, limit=limit)

    def delete(self, thread_id: str) -> None:
        """Remove a thread with its whole history."""
        self.get_langgraph_checkpointer().delete_thread(thread_id)


class CheckpointStore(SaverStore):
    """Everything, over a backend. To support another database, subclass and write `open_backend`.

    Args:
        config: `on_conflict`, `allow` and `device` as `CheckpointSaver` takes them; `retry_timeout`: seconds for which
            calls are repeated while the database is unavailable (30); and what `open_backend` reads.

    Raises:
        ConfigError: The configuration has a key that nobody reads, or a value that is not valid.
    """

    options: frozenset[str] = frozenset()
    """Configuration keys that `open_backend` reads."""

    common_options = frozenset({"on_conflict", "allow", "device", "retry_timeout"})
    """Configuration keys that every store reads."""

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        from charm_checkpoint.engine import RetryPolicy
        from charm_checkpoint.saver import CheckpointSaver

        config = dict(config or {})
        known = self.common_options | self.options
        if unknown := sorted(set(config) - known):
            raise ConfigError(
                f"{type(self).__name__} does not know {', '.join(unknown)}; it takes {', '.join(sorted(known))}"
            )
        self.config = config
        options = {
            k: config[k] for k in ("on_conflict", "allow", "device") if config.get(k) is not None
        }
        budget = number(config, "retry_timeout", RetryPolicy().budget, least=0)
        saver = CheckpointSaver(self.open_backend(), retry=RetryPolicy(budget), **options)
        super().__init__(saver, config)

    @abstractmethod
    def open_backend(self) -> Backend:
        """Make the backend that `self.config` describes. It is prepared on first use, not here."""

    def get_langgraph_checkpointer(self) -> CheckpointSaver:
        return self._saver  # type: ignore[return-value]

    def threads(self, *, limit: int | None = None) -> Iterator[ThreadInfo]:
        """All threads, the one written last first, read in pages."""
        engine = self.get_langgraph_checkpointer().engine
        after, left = None, limit
        while left is None or left > 0:
            size = _PAGE if left is None else min(_PAGE, left)
            rows = engine.call(
                lambda backend, size=size, after=after: backend.threads(limit=size, after=after)  # type: ignore[misc]
            )
            yield from map(_thread_info, rows)
            if len(rows) < size:
                return
            after = (rows[-1].updated_at, rows[-1].thread_id)
            left = None if left is None else left - len(rows)

    def thread(self, thread_id: str) -> ThreadInfo | None:
        """One thread, `None` if it has no checkpoints."""
        from charm_checkpoint.codec import valid_id

        thread_id = valid_id(thread_id, "thread_id")
        engine = self.get_langgraph_checkpointer().engine
        rows = engine.call(lambda backend: backend.threads(limit=1, thread_id=thread_id))
        return _thread_info(rows[0]) if rows else None

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything handed over is stored. False if `timeout` (seconds) ran out."""
        return self.get_langgraph_checkpointer().flush(timeout)

    def close(self) -> None:
        self.get_langgraph_checkpointer().close()


class _OpenedStore(CheckpointStore):
    """A store around a checkpointer that is already open."""

    def __init__(self, saver: CheckpointSaver, config: dict[str, Any]) -> None:
        SaverStore.__init__(self, saver, config)

    def open_backend(self) -> Backend:
        return self.get_langgraph_checkpointer().engine.backend


def store_from_saver(saver: BaseCheckpointSaver[Any], **config: Any) -> SaverStore:
    """Give any checkpointer message history; one of this project's own gets everything a `CheckpointStore` has."""
    from charm_checkpoint.saver import CheckpointSaver

    if isinstance(saver, CheckpointSaver):
        return _OpenedStore(saver, config)
    return SaverStore(saver, config)


def _thread_info(row: ThreadRow) -> ThreadInfo:
    head = row.heads[0]
    marks = (("__interrupt__", "interrupted"), ("__error__", "failed"))
    status = next((name for channel, name in marks if channel in row.pending), "idle")
    return ThreadInfo(
        row.thread_id,
        status,
        row.updated_at,
        row.created_at,
        head.device,
        head.checkpoint_id,
        tuple(h.namespace for h in row.heads),
    )
