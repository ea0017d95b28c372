"""Prune and compact while agents run on the same threads: no error, and nothing that was acknowledged is lost."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import pytest
from langgraph.channels import DeltaChannel
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from charm_checkpoint.errors import ThreadConflictError
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.sqlite import LocalMemory, SqliteBackend
from tests.core.support import WAIT, place
from tests.retention.agents import append, extend


class State(TypedDict):
    said: Annotated[list[str], append]
    quick: Annotated[list[str], DeltaChannel(extend, snapshot_frequency=4)]


def chatter(saver: CheckpointSaver) -> Any:
    builder = StateGraph(State)
    builder.add_node("hear", lambda state: {"quick": [state["said"][-1]]})
    builder.add_node("reply", lambda state: {"said": [f"re {state['said'][-1]} " + "x" * 400]})
    return builder.add_edge(START, "hear").add_edge("hear", "reply").compile(checkpointer=saver)


def run(path: Path, name: str, thread_id: str, turns: int) -> list[str]:
    """Be an agent. Returns what was acknowledged."""
    with closing(CheckpointSaver(SqliteBackend(path), device=name)) as saver:
        graph, done = chatter(saver), []
        while len(done) < turns:
            text = f"{name} {len(done)}"
            try:
                graph.invoke({"said": [text]}, place(thread_id))
            except ThreadConflictError:
                continue  # another agent was first: read again, repeat the turn
            done.append(text)
        return done


def look_after(path: Path, ended: threading.Event) -> tuple[int, int]:
    """Prune and compact all the while. Returns how much went, and how often it was compacted."""
    went = rounds = 0
    with closing(LocalMemory({"path": str(path)})) as store:
        while not ended.is_set():
            went += store.prune({"keep_last": 3}).checkpoints
            store.compact()
            rounds += 1
    return went, rounds


def play(path: Path, turns: int) -> None:
    ended = threading.Event()
    with ThreadPoolExecutor(9) as pool:
        keeper = pool.submit(look_after, path, ended)
        agents = {
            f"agent-{n}": pool.submit(run, path, f"agent-{n}", f"thread-{n % 4}", turns)
            for n in range(8)
        }
        try:
            said = {name: agent.result(WAIT * 5) for name, agent in agents.items()}
        finally:
            ended.set()
        went, rounds = keeper.result(WAIT)
    assert went
    assert rounds
    with closing(CheckpointSaver(SqliteBackend(path))) as saver:
        for n, name in enumerate(said):
            values = chatter(saver).get_state(place(f"thread-{n % 4}")).values
            assert set(said[name]) <= set(values["said"]), f"{name} lost something"
            assert set(said[name]) <= set(values["quick"]), f"{name} lost something"


def test_eight_agents(tmp_path: Path) -> None:
    play(tmp_path / "threads.db", 4)


@pytest.mark.slow
def test_eight_agents_long(tmp_path: Path) -> None:
    play(tmp_path / "threads.db", 60)
