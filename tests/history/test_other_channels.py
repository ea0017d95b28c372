"""The message face of a thread whose graph keeps more than messages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph

from charm_checkpoint import CheckpointSaver
from charm_checkpoint.errors import ThreadConflictError, TypeNotAllowedError
from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.sqlite import LocalMemory
from charm_checkpoint.store import store_from_saver


@dataclass
class Plan:
    goal: str


class State(MessagesState):
    plan: Plan


def agent(saver: CheckpointSaver) -> Any:
    def work(state: State) -> dict[str, Any]:
        return {"messages": [AIMessage("done", id="a")], "plan": Plan("lunch")}

    return StateGraph(State).add_node(work).add_edge(START, "work").compile(checkpointer=saver)


CONFIG: Any = {"configurable": {"thread_id": "t"}}


def test_types_of_other_channels_are_no_matter_and_stay(tmp_path: Path) -> None:
    path = str(tmp_path / "threads.db")
    with LocalMemory({"path": path}) as store:
        agent(store.get_langgraph_checkpointer()).invoke({"messages": [("user", "hi")]}, CONFIG)
    with LocalMemory({"path": path}) as elsewhere:  # Knows no graph, so no Plan.
        assert [m["content"] for m in elsewhere.load_messages("t")] == ["hi", "done"]
        elsewhere.append_messages("t", [{"role": "user", "content": "more"}])
        with pytest.raises(TypeNotAllowedError, match="Plan"):
            elsewhere.get_langgraph_checkpointer().get_tuple(CONFIG)
        state = agent(elsewhere.get_langgraph_checkpointer()).get_state(CONFIG).values
    assert state["plan"] == Plan("lunch")
    assert [m.content for m in state["messages"]] == ["hi", "done", "more"]


@pytest.mark.parametrize("policy", ["branch", "overwrite"])
def test_an_append_loses_nothing_whatever_the_stores_policy(policy: Any) -> None:
    backend = MemoryBackend()
    saver = CheckpointSaver(backend, on_conflict=policy)
    store, other = store_from_saver(saver), store_from_saver(CheckpointSaver(backend))
    store.append_messages("t", [{"role": "user", "content": "1"}])

    class Meddler:
        """Lets the other writer in between this one's read and its put, once."""

        def __init__(self) -> None:
            self.put, self.left = store.messages._saver.put, 1

        def __call__(self, *args: Any) -> Any:
            if self.left:
                self.left -= 1
                other.append_messages("t", [{"role": "user", "content": "other's"}])
            return self.put(*args)

    store.messages._saver.put = Meddler()  # type: ignore[method-assign]
    store.append_messages("t", [{"role": "user", "content": "2"}])
    assert [m["content"] for m in store.load_messages("t")] == ["1", "other's", "2"]
    store.messages._saver.put.left = 1  # type: ignore[attr-defined]
    with pytest.raises(ThreadConflictError):
        store.save_messages("t", [{"role": "user", "content": "mine alone"}])
