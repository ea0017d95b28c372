"""For test_crash: forks processes that run turns of a graph, and tell of each step before and after it is stored.

Forked from one process that has imported everything, since there are hundreds of them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import operator
import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from typing_extensions import TypedDict

from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.sqlite import SqliteBackend
from tests.core.support import commands, place, say

THREAD = "trip"


def digest(value: Any) -> str:
    """Equal for equal values, nearly never for others."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()


class Telling(CheckpointSaver):
    """Says what it is going to store, and when it was answered."""

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        what = ["checkpoint", checkpoint["id"], digest(checkpoint["channel_values"])]
        say(["begun", *what])
        answer = super().put(config, checkpoint, metadata, new_versions)
        say(["stored", *what])
        return answer

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        checkpoint_id = config["configurable"]["checkpoint_id"]
        what = ["writes", checkpoint_id, task_id, digest([[c, v] for c, v in writes])]
        say(["begun", *what])
        super().put_writes(config, writes, task_id, task_path)
        say(["stored", *what])


class State(TypedDict):
    """Channels of several kinds: growing, replaced and larger than a page, never changing."""

    log: Annotated[list[str], operator.add]
    page: Annotated[str, lambda old, new: new]
    same: list[int]


def research(state: State) -> list[Send]:
    """Three tasks that write beside each other."""
    return [Send("look", {"log": [f"{len(state['log'])}.{n}"]}) for n in range(3)]


def build(saver: CheckpointSaver) -> Any:
    """The graph whose runs are killed."""
    builder = StateGraph(State)
    builder.add_node("plan", lambda state: {"page": f"{len(state['log'])} " * 4000})
    builder.add_node("look", lambda state: {"log": state["log"], "page": "x" * 10_000})
    builder.add_node("sum_up", lambda state: {"log": ["summed up"]})
    builder.add_edge(START, "plan")
    builder.add_conditional_edges("plan", research, ["look"])
    builder.add_edge("look", "sum_up")
    builder.add_edge("sum_up", END)
    return builder.compile(checkpointer=saver)


def run(path: str, durability: str) -> None:
    """Run turns until somebody ends it."""
    graph = build(Telling(SqliteBackend(Path(path))))
    for turn in itertools.count():
        graph.invoke(
            {"log": [f"turn {turn}"], "same": list(range(5000))},
            place(THREAD),
            durability=durability,
        )


def main() -> None:
    for path, durability in commands():
        pid = os.fork()
        if not pid:
            try:
                say(["running", os.getpid()])
                run(path, durability)
            except BaseException:  # noqa: BLE001 - shown, and the process ends
                traceback.print_exc()
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        say(["ended", os.waitstatus_to_exitcode(status)])


if __name__ == "__main__":
    main()
