"""The `local` provider: threads in a SQLite file of the workspace, after what charmos left there."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charm_checkpoint.codec import valid_id
from charm_checkpoint.errors import BackendReadOnly, ConfigError, DeserializationError
from charm_checkpoint.sqlite.backend import SqliteBackend
from charm_checkpoint.store import CheckpointStore, Message

if TYPE_CHECKING:
    from charm_checkpoint.moving import Source

__all__ = ["LocalMemory", "memory_folder"]

_LONGEST_FILE_NAME = 255


def memory_folder() -> Path:
    """`.charm/memory` under `$CHARM_WORKSPACE_DIR`, else under `./workspace`: where charmos keeps its own."""
    workspace = os.environ.get("CHARM_WORKSPACE_DIR") or "workspace"
    return Path(workspace).absolute() / ".charm" / "memory"


class LocalMemory(CheckpointStore):
    """Threads in one SQLite file on this machine; needs no configuration.

    Histories that charmos saved beside it as `<thread_id>.json` are a thread's messages until it is first saved here.

    Args:
        config: `path`: the file, by default `threads.db` in `memory_folder()`. `busy_timeout`: seconds to wait for
            another process (10). `vfs`: a SQLite VFS by name. And what every `CheckpointStore` takes.
    """

    options = frozenset({"path", "busy_timeout", "vfs"})

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__(config)

    def open_backend(self) -> SqliteBackend:
        path = Path(self.config.get("path") or memory_folder() / "threads.db").expanduser()
        self._folder = path.absolute().parent
        timeout = self.config.get("busy_timeout", 10.0)
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout < 0:
            raise ConfigError(f"busy_timeout={timeout!r} is not a number of seconds")
        return SqliteBackend(path, busy_timeout=float(timeout), vfs=self.config.get("vfs"))

    def source(self) -> Source:
        """What copies read threads from: where the file is one of LangGraph's SqliteSaver, it is read as it is."""
        from charm_checkpoint.sqlite.official import OfficialFile, is_official

        backend = self.get_langgraph_checkpointer().engine.backend
        if isinstance(backend, SqliteBackend) and is_official(backend.path):
            return OfficialFile(backend.path)
        return super().source()

    def load_messages(self, thread_id: str) -> list[Message]:
        """Return the thread's messages, else what charmos left for it.

        Raises:
            DeserializationError: The file that charmos left is not a list of messages.
        """
        return super().load_messages(thread_id) or self._left_by_charmos(thread_id)

    def append_messages(self, thread_id: str, messages: list[Message]) -> None:
        if old := self._left_by_charmos(thread_id):
            self.messages.begin(thread_id, old)
        super().append_messages(thread_id, messages)

    async def aload_messages(self, thread_id: str) -> list[Message]:
        found = await super().aload_messages(thread_id)
        return found or await asyncio.to_thread(self._left_by_charmos, thread_id)

    async def aappend_messages(self, thread_id: str, messages: list[Message]) -> None:
        if old := await asyncio.to_thread(self._left_by_charmos, thread_id):
            await self.messages.abegin(thread_id, old)
        await super().aappend_messages(thread_id, messages)

    def _remove(self, thread_id: str) -> bool:
        """Remove a thread with everything of it, what charmos left for it, too. False if there was nothing."""
        removed = super()._remove(thread_id)
        path = self._old_file(thread_id)
        if path is None or not path.is_file():
            return removed
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise BackendReadOnly(
                f"thread {thread_id!r} is deleted, but not the history that charmos left in {path} ({error.strerror}); "
                "remove the file"
            ) from error
        return True

    def _left_by_charmos(self, thread_id: str) -> list[Message]:
        path = self._old_file(thread_id)
        if path is None or not path.is_file():
            return []
        engine = self.get_langgraph_checkpointer().engine
        snapshot = engine.call(lambda backend: backend.read(str(thread_id), "", None))
        if snapshot.checkpoint is not None or snapshot.deleted_through is not None:
            return []
        try:
            messages = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DeserializationError(
                f"thread {thread_id!r}: the history that charmos left in {path} cannot be read ({error}); repair or "
                "remove the file"
            ) from error
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise DeserializationError(
                f"thread {thread_id!r}: {path} holds no list of messages; repair or remove the file"
            )
        return messages

    def _old_file(self, thread_id: str) -> Path | None:
        """Where charmos kept a thread; `None` for ids that would leave the folder or are no file names."""
        name = f"{valid_id(thread_id, 'thread_id')}.json"
        if Path(name).name != name or "\\" in name or len(name.encode()) > _LONGEST_FILE_NAME:
            return None
        return self._folder / name
