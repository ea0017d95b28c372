"""What a turn costs: requests that wait one after another, and bytes, both as the gateway counts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from bench.graphs import MESSAGE_CHARACTERS, chat_graph, prose
from charm_checkpoint.backend import Scan, ThreadQuery
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.store import CheckpointStore
from charm_checkpoint.testing.colours import place
from charm_checkpoint.testing.rows import chain, pending, put
from tests.core.support import WAIT
from tests.supabase.conftest import Project
from tests.supabase.gateway import Call
from tests.supabase.support import memory, open_service

CONTENT = 2 * MESSAGE_CHARACTERS
"""Bytes that a turn adds: what is asked, and what is answered."""


def say(graph: Any, turns: int, **options: Any) -> None:
    """Hold some turns of a conversation."""
    said = len(graph.get_state(place()).values.get("messages", ()))
    for n in range(said, said + 2 * turns, 2):
        graph.invoke({"messages": [HumanMessage(prose(n))]}, place(), **options)


def waits(calls: Sequence[Call]) -> int:
    """The most calls of which each began when the one before had ended."""
    longest = 0
    ended = 0.0
    for call in sorted(calls, key=lambda call: call.ended):
        if call.began >= ended:
            longest, ended = longest + 1, call.ended
    return longest


@pytest.mark.parametrize("durability", ["sync", "async"])
def test_requests_that_wait_for_each_other(durability: Any, project: Project) -> None:
    """One read, and LangGraph's chain of four puts; what comes beside a put goes with it or beside it."""
    with memory(project) as store:
        graph = chat_graph("sync").compile(checkpointer=store.get_langgraph_checkpointer())
        say(graph, 2, durability=durability)
        project.gateway.calls.clear()
        # Far longer than anything here takes by itself, so that what is sent at once is seen to be.
        project.faults.order("delay", times=1000, seconds=0.25)
        graph.invoke({"messages": [HumanMessage("hi")]}, place(), durability=durability)
        store.flush(WAIT)
    assert 2 <= waits(project.gateway.calls) <= 5, [c.function for c in project.gateway.calls]


def test_a_turn_that_is_stored_at_its_end(project: Project) -> None:
    with memory(project) as store:
        graph = chat_graph("sync").compile(checkpointer=store.get_langgraph_checkpointer())
        say(graph, 2, durability="exit")
        project.gateway.calls.clear()
        graph.invoke({"messages": [HumanMessage("hi")]}, place(), durability="exit")
    assert len(project.gateway.calls) <= 2


def test_every_verb_is_one_request(project: Project) -> None:
    backend = open_service(project)
    backend.setup()
    chain(backend, "1", "2", "3")
    verbs: list[Callable[[], Any]] = [
        lambda: backend.write([put("4", "3"), pending("4"), put("1", thread="other")]),
        lambda: backend.read("thread", "", None),
        lambda: backend.scan(Scan()),
        lambda: backend.pull("thread", ()),
        lambda: backend.lineage("thread", "", None, ["a"]),
        lambda: backend.threads(ThreadQuery()),
        lambda: backend.copy("thread", "copy", at=1.0),
        lambda: backend.prune("thread", [("", "1")]),
        lambda: backend.delete("thread", at=1.0),
    ]
    for verb in verbs:
        project.gateway.calls.clear()
        verb()
        assert len(project.gateway.calls) == 1


def _sent(project: Project) -> int:
    return sum(call.sent for call in project.gateway.calls)


def test_bytes_of_a_turn_through_a_replica(project: Project, tmp_path: Path) -> None:
    """At most five times what the turn adds, late in a thread that is forty times as long."""
    store = memory(project)
    with replicated(store, tmp_path) as device:
        graph = chat_graph("sync").compile(checkpointer=device.get_langgraph_checkpointer())
        say(graph, 40)
        assert device.flush(WAIT)
        sent = []
        for _ in range(5):
            project.gateway.calls.clear()
            say(graph, 1)
            assert device.flush(WAIT)
            sent.append(_sent(project))
    mean = sum(sent) / len(sent)
    assert mean <= 5 * CONTENT, f"{mean / CONTENT:.2f} times"


def test_bytes_of_a_turn_without_one(project: Project) -> None:
    """It does not grow with the thread."""
    with memory(project) as store:
        graph = chat_graph("sync").compile(checkpointer=store.get_langgraph_checkpointer())
        sent = []
        for turns in (5, 30):
            say(graph, turns)
            project.gateway.calls.clear()
            say(graph, 1)
            sent.append(_sent(project))
    assert sent[1] < sent[0] * 1.2


def test_an_unchanged_value_is_not_sent_again(project: Project) -> None:
    backend = open_service(project)
    saver = CheckpointSaver(backend)
    from charm_checkpoint.testing.scenarios import chat

    graph = chat(saver)
    graph.invoke({"items": ["x" * 1_000_000]}, place())
    graph.update_state(place(), {"note": "n"}, as_node="say")
    project.gateway.calls.clear()
    graph.update_state(place(), {"note": "m"}, as_node="say")
    assert _sent(project) < 4096
    assert sum(call.received for call in project.gateway.calls) < 8192
    saver.close()


def replicated(store: CheckpointStore, folder: Path) -> Any:
    """A replica of this device before a store."""
    from charm_checkpoint.replica import ReplicaStore

    return ReplicaStore(store, {"replica": str(folder / "device.db")})
