"""A thread as LangChain's chat message history, for `RunnableWithMessageHistory`.

LangChain has deprecated both in favour of checkpointers, and warns about what it deprecated; nothing here adds to that
or hides it. A thread used this way is the same thread that graphs and `load_messages` see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage
from langgraph.checkpoint.base import BaseCheckpointSaver

from charm_checkpoint.messages import to_dicts, to_messages
from charm_checkpoint.store import BaseMemoryStore, store_from_saver

__all__ = ["CheckpointChatMessageHistory"]


class CheckpointChatMessageHistory(BaseChatMessageHistory):
    """One thread's messages; read anew each time, and added to without overwriting other writers.

    Args:
        thread_id: The thread.
        store: A store, or any checkpointer.
    """

    def __init__(self, thread_id: str, store: BaseMemoryStore | BaseCheckpointSaver[Any]) -> None:
        super().__init__()
        self.thread_id = thread_id
        self._store = store if isinstance(store, BaseMemoryStore) else store_from_saver(store)

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]  # LangChain declares an attribute
        """The thread's messages, oldest first."""
        return to_messages(self._store.load_messages(self.thread_id))

    async def aget_messages(self) -> list[BaseMessage]:
        """Like `messages`."""
        return to_messages(await self._store.aload_messages(self.thread_id))

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Add to the end of the thread."""
        self._store.append_messages(self.thread_id, to_dicts(messages))

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Like `add_messages`."""
        await self._store.aappend_messages(self.thread_id, to_dicts(messages))

    def clear(self) -> None:
        """Empty the thread's list of messages. The rest of a graph's state stays."""
        self._store.save_messages(self.thread_id, [])

    async def aclear(self) -> None:
        """Like `clear`."""
        await self._store.asave_messages(self.thread_id, [])
