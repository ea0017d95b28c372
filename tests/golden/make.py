"""Writes the files that `test_golden` reads, with whatever release of the project is on the path.

    git archive COMMIT charm_checkpoint adapters/postgres | tar -x -C /somewhere/old
    PYTHONPATH=/somewhere/old:/somewhere/old/adapters/postgres python tests/golden/make.py threads-1 replica-1

A name is a kind, its format, and `-packed` if old values are to be stored as `compact` leaves them.
A file is written once, by the release whose format it shows, and never again: what users have is not rewritten either.
"""

from __future__ import annotations

import gzip
import json
import operator
import sqlite3
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Annotated, Any

from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt
from typing_extensions import TypedDict

HERE = Path(__file__).parent
REMOTE = "postgresql://golden@127.0.0.1:1/threads"
"""What the replicas are replicas of. Nobody listens there."""


class State(TypedDict):
    items: Annotated[list[str], operator.add]
    note: str


def talk(saver: Any) -> Any:
    """Answers at length, so that values are stored as changes."""
    builder = StateGraph(State)
    builder.add_node("say", lambda state: {"items": [f"{len(state['items'])} " * 700]})
    builder.add_node("count", lambda state: {"note": str(len(state["items"]))})
    builder.add_edge(START, "say")
    builder.add_edge("say", "count")
    return builder.compile(checkpointer=saver)


def ask(saver: Any) -> Any:
    """Asks twice, in a subgraph."""
    inner = StateGraph(State)
    inner.add_node("ask", lambda state: {"items": [interrupt("first?"), interrupt("second?")]})
    inner.add_edge(START, "ask")
    builder = StateGraph(State)
    builder.add_node("inner", inner.compile())
    builder.add_edge(START, "inner")
    return builder.compile(checkpointer=saver)


def at(thread: str) -> Any:
    return {"configurable": {"thread_id": thread}}


def play(store: Any) -> None:
    """A chat, one with branches, questions that wait, one that was answered, and what was deleted."""
    saver = store.get_langgraph_checkpointer()
    chat, asking = talk(saver), ask(saver)
    for n in range(3):
        chat.invoke({"items": [f"turn {n}"]}, at("chat"))
    for thread in ("forked", "gone"):
        chat.invoke({"items": ["a"]}, at(thread))
    past = chat.get_state(at("forked")).config
    chat.invoke({"items": ["left"]}, past)
    chat.invoke({"items": ["right"]}, past)
    store.delete("gone")
    for thread in ("waiting", "half", "answered"):
        asking.invoke({"items": ["go"]}, at(thread))
    asking.invoke(Command(resume="one"), at("half"))
    for answer in ("one", "two"):
        asking.invoke(Command(resume=answer), at("answered"))
    store.save_messages("messages", [{"role": "user", "content": "hi"}])


def told(store: Any) -> dict[str, Any]:
    """Everything that is to be read, as plain data."""
    saver = store.get_langgraph_checkpointer()
    return {
        info.thread_id: [
            {
                "namespace": found.config["configurable"]["checkpoint_ns"],
                "id": found.checkpoint["id"],
                "parent": (found.parent_config or {}).get("configurable", {}).get("checkpoint_id"),
                "metadata": dict(found.metadata),
                "values": json.loads(json.dumps(found.checkpoint["channel_values"], default=plain)),
                "writes": [
                    [channel, json.loads(json.dumps(v, default=plain))]
                    for _, channel, v in found.pending_writes
                ],
            }
            for found in saver.list(at(info.thread_id))
        ]
        for info in store.threads()
    }


def plain(value: Any) -> Any:
    """Objects as what they hold."""
    return getattr(value, "content", None) or getattr(value, "value", None) or repr(value)


def make(name: str) -> None:
    from charm_checkpoint import open_store

    kind = name.partition("-")[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.db"
        if kind == "replica":
            store: Any = open_store(REMOTE, replica=str(path), device="golden")
        else:
            store = open_store(f"sqlite:///{path}", device="golden")
        play(store)
        expected = told(store)
        if kind == "export":
            from charm_checkpoint import export_threads

            with (HERE / f"{name}.gz").open("wb") as file:
                export_threads(store, file)
        if name.endswith("-packed"):
            store.compact()
        store.close()
        if kind != "export":
            db = sqlite3.connect(path, isolation_level=None)
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            db.close()
            write(f"{name}.db.gz", path.read_bytes())
    write(f"{name}.json.gz", json.dumps(expected, indent=1, sort_keys=True).encode())


def write(name: str, content: bytes) -> None:
    (HERE / name).write_bytes(gzip.compress(content, mtime=0))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for each in sys.argv[1:]:
        make(each)
