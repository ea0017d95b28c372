"""A thread as LangChain's chat message history."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from langchain_core._api import LangChainDeprecationWarning
from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from charm_checkpoint.langchain import CheckpointChatMessageHistory
from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.sqlite import LocalMemory
from charm_checkpoint.store import BaseMemoryStore

CONVERSATION: list[BaseMessage] = [
    SystemMessage("be brief", id="1"),
    HumanMessage([{"type": "text", "text": "1 + 2?"}], id="2", name="Bo"),
    AIMessage("", id="3", tool_calls=[{"name": "add", "args": {"a": 1}, "id": "c1"}]),
    ToolMessage("3", id="4", tool_call_id="c1", artifact={"raw": 3}),
    AIMessage("3", id="5", response_metadata={"model": "m"}, additional_kwargs={"k": "v"}),
]


class MessagesOnly(BaseMemoryStore):
    """What a plugin author writes at the least."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.threads: dict[str, list[dict[str, Any]]] = {}

    def load_messages(self, thread_id: str) -> list[dict[str, Any]]:
        return list(self.threads.get(thread_id, []))

    def save_messages(self, thread_id: str, messages: list[dict[str, Any]]) -> None:
        self.threads[thread_id] = messages


PLACES = {
    "official saver": lambda folder: InMemorySaver(),
    "own saver": lambda folder: CheckpointSaver(MemoryBackend()),
    "store": lambda folder: LocalMemory({"path": str(folder / "threads.db")}),
    "plugin": lambda folder: MessagesOnly({}),
}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    place = PLACES[request.param](tmp_path)
    yield place
    if hasattr(place, "close"):
        place.close()


def test_messages_come_back_equal(place: Any) -> None:
    history = CheckpointChatMessageHistory("trip", place)
    assert isinstance(history, BaseChatMessageHistory)
    assert history.messages == []
    history.add_messages(CONVERSATION[:2])
    history.add_messages(CONVERSATION[2:])
    assert CheckpointChatMessageHistory("trip", place).messages == CONVERSATION
    history.add_user_message("bye")
    history.add_ai_message("bye bye")
    assert history.messages[5:] == [HumanMessage("bye"), AIMessage("bye bye")]
    history.clear()
    assert history.messages == []
    assert CheckpointChatMessageHistory("another", place).messages == []


async def test_the_async_face_is_the_same(place: Any) -> None:
    history = CheckpointChatMessageHistory("trip", place)
    await history.aadd_messages(CONVERSATION)
    assert await history.aget_messages() == CONVERSATION
    await history.aclear()
    assert await history.aget_messages() == []


def with_history(place: Any) -> RunnableWithMessageHistory:
    def answer(messages: list[BaseMessage]) -> AIMessage:
        return AIMessage(f"{len(messages)}: {messages[-1].text}")

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", LangChainDeprecationWarning
        )  # LangChain's own, of its own class
        return RunnableWithMessageHistory(
            RunnableLambda(answer),
            lambda session_id: CheckpointChatMessageHistory(session_id, place),
        )


SESSION = {"configurable": {"session_id": "trip"}}
TEXTS = ["hi", "1: hi", "ho", "3: ho"]


def test_runnable_with_message_history(place: Any) -> None:
    for text in ("hi", "ho"):
        with_history(place).invoke([HumanMessage(text)], SESSION)
    assert [m.text for m in CheckpointChatMessageHistory("trip", place).messages] == TEXTS


async def test_runnable_with_message_history_async(place: Any) -> None:
    for text in ("hi", "ho"):
        await with_history(place).ainvoke([HumanMessage(text)], SESSION)
    history = CheckpointChatMessageHistory("trip", place)
    assert [m.text for m in await history.aget_messages()] == TEXTS


def test_a_graph_and_a_chain_share_a_thread() -> None:
    saver = CheckpointSaver(MemoryBackend())
    builder = StateGraph(MessagesState)
    builder.add_node("model", lambda state: {"messages": [AIMessage("from the graph")]})
    builder.add_edge(START, "model")
    graph = builder.compile(checkpointer=saver)
    thread = {"configurable": {"thread_id": "trip"}}
    with_history(saver).invoke([HumanMessage("hi")], SESSION)
    graph.invoke({"messages": [HumanMessage("ho")]}, thread)
    with_history(saver).invoke([HumanMessage("hm")], SESSION)
    texts = ["hi", "1: hi", "ho", "from the graph", "hm", "5: hm"]
    assert [m.text for m in graph.get_state(thread).values["messages"]] == texts
    CheckpointChatMessageHistory("trip", saver).clear()
    assert graph.get_state(thread).values["messages"] == []


def test_nothing_is_warned_about_by_importing_or_making_one() -> None:
    code = (
        "from charm_checkpoint.langchain import CheckpointChatMessageHistory as H;"
        "from charm_checkpoint.saver import CheckpointSaver;"
        "from charm_checkpoint.memory import MemoryBackend;"
        "H('trip', CheckpointSaver(MemoryBackend())).add_user_message('hi')"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
