"""Threads of 10,000 messages: stored byte for byte what LangGraph's serializer makes of them, however they were put."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage
from langgraph.graph import START, MessagesState, StateGraph

from charm_checkpoint.serializer import StrictSerializer
from charm_checkpoint.testing.colours import place
from charm_memory_postgres import PostgresMemory

COUNT = 10_000
LETTERS = "abc äß€\U0001f680'\"\\{}%\n\x00"


def texts() -> Iterator[str]:
    chance = random.Random(10)
    while True:
        yield "".join(chance.choices(LETTERS, k=chance.randrange(60)))


def stored(connection: psycopg.Connection) -> bytes:
    """The newest value of the channel `messages`, as it is in the table."""
    row = connection.execute(
        "SELECT blob FROM checkpoint_blobs WHERE channel = 'messages' ORDER BY version DESC LIMIT 1"
    ).fetchone()
    assert row is not None
    return bytes(row[0])


def serialized(messages: list[Any]) -> bytes:
    return StrictSerializer().dumps_typed(messages)[1]


def answering(store: PostgresMemory) -> Any:
    """A graph that answers with the number of messages."""

    def answer(state: MessagesState) -> Any:
        count = len(state["messages"])
        return {"messages": [AIMessage(f"{count} messages", id=f"answer {count}")]}

    builder = StateGraph(MessagesState).add_node(answer).add_edge(START, "answer")
    return builder.compile(checkpointer=store.get_langgraph_checkpointer())


def test_through_a_graph(database: str, shared_database: psycopg.Connection) -> None:
    some = texts()
    messages: list[AnyMessage] = [
        HumanMessage(next(some), id=str(n)) if n % 2 else AIMessage(next(some), id=str(n))
        for n in range(COUNT)
    ]
    with PostgresMemory({"url": database}) as store:
        graph = answering(store)
        for new in (messages, [HumanMessage("one more", id="one more")]):
            told = graph.invoke({"messages": new}, place())["messages"]
            assert stored(shared_database) == serialized(told)
    with PostgresMemory({"url": database}) as store:
        changes = [HumanMessage("instead", id="5000"), *map(RemoveMessage, ("7000", "7001"))]
        told = answering(store).invoke({"messages": changes}, place())["messages"]
        assert stored(shared_database) == serialized(told)
    left = [*messages[:5000], changes[0], *messages[5001:7000], *messages[7002:]]
    assert told[: COUNT - 2] == left
    added = ["10000 messages", "one more", "10002 messages", "10001 messages"]
    assert [m.content for m in told[COUNT - 2 :]] == added
    with PostgresMemory({"url": database}) as store:
        assert answering(store).get_state(place()).values["messages"] == told
        assert [m["content"] for m in store.load_messages("thread")] == [m.content for m in told]


def test_as_message_history(database: str, shared_database: psycopg.Connection) -> None:
    some = texts()
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": next(some)} for n in range(COUNT)]
    with PostgresMemory({"url": database}) as store:
        store.save_messages("thread", messages)
    messages.append({"role": "user", "content": "more"})
    with PostgresMemory({"url": database}) as store:
        store.append_messages("thread", messages[-1:])
    with PostgresMemory({"url": database}) as store:
        found = store.load_messages("thread")
        assert [{key: m[key] for key in ("role", "content")} for m in found] == messages
        told = answering(store).invoke({"messages": []}, place())["messages"]
        assert [m.content for m in told] == [*(m["content"] for m in messages), "10001 messages"]
        assert stored(shared_database) == serialized(told)


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_through_a_put(
    colour: str, database: str, shared_database: psycopg.Connection
) -> None:
    """One channel of plain values, put as a whole, then longer by one."""
    some = texts()
    value = [{"n": n, "text": next(some)} for n in range(COUNT)]
    on: Any = place()
    for n, items in enumerate((value, [*value, "last"])):
        with PostgresMemory({"url": database}) as store:
            saver = store.get_langgraph_checkpointer()
            checkpoint: Any = {
                "v": 4,
                "id": str(n),
                "ts": "2026-01-01T00:00:00+00:00",
                "channel_values": {"messages": items},
                "channel_versions": {"messages": str(n)},
                "versions_seen": {},
            }
            if colour == "sync":
                on = saver.put(on, checkpoint, {}, {"messages": str(n)})
                found = saver.get_tuple(place())
            else:
                on = await saver.aput(on, checkpoint, {}, {"messages": str(n)})
                found = await saver.aget_tuple(place())
            assert found is not None
            assert found.checkpoint["channel_values"]["messages"] == items
            assert stored(shared_database) == serialized(items)
