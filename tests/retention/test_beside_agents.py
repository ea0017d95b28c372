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


class Progress:
    """What the agents and the one who looks after their threads know of each other."""

    def __init__(self) -> None:
        self.pruned = threading.Event()
        self.ended = threading.Event()


def run(path: Path, name: str, thread_id: str, turns: int, progress: Progress) -> list[str]:
    """Be an agent, for some turns and until something was pruned beside it. Returns what was acknowledged."""
    with closing(CheckpointSaver(SqliteBackend(path), device=name)) as saver:
        graph, done = chatter(saver), []
        while len(done) < turns or not (progress.pruned.is_set() or progress.ended.is_set()):
            text = f"{name} {len(done)}"
            try:
                graph.invoke({"said": [text]}, place(thread_id))
            except ThreadConflictError:
                continue  # another agent was first: read again, repeat the turn
            done.append(text)
        return done


def look_after(path: Path, progress: Progress) -> None:
    """Prune and compact all the while."""
    with closing(LocalMemory({"path": str(path)})) as store:
        while not progress.ended.is_set():
            went = store.prune({"keep_last": 3}).checkpoints
            store.compact()
            if went:
                progress.pruned.set()


def play(path: Path, turns: int) -> None:
    progress = Progress()
    with ThreadPoolExecutor(9) as pool:
        keeper = pool.submit(look_after, path, progress)
        agents = {
            f"agent-{n}": pool.submit(run, path, f"agent-{n}", f"thread-{n % 4}", turns, progress)
            for n in range(8)
        }
        try:
            said = {name: agent.result(WAIT * 5) for name, agent in agents.items()}
        finally:
            progress.ended.set()
        keeper.result(WAIT)
    assert progress.pruned.is_set(), "nothing was pruned while the agents ran"
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
