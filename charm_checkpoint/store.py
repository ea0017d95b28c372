"""Stores: what a provider hands to an agent. A checkpointer, message history, and operations on threads."""

from __future__ import annotations

import asyncio
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from charm_checkpoint.config import mask, number
from charm_checkpoint.errors import ConfigError, ThreadNotFoundError
from charm_checkpoint.policy import RetentionPolicy

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
    from typing_extensions import Self

    from charm_checkpoint.backend import Backend, Compacted, Labels, Status, ThreadRow
    from charm_checkpoint.erasure import Receipt, Site, Subject
    from charm_checkpoint.history import MessageHistory
    from charm_checkpoint.moving import Source
    from charm_checkpoint.retention import PruneReport
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
    status: Status
    """`"interrupted"` (waits for an answer), `"failed"` (its last step raised), else `"idle"`."""
    updated_at: float
    """Seconds since the epoch, by the clock of the device that wrote last."""
    created_at: float
    device: str
    """The device that wrote the root graph's newest checkpoint."""
    checkpoint_id: str
    """That checkpoint."""
    namespaces: tuple[str, ...]
    labels: Mapping[str, str | int | bool]
    """What it can be found by: texts, whole numbers and booleans of that checkpoint's metadata."""


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

    def delete(self, thread_id: str) -> Receipt | None:
        """Remove a thread with its whole history.

        Returns:
            What was found, and where; `None` from a saver that cannot tell.
        """
        self.get_langgraph_checkpointer().delete_thread(thread_id)
        return None


class CheckpointStore(SaverStore):
    """Everything, over a backend. To support another database, subclass and write `open_backend`.

    Args:
        config: `on_conflict`, `allow` and `device` as `CheckpointSaver` takes them; `retry_timeout`: seconds for which
            calls are repeated while the database is unavailable (30); `encryption`: `{"key": …}`, as `Encryption` takes
            it, or an `Encryption`; `retention`: what `prune` keeps, as `RetentionPolicy` takes it, durations as
            `"30d"`, too; and what `open_backend` reads.

    Raises:
        ConfigError: The configuration has a key that nobody reads, or a value that is not valid.
    """

    options: frozenset[str] = frozenset()
    """Configuration keys that `open_backend` reads."""

    common_options = frozenset(
        {"on_conflict", "allow", "device", "encryption", "retention", "retry_timeout"}
    )
    """Configuration keys that every store reads."""

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        from charm_checkpoint.encryption import Encryption
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
        if config.get("encryption") is not None:
            options["encryption"] = Encryption.of(config["encryption"])
        self._retention = RetentionPolicy.of(config.get("retention") or {})
        budget = number(config, "retry_timeout", RetryPolicy().budget, least=0)
        saver = CheckpointSaver(self.open_backend(), retry=RetryPolicy(budget), **options)
        super().__init__(saver, config)

    @abstractmethod
    def open_backend(self) -> Backend:
        """Make the backend that `self.config` describes. It is prepared on first use, not here."""

    def get_langgraph_checkpointer(self) -> CheckpointSaver:
        return self._saver  # type: ignore[return-value]

    def threads(
        self,
        *,
        limit: int | None = None,
        status: Status | None = None,
        labels: Labels | None = None,
    ) -> Iterator[ThreadInfo]:
        """List threads, the one written last first; read in pages.

        Args:
            limit: How many at most.
            status: Only those that are `"interrupted"`, `"failed"` or `"idle"`.
            labels: Only those that have all of these among their `labels`: what the metadata of their newest checkpoint
                holds, such as `{"user": "u-17"}` after runs with `config={"metadata": {"user": "u-17"}, …}`.

        Raises:
            ConfigError: No thread can be found by such a status or label.
        """
        _check_query(status, labels)
        return self._threads(limit, status, labels)

    def _threads(
        self, limit: int | None, status: Status | None, labels: Labels | None
    ) -> Iterator[ThreadInfo]:
        from charm_checkpoint.backend import ThreadQuery

        engine = self.get_langgraph_checkpointer().engine
        after, left = None, limit
        while left is None or left > 0:
            size = _PAGE if left is None else min(_PAGE, left)
            query = ThreadQuery(size, after, status=status, labels=labels)
            rows = engine.call(lambda backend, query=query: backend.threads(query))  # type: ignore[misc]
            yield from map(_thread_info, rows)
            if len(rows) < size:
                return
            after = (rows[-1].updated_at, rows[-1].thread_id)
            left = None if left is None else left - len(rows)

    def thread(self, thread_id: str) -> ThreadInfo | None:
        """One thread, `None` if it has no checkpoints."""
        from charm_checkpoint.backend import ThreadQuery
        from charm_checkpoint.codec import valid_id

        query = ThreadQuery(1, thread_id=valid_id(thread_id, "thread_id"))
        engine = self.get_langgraph_checkpointer().engine
        rows = engine.call(lambda backend: backend.threads(query))
        return _thread_info(rows[0]) if rows else None

    def source(self) -> Source:
        """What copies read this store's threads from."""
        from charm_checkpoint.moving import BackendSource

        return BackendSource(self.get_langgraph_checkpointer().engine)

    def fork(self, thread_id: str, new_id: str, *, at: str | None = None) -> ThreadInfo:
        """Make a new thread of what led to a checkpoint of another, which stays as it is.

        The new one goes on from that checkpoint, with its history and what subgraphs did in it; other branches, and
        what came after it, are left out. Where the thread went on from there, the new one stands before that step:
        results of its tasks and answers to its questions are not taken along, the questions are.

        Args:
            thread_id: The thread.
            new_id: The id of the new one.
            at: A checkpoint of the root graph, by its id or how that begins; `None` for the newest.

        Raises:
            ThreadNotFoundError: There is no such thread.
            CheckpointNotFoundError: It has no such checkpoint, or several whose id begins so.
            ThreadExistsError: The new thread is there already.
        """
        from charm_checkpoint.moving import fork_thread

        saver = self.get_langgraph_checkpointer()
        fork_thread(saver.engine, thread_id, new_id, at=at, device=saver.device)
        found = self.thread(new_id)
        if found is None:
            raise ThreadNotFoundError(f"thread {new_id!r} was deleted as soon as it was made")
        return found

    def prune(
        self,
        policy: RetentionPolicy | Mapping[str, Any] | None = None,
        *,
        threads: Sequence[str] | None = None,
        dry_run: bool = False,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> PruneReport:
        """Remove what a retention policy does not keep, beside running agents. Nothing else prunes by itself.

        Args:
            policy: What to keep, or a mapping of its limits; by default the `retention` of this store's config.
            threads: Only these.
            dry_run: Remove nothing, and tell what would go.
            on_progress: Called with how many threads are done, and of how many.

        Raises:
            ConfigError: There is no policy, or it is not valid.
            ThreadNotFoundError: One of `threads` has no checkpoints.
        """
        from charm_checkpoint.retention import prune

        limits = self._retention if policy is None else RetentionPolicy.of(policy)
        if not limits:
            raise ConfigError(
                "nothing says what to keep: give a RetentionPolicy, or put retention: {keep_last: 20} into the config"
            )
        engine = self.get_langgraph_checkpointer().engine
        return prune(engine, limits, threads, dry_run, on_progress)

    def delete(self, thread_id: str, *, timeout: float = 0.0) -> Receipt:
        """Remove a thread with its whole history in every place this store keeps it in, and look whether it is gone.

        What it held is in a file's free pages until they are used again: `erase` leaves no byte.

        Args:
            thread_id: The thread.
            timeout: Seconds to wait until the store behind a replica knows. By default that is told in the background,
                and the receipt says for that place that it is not done yet.

        Returns:
            What was found and where; `done` is false where something is left, or nobody could be asked, and where there
            never was such a thread.

        Raises:
            BackendError: It is not removed, or (`BackendUnavailable`) that is not known.
        """
        from charm_checkpoint.erasure import erase

        return erase(self, (thread_id,), {}, timeout=timeout, strict=True)

    def erase(
        self,
        *threads: str,
        labels: Subject | None = None,
        timeout: float = 30.0,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> Receipt:
        """Delete all of a subject's threads and their bytes in every place this store keeps them in, and look after it.

        Of a replica these are this device's file and the store behind. Other devices delete their copies when they
        next ask for the threads. What a database server keeps in its own logs and backups is not reached.

        Args:
            threads: These.
            labels: And those that `threads_of` finds.
            timeout: Seconds to wait until the store behind a replica has it.
            on_progress: Called with how many threads are deleted, and of how many.

        Returns:
            What was found and where; `done` is false where something is left or failed, or nobody could be asked; where
            nothing has such labels, or a checkpoint's metadata is damaged; and where there never was such a thread.

        Raises:
            ConfigError: Neither threads nor labels are given, or there cannot be such labels.
            BackendError: There is no place that can be asked which threads have the labels.
        """
        if not threads and not labels:
            raise ConfigError("name the threads to erase, or labels that they have")
        from charm_checkpoint.erasure import erase

        labels = labels or {}
        _check_subject(labels)
        return erase(
            self, threads, labels, timeout=timeout, overwrite=True, on_progress=on_progress
        )

    def threads_of(
        self, labels: Subject, *, on_looked: Callable[[int], object] | None = None
    ) -> list[str]:
        """The ids of all threads of a subject: any of their checkpoints, in any place, has all of some labels.

        Also of those that have others by now, of branches, and of what a copy that broke off has left, which no other
        listing shows. To tell, the metadata of every checkpoint in the store is read.

        Args:
            labels: As for `threads`; of several values in a tuple one: `{"user": (17, "17")}`.
            on_looked: Called now and then with how many checkpoints were looked at.

        Raises:
            ConfigError: There are no labels, or cannot be such ones.
            DeserializationError: The metadata of a checkpoint is damaged.
            BackendUnavailable: One of the places cannot be asked.
        """
        from charm_checkpoint.erasure import find

        if not labels:
            raise ConfigError("name labels that the threads have")
        _check_subject(labels)
        found = find(self, labels, on_looked)
        for error in found.errors.values():
            raise error
        return list(found.threads)

    def _remove(self, thread_id: str) -> bool:
        """Remove a thread with everything of it, as `delete` does before it looks. False if there was nothing."""
        from charm_checkpoint.codec import valid_id

        thread_id = valid_id(thread_id, "thread_id")
        engine = self.get_langgraph_checkpointer().engine
        return engine.call(lambda backend: backend.delete(thread_id, at=time.time()))

    def sites(self) -> list[Site]:
        """The places where threads are, the nearest first."""
        from charm_checkpoint.erasure import Site

        engine = self.get_langgraph_checkpointer().engine
        backend = engine.backend
        return [Site(str(mask(backend.name)), lambda look: engine.call(lambda _: look(backend)))]

    def wait_sent(self, threads: Iterable[str], timeout: float) -> bool:
        """Wait until all that was answered of some threads is in every place. False if `timeout` (seconds) ran out."""
        return True

    def compact(self) -> Compacted:
        """Store old values in less room and give back what pruning and deleting left, beside running agents.

        Writes to a file wait meanwhile; a server keeps the room, for what comes. Of a replica it is this device's file.

        Raises:
            ConfigError: The database looks after its room itself.
            BackendUnavailable: Another process held the file for too long.
            BackendFull: There is no room for a second file beside it.
        """
        engine = self.get_langgraph_checkpointer().engine
        compact = getattr(engine.backend, "compact", None)
        if compact is None:
            raise ConfigError(f"{engine.backend.name} looks after its room itself")
        found: Compacted = engine.call(lambda _: compact())
        return found

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything handed over is stored. False if `timeout` (seconds) ran out."""
        return self.get_langgraph_checkpointer().flush(timeout)

    def close(self) -> None:
        self.get_langgraph_checkpointer().close()


class _OpenedStore(CheckpointStore):
    """A store around a checkpointer that is already open."""

    def __init__(self, saver: CheckpointSaver, config: dict[str, Any]) -> None:
        SaverStore.__init__(self, saver, config)
        self._retention = RetentionPolicy.of(config.get("retention") or {})

    def open_backend(self) -> Backend:
        return self.get_langgraph_checkpointer().engine.backend


def store_from_saver(saver: BaseCheckpointSaver[Any], **config: Any) -> SaverStore:
    """Give any checkpointer message history; one of this project's own gets everything a `CheckpointStore` has."""
    from charm_checkpoint.saver import CheckpointSaver

    if isinstance(saver, CheckpointSaver):
        return _OpenedStore(saver, config)
    return SaverStore(saver, config)


def _check_subject(labels: Subject) -> None:
    for name, asked in labels.items():
        if asked == ():
            raise ConfigError(f"label {str(name)[:40]!r} has no value to look for")
        for value in asked if isinstance(asked, tuple) else (asked,):
            _check_query(None, {name: value})


def _check_query(status: str | None, labels: Labels | None) -> None:
    from charm_checkpoint.rules import LABEL_CHARACTERS, NO_LABELS, is_label

    if status not in (None, "idle", "interrupted", "failed"):
        raise ConfigError(f"a thread is idle, interrupted or failed, never {status!r}")
    for name, value in (labels or {}).items():
        if not is_label(value, name):
            raise ConfigError(
                f"no thread can be found by {str(name)[:40]!r} with {str(value)[:40]!r}: a label is a text of at most "
                f"{LABEL_CHARACTERS} characters, a whole number of 64 bits or a boolean, and its name is none of "
                f"{', '.join(sorted(NO_LABELS))}"
            )


def _thread_info(row: ThreadRow) -> ThreadInfo:
    head = row.heads[0]
    return ThreadInfo(
        row.thread_id,
        row.status,
        row.updated_at,
        row.created_at,
        head.device,
        head.checkpoint_id,
        tuple(h.namespace for h in row.heads),
        row.labels,
    )
