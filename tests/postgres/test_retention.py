"""Pruning here as everywhere: what stays reads as before."""

from __future__ import annotations

import random
from contextlib import closing

from charm_checkpoint.store import CheckpointStore
from charm_memory_postgres import PostgresMemory
from tests.retention.agents import agent, heads, live, view
from tests.retention.test_histories import check


def test_a_random_history(database: str) -> None:
    with closing(PostgresMemory({"url": database})) as store:
        assert isinstance(store, CheckpointStore)
        graph = agent(store.get_langgraph_checkpointer())
        live(graph, "t", random.Random(3), 6)
        before = view(graph, "t")
        left = heads(graph, "t", before)
        done = store.prune({"keep_last": 4})
        assert done.checkpoints
        newest = sorted((id for ns, id in before if ns == ""), reverse=True)[:4]
        after = check(graph, before, left, lambda ns, id: ns == "" and id in newest)
        assert len(before) - len(after) == done.checkpoints


def test_a_subject_is_erased(database: str) -> None:
    with closing(PostgresMemory({"url": database})) as store:
        for name in ("ann", "bob"):
            graph = agent(store.get_langgraph_checkpointer())
            graph.invoke(
                {"said": ["a secret"]},
                {"configurable": {"thread_id": name}, "metadata": {"user": name}},
            )
        receipt = store.erase(labels={"user": "ann"})
        assert receipt.done
        assert [t.thread_id for t in receipt.threads] == ["ann"]
        assert [(p.gone, p.overwritten) for p in receipt.places] == [(True, None)]
        assert [info.thread_id for info in store.threads()] == ["bob"]
