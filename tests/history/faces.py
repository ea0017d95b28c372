"""The savers and graphs that the tests of message history run over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any

from langchain_core.messages import AIMessage, AnyMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import _messages_delta_reducer
from langgraph.graph.state import CompiledStateGraph
from typing_extensions import TypedDict

from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.sqlite import SqliteBackend

Saver = BaseCheckpointSaver[Any]
Graph = CompiledStateGraph[Any, Any, Any, Any]

# -- savers: add a factory to a list, and the tests run over it too ----------------------------------------------------


@contextmanager
def official_memory(folder: Path) -> Iterator[Saver]:
    yield InMemorySaver()


@contextmanager
def official_sqlite(folder: Path) -> Iterator[Saver]:
    with SqliteSaver.from_conn_string(":memory:") as saver:
        yield saver


@asynccontextmanager
async def official_async_sqlite(folder: Path) -> AsyncIterator[Saver]:
    async with AsyncSqliteSaver.from_conn_string(":memory:") as saver:
        yield saver


@contextmanager
def own_memory(folder: Path) -> Iterator[Saver]:
    saver = CheckpointSaver(MemoryBackend())
    yield saver
    saver.close()


@contextmanager
def own_sqlite(folder: Path) -> Iterator[Saver]:
    saver = CheckpointSaver(SqliteBackend(folder / "threads.db"))
    yield saver
    saver.close()


SYNC = [official_memory, official_sqlite, own_memory, own_sqlite]
ASYNC = [official_memory, official_async_sqlite, own_memory, own_sqlite]
OWN = [own_memory, own_sqlite]  # these tell two writers apart


# -- graphs and dicts --------------------------------------------------------------------------------------------------

THREAD = {"configurable": {"thread_id": "trip"}}


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


TOOL_TURN: list[dict[str, Any]] = [
    {"role": "system", "content": "be brief"},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "1 + 2?"},
            {"type": "image_url", "image_url": {"url": "data:x"}},
        ],
    },
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "add", "arguments": '{"a":1, "b":2}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "3", "name": "add"},
    {"role": "assistant", "content": "3", "id": "answer", "tokens": 4},
    {"event": "rated", "stars": 5},
    {"role": "narrator", "content": "They were happy."},
]


def echo(state: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [AIMessage(f"{len(state['messages'])}: {state['messages'][-1].text}")]}


def chat(saver: Saver, schema: Any = MessagesState, node: Any = echo) -> Graph:
    builder = StateGraph(schema)
    builder.add_node("model", node)
    builder.add_edge(START, "model")
    builder.add_edge("model", END)
    return builder.compile(checkpointer=saver)


Messages = Annotated[list[AnyMessage], DeltaChannel(_messages_delta_reducer)]
SnapshotMessages = Annotated[
    list[AnyMessage], DeltaChannel(_messages_delta_reducer, snapshot_frequency=3)
]
Log = Annotated[list[str], DeltaChannel(lambda old, new: [*old, *(x for w in new for x in w)])]


class DeltaState(TypedDict):
    messages: Messages
    log: Log


class SnapshotDeltaState(TypedDict):
    messages: SnapshotMessages
    log: Log


def delta_echo(state: dict[str, Any]) -> dict[str, Any]:
    return {**echo(state), "log": [f"step {len(state['messages'])}"]}


def count(saver: Saver) -> int:
    return len(list(saver.list(THREAD)))


def state_of(graph: Graph) -> list[AnyMessage]:
    return graph.get_state(THREAD).values["messages"]


def waiting(saver: Saver, schema: Any, *nodes: Any) -> Graph:
    builder = StateGraph(schema)
    for node in nodes:
        builder.add_node(node.__name__, node)
        builder.add_edge(START, node.__name__)
    return builder.compile(checkpointer=saver)
