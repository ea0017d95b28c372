"""One open saver, driven in one colour by calls that look the same in both."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.plan import Durability
from bench.savers import Entrant

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
    from langgraph.graph import StateGraph

    from bench.graphs import Chat

__all__ = ["Session", "open_session"]


class Session(ABC):
    """A saver and the graph compiled with it; every call blocks until it is done.

    Attributes:
        saver: The open saver, `None` for no saver.
        remembers: A thread's state is kept from one call to the next.
    """

    def __init__(
        self, saver: BaseCheckpointSaver[Any] | None, builder: StateGraph[Any, Any] | None
    ) -> None:
        self.saver = saver
        self.remembers = saver is not None
        self._graph: Any = builder.compile(checkpointer=saver) if builder else None

    @abstractmethod
    def invoke(self, value: Any, thread_id: str, durability: Durability = "async") -> Any:
        """Run the graph on a thread and return its output."""

    @abstractmethod
    def chat_at_once(self, chats: Sequence[Chat], turns: int) -> None:
        """Give each chat that many turns, all chats at the same time."""

    @abstractmethod
    def newest(self, thread_id: str) -> CheckpointTuple | None:
        """Read the thread's newest checkpoint."""

    def _arguments(self, thread_id: str, durability: Durability) -> dict[str, Any]:
        config = {"configurable": {"thread_id": thread_id}, "recursion_limit": 1000}
        # LangGraph warns about a durability that no saver can honour.
        return {"config": config, "durability": durability if self.remembers else None}


class _SyncSession(Session):
    def invoke(self, value: Any, thread_id: str, durability: Durability = "async") -> Any:
        return self._graph.invoke(value, **self._arguments(thread_id, durability))

    def chat_at_once(self, chats: Sequence[Chat], turns: int) -> None:
        with ThreadPoolExecutor(len(chats)) as pool:
            for done in [pool.submit(chat.take_turns, self, turns) for chat in chats]:
                done.result()

    def newest(self, thread_id: str) -> CheckpointTuple | None:
        assert self.saver is not None
        return self.saver.get_tuple(_thread(thread_id))


class _AsyncSession(Session):
    def __init__(
        self,
        saver: BaseCheckpointSaver[Any] | None,
        builder: StateGraph[Any, Any] | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(saver, builder)
        self._loop = loop

    def invoke(self, value: Any, thread_id: str, durability: Durability = "async") -> Any:
        return self._loop.run_until_complete(self._ainvoke(value, thread_id, durability))

    async def _ainvoke(self, value: Any, thread_id: str, durability: Durability) -> Any:
        return await self._graph.ainvoke(value, **self._arguments(thread_id, durability))

    def chat_at_once(self, chats: Sequence[Chat], turns: int) -> None:
        async def one(chat: Chat) -> None:
            for _ in range(turns):
                message = chat.next_input(self)
                chat.answered(await self._ainvoke(message, chat.thread_id, chat.durability))

        async def everyone() -> None:
            await asyncio.gather(*map(one, chats))

        self._loop.run_until_complete(everyone())

    def newest(self, thread_id: str) -> CheckpointTuple | None:
        assert self.saver is not None
        return self._loop.run_until_complete(self.saver.aget_tuple(_thread(thread_id)))


def _thread(thread_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}


@contextmanager
def open_session(
    entrant: Entrant, folder: Path, builder: StateGraph[Any, Any] | None = None
) -> Iterator[Session]:
    """Open the saver in the folder, and close it at the end.

    Args:
        entrant: What to open. `ainvoke` drives it on an event loop of its own.
        folder: Fresh, or one this saver has used.
        builder: The graph to run; not needed to read.
    """
    saver, colour = entrant
    if colour == "sync":
        opening = saver.open(folder)
        if not isinstance(opening, AbstractContextManager):
            raise TypeError(f"saver {saver.name!r} opens asynchronously: it cannot serve invoke")
        with opening as opened:
            yield _SyncSession(opened, builder)
        return
    loop = asyncio.new_event_loop()
    try:
        opening = saver.open(folder)
        if isinstance(opening, AbstractContextManager):
            with opening as opened:
                yield _AsyncSession(opened, builder, loop)
        else:
            session = _AsyncSession(loop.run_until_complete(opening.__aenter__()), builder, loop)
            try:
                yield session
            finally:
                loop.run_until_complete(opening.__aexit__(None, None, None))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
