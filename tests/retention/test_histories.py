"""Random histories: what pruning leaves can be read as before, and goes on."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from charm_checkpoint.backend import Scan
from charm_checkpoint.keeping import headers
from charm_checkpoint.policy import RetentionPolicy
from tests.core.support import place
from tests.retention.agents import View, agent, heads, live, view
from tests.retention.conftest import MakeStore


def check(graph: Any, before: View, left: dict[str, str], kept: Callable[[str, str], bool]) -> View:
    """Look at a thread after pruning, and go on with it.

    Args:
        graph: Its graph.
        before: What could be read before.
        left: Where each namespace went on.
        kept: Tells what had to stay.

    Returns:
        What there is.
    """
    after = view(graph, "t")
    assert after.keys() <= before.keys()
    for place_, found in before.items():
        if kept(*place_) or (place_[1] == left[place_[0]] and place_ in after):
            assert after[place_] == found, "it reads otherwise than before"
    now = heads(graph, "t", after)
    assert now.items() <= left.items(), "a head moved"
    gone = left.keys() - now.keys()
    assert all(":" in namespace for namespace in gone), "only finished calls go whole"
    said = graph.get_state(place("t")).values["said"]
    told = graph.invoke({"said": ["more"]}, place("t"))
    assert told["said"][: len(said) + 1] == [*said, "more"]
    return after


@pytest.mark.parametrize(
    ("kind", "seed"), [("memory", 0), ("memory", 1), ("memory", 2), ("sqlite", 0), ("replica", 1)]
)
def test_keep_last(make_store: MakeStore, kind: str, seed: int) -> None:
    rng = random.Random(seed)
    store = make_store(kind)
    graph = agent(store.get_langgraph_checkpointer())
    live(graph, "t", rng, 10)
    before = view(graph, "t")
    left = heads(graph, "t", before)
    keep = rng.choice([1, 2, 7])

    tried = store.prune({"keep_last": keep}, dry_run=True)
    assert view(graph, "t") == before, "a dry run is dry"
    done = store.prune({"keep_last": keep})
    assert done.checkpoints == tried.checkpoints > 0
    assert store.prune({"keep_last": keep}).checkpoints == 0

    newest: dict[str, list[str]] = {"": [], "noter": []}
    for namespace, checkpoint_id in sorted(before, reverse=True):
        if namespace in newest:
            newest[namespace].append(checkpoint_id)
    after = check(graph, before, left, lambda ns, id: id in newest.get(ns, [])[:keep])
    assert len(before) - len(after) == done.checkpoints
    assert len([ns for ns, _ in after if ns == "noter"]) == min(keep, len(newest["noter"]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
@pytest.mark.parametrize("kind", ["memory", "sqlite", "replica"])
def test_keep_last_long(make_store: MakeStore, kind: str, seed: int) -> None:
    test_keep_last(make_store, kind, seed)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_max_age(make_store: MakeStore, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(kind)
    graph = agent(store.get_langgraph_checkpointer())
    live(graph, "t", random.Random(5), 10)
    before = view(graph, "t")
    left = heads(graph, "t", before)
    backend = store.get_langgraph_checkpointer().engine.backend
    rows = [e.snapshot.checkpoint for e in headers(backend, Scan(thread_id="t", namespace=""))]
    cut = rows[len(rows) // 3]
    assert cut is not None
    monkeypatch.setattr(
        "charm_checkpoint.retention.time", SimpleNamespace(time=lambda: cut.created_at + 60)
    )
    assert store.prune(RetentionPolicy(max_age=60)).checkpoints
    monkeypatch.undo()
    ids = [row.checkpoint_id for row in rows if row and row.created_at >= cut.created_at]
    after = check(graph, before, left, lambda ns, id: ns == "" and id in ids)
    oldest = rows[-1]
    assert oldest is not None
    assert ("", oldest.checkpoint_id) not in after


def test_what_a_delta_channel_needs_has_an_end(make_store: MakeStore) -> None:
    """Two with snapshots that never fall together keep what the newest checkpoint is read from, and no more."""
    store = make_store("memory")
    graph = agent(store.get_langgraph_checkpointer())
    for turn in range(25):
        graph.invoke({"said": [f"say {turn}"]}, place("t"))
    before = view(graph, "t")
    left = heads(graph, "t", before)
    store.get_langgraph_checkpointer().prune(["t"])
    after = check(graph, before, left, lambda ns, id: id == left[ns] and ":" not in ns)
    assert len([ns for ns, _ in before if ns == ""]) > 120
    assert len([ns for ns, _ in after if ns == ""]) < 60


def test_dropping_runs(make_store: MakeStore) -> None:
    store = make_store("sqlite")
    saver = store.get_langgraph_checkpointer()
    graph = agent(saver)
    for turn in range(9):
        thread = place("t")
        thread["metadata"] = {"run_id": f"run-{turn // 3}"}
        graph.invoke({"said": [f"say {turn}"]}, thread)
    before = view(graph, "t")
    saver.delete_for_runs(["run-1"])
    after = view(graph, "t")
    assert 0 < len(after) < len(before)
    runs = {e.snapshot.checkpoint.run_id for e in headers(saver.engine.backend, Scan())}  # type: ignore[union-attr]
    assert {"run-0", "run-2"} <= runs
    head = heads(graph, "t", after)[""]
    assert after["", head] == before["", head]
