"""Every error this project raises.

```
CheckpointStoreError
├── ConfigError                    bad configuration; nothing was opened
│   ├── MissingVariableError       ${VAR} in the configuration is not set
│   └── ProviderNotFoundError      no installed plugin has that name (also ImportError's meaning)
├── InvalidIdError                 a thread id, namespace or checkpoint id that no store accepts (ValueError)
├── SerializationError             a value cannot be stored; names channel, path and type (TypeError)
├── DeserializationError           stored bytes cannot be read back
│   └── TypeNotAllowedError        a stored type is not on the allow-list; names it
├── ThreadConflictError            another writer moved the thread on first
├── ThreadDeletedError             a late write to a deleted thread
│   └── DeletedInTargetError       a copy of a thread that was deleted where it goes
├── ThreadBusyError                a graph is within a step that saving messages would spoil
├── ThreadNotFoundError            the thread asked for has no checkpoints (LookupError)
├── CheckpointNotFoundError        the checkpoint that a step grew from is gone (LookupError)
├── ThreadExistsError              the target of a copy already has checkpoints
└── BackendError                   the database said no
    ├── BackendUnavailable         it cannot be reached now; the same call may succeed later
    ├── BackendFull                no room: disk, quota or memory limit
    │   └── OutboxFull             a replica has too much that its remote did not take yet
    ├── BackendReadOnly            the database or its folder cannot be written
    └── BackendCorrupt             the file or schema is not ours, damaged, or from a newer release
```

Messages say what happened, to which thread, and what to do. The driver's own error is the `__cause__`. All errors
pickle, so they cross process pools.
"""

from __future__ import annotations

__all__ = [
    "BackendCorrupt",
    "BackendError",
    "BackendFull",
    "BackendReadOnly",
    "BackendUnavailable",
    "CheckpointNotFoundError",
    "CheckpointStoreError",
    "ConfigError",
    "DeletedInTargetError",
    "DeserializationError",
    "InvalidIdError",
    "MissingVariableError",
    "OutboxFull",
    "ProviderNotFoundError",
    "SerializationError",
    "ThreadBusyError",
    "ThreadConflictError",
    "ThreadDeletedError",
    "ThreadExistsError",
    "ThreadNotFoundError",
    "TypeNotAllowedError",
]


class CheckpointStoreError(Exception):
    """Root of every error raised by this project."""


class ConfigError(CheckpointStoreError):
    """The configuration is wrong; nothing was opened."""


class MissingVariableError(ConfigError):
    """`${VAR}` is used in the configuration and `VAR` is not set."""


class ProviderNotFoundError(ConfigError):
    """No installed plugin offers the named provider."""


class InvalidIdError(CheckpointStoreError, ValueError):
    """An id is empty, too long, not text, or holds a NUL."""


class SerializationError(CheckpointStoreError, TypeError):
    """A value cannot be stored; nothing was written."""


class DeserializationError(CheckpointStoreError):
    """Stored bytes cannot be read back."""


class TypeNotAllowedError(DeserializationError):
    """A stored value has a type that is not on the allow-list."""


class ThreadConflictError(CheckpointStoreError):
    """Another writer moved the thread on after this run read it.

    Attributes:
        thread_id: The thread.
        namespace: `checkpoint_ns`, `''` for the root graph.
        expected: The checkpoint this run grew from, `None` if it read the thread as empty.
        actual: The checkpoint that is the head now.
        device: Name of the device that wrote `actual`.
        moved_at: When it did, seconds since the epoch, by that device's clock.
    """

    def __init__(
        self,
        thread_id: str,
        namespace: str,
        expected: str | None,
        actual: str,
        device: str,
        moved_at: float,
    ) -> None:
        super().__init__(thread_id, namespace, expected, actual, device, moved_at)
        self.thread_id = thread_id
        self.namespace = namespace
        self.expected = expected
        self.actual = actual
        self.device = device
        self.moved_at = moved_at

    def __str__(self) -> str:
        from datetime import datetime, timezone

        when = datetime.fromtimestamp(self.moved_at, timezone.utc).isoformat(timespec="seconds")
        place = f" (namespace {self.namespace!r})" if self.namespace else ""
        if self.expected == self.actual:
            return (
                f"thread {self.thread_id!r}{place}: another writer stored other results for a task of checkpoint "
                f"{self.actual} first. These were not stored. Read the thread again and repeat the turn."
            )
        began = f"at {self.expected}" if self.expected else "when it was still empty"
        return (
            f"thread {self.thread_id!r}{place} was moved on by device {self.device!r} at {when}: "
            f"this run read it {began}, its newest checkpoint is now {self.actual}. Nothing of this "
            "step was stored. Read the thread again and repeat the turn, or open the store with "
            'on_conflict="branch" to keep such steps beside the thread.'
        )


class ThreadDeletedError(CheckpointStoreError):
    """A write to a thread that was deleted after the run began; nothing was stored.

    Attributes:
        thread_id: The thread.
        deleted_at: When it was deleted, seconds since the epoch.
    """

    def __init__(self, thread_id: str, deleted_at: float) -> None:
        super().__init__(thread_id, deleted_at)
        self.thread_id = thread_id
        self.deleted_at = deleted_at

    def __str__(self) -> str:
        from datetime import datetime, timezone

        when = datetime.fromtimestamp(self.deleted_at, timezone.utc).isoformat(timespec="seconds")
        return (
            f"thread {self.thread_id!r} was deleted at {when}, after this run began; its late write "
            "was refused. Start the thread anew with a fresh run."
        )


class DeletedInTargetError(ThreadDeletedError):
    """A thread was deleted in the store that it is copied to; nothing of it was stored there."""

    def __str__(self) -> str:
        from datetime import datetime, timezone

        when = datetime.fromtimestamp(self.deleted_at, timezone.utc).isoformat(timespec="seconds")
        return (
            f"thread {self.thread_id!r} was deleted in the target at {when}, and what was deleted does not come back. "
            "To keep it there under another name, fork it in the source and copy the fork; or copy without it"
        )


class ThreadBusyError(CheckpointStoreError):
    """A graph is within a step that was given answers or updates already; saving messages now would lose them."""


class ThreadNotFoundError(CheckpointStoreError, LookupError):
    """The thread has no checkpoints here."""


class CheckpointNotFoundError(CheckpointStoreError, LookupError):
    """The checkpoint that a step grew from is gone: pruned, or deleted with the run that made it."""


class ThreadExistsError(CheckpointStoreError):
    """The target of a copy already has checkpoints."""


class BackendError(CheckpointStoreError):
    """The database refused or failed."""


class BackendUnavailable(BackendError):
    """The database cannot be reached now; the same call may succeed later."""

    retry_after: float = 0.0
    """Seconds for which the database wants to be left alone."""


class BackendFull(BackendError):
    """The database has no room left."""


class OutboxFull(BackendFull):
    """More waits to be sent to a replica's remote than `max_outbox` allows; nothing of this step was stored."""


class BackendReadOnly(BackendError):
    """The database, or the folder it lives in, cannot be written."""


class BackendCorrupt(BackendError):
    """The data is not ours, is damaged, or was written by a newer release."""
