from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from charm_checkpoint.cli import reports
from charm_checkpoint.cli.watch import Watcher
from charm_checkpoint.replica import ReplicaStore
from charm_checkpoint.sqlite import LocalMemory
from charm_checkpoint.store import CheckpointStore
from tests.cli.conftest import COMMAND
from tests.core.support import Through

Run = Callable[..., Any]
Conforms = Callable[[Any, Any], bool]
CONFIG: Any = {"configurable": {"thread_id": "t"}}


def agent(store: CheckpointStore) -> Any:
    """Greets, then asks."""

    def ask(state: MessagesState) -> Any:
        return {"messages": [("ai", f"You said {interrupt('What else?')}.")]}

    builder = StateGraph(MessagesState).add_node("greet", lambda _: {"messages": [("ai", "Hi.")]})
    builder.add_node("ask", ask).add_edge(START, "greet").add_edge("greet", "ask")
    return builder.compile(checkpointer=store.get_langgraph_checkpointer())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalMemory]:
    with LocalMemory({"path": str(tmp_path / "t.db"), "device": "laptop"}) as store:
        store.save_messages("t", [{"role": "user", "content": "begin"}])
        yield store


def test_every_step_is_told_once(store: LocalMemory, conforms: Conforms) -> None:
    watcher = Watcher(store, "t")
    first = watcher.look()
    assert conforms(first, reports.Watched)
    assert (first["status"], first["new"], first["message"]) == ("idle", [], "user: begin")  # type: ignore[index]
    assert watcher.look() is None
    graph = agent(store)
    graph.invoke({"messages": [("user", "go")]}, CONFIG)
    asked = watcher.look()
    assert conforms(asked, reports.Watched)
    assert asked is not None
    assert [(s["step"], s["source"], s["is_head"]) for s in asked["new"]] == [
        (1, "input", False), (2, "loop", False), (3, "loop", True),
    ]  # fmt: skip
    assert asked["head"]["checkpoint_id"] == asked["new"][-1]["checkpoint_id"]  # type: ignore[index]
    assert (asked["status"], asked["next"]) == ("interrupted", ["ask"])
    assert [i["value"] for i in asked["interrupts"]] == ["What else?"]
    assert asked["message"] == "assistant: Hi."
    assert watcher.look() is None
    graph.invoke(Command(resume="no more"), CONFIG)
    done = watcher.look()
    assert done is not None
    assert [s["step"] for s in done["new"]] == [4]
    assert (done["status"], done["interrupts"]) == ("idle", [])
    assert done["message"] == "assistant: You said no more."


def test_a_question_alone_is_news(store: LocalMemory) -> None:
    """It comes after its checkpoint, which does not move."""
    graph = agent(store)
    graph.invoke({"messages": [("user", "go")]}, CONFIG, interrupt_before=["ask"])
    watcher = Watcher(store, "t")
    assert watcher.look()["status"] == "idle"  # type: ignore[index]
    graph.invoke(None, CONFIG)
    asked = watcher.look()
    assert asked is not None
    assert (asked["status"], asked["new"]) == ("interrupted", [])
    assert asked["message"] == "assistant: Hi."


def test_a_step_back(store: LocalMemory) -> None:
    graph = agent(store)
    graph.invoke({"messages": [("user", "go")]}, CONFIG)
    watcher = Watcher(store, "t")
    watcher.look()
    past = list(graph.get_state_history(CONFIG))[-1]
    graph.update_state(past.config, {"messages": [("user", "otherwise")]})
    told = watcher.look()
    assert told is not None
    [step] = told["new"]
    assert (step["source"], told["head"]["checkpoint_id"]) == ("update", step["checkpoint_id"])  # type: ignore[index]
    assert told["message"] == "user: otherwise"


def test_steps_of_a_subgraph(store: LocalMemory) -> None:
    inner = StateGraph(MessagesState).add_node("ask", lambda _: {"messages": [interrupt("?")]})
    outer = StateGraph(MessagesState).add_node("inner", inner.add_edge(START, "ask").compile())
    graph: Any = outer.add_edge(START, "inner").compile(store.get_langgraph_checkpointer())
    watcher = Watcher(store, "t")
    watcher.look()
    graph.invoke({"messages": [("user", "go")]}, CONFIG)
    told = watcher.look()
    assert told is not None
    namespaces = [step["namespace"].partition(":")[0] for step in told["new"]]
    assert (namespaces.count(""), namespaces.count("inner")) == (2, 2)


def test_a_deleted_thread_may_begin_anew(store: LocalMemory, conforms: Conforms) -> None:
    watcher = Watcher(store, "t")
    watcher.look()
    store.delete("t")
    gone = watcher.look()
    assert conforms(gone, reports.Watched)
    assert (gone["status"], gone["head"]) == ("deleted", None)  # type: ignore[index]
    assert watcher.look() is None
    store.save_messages("t", [{"role": "user", "content": "again"}])
    assert watcher.look()["message"] == "user: again"  # type: ignore[index]


class Counted(Through):
    def __init__(self, backend: Any) -> None:
        super().__init__(backend)
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name in ("read", "pull", "scan", "threads", "lineage"):
            self.calls.append(name)
        return super().__getattribute__(name)


def test_a_look_is_one_request(store: LocalMemory) -> None:
    watcher = Watcher(store, "t")
    engine = store.get_langgraph_checkpointer().engine
    engine._door = counted = Counted(engine.backend)  # type: ignore[assignment]
    for text in ("one", "two"):
        assert watcher.look() is not None
        assert watcher.look() is None
        store.append_messages("t", [{"role": "user", "content": text}])
        counted.calls.remove("read")  # of the line above
    assert counted.calls == ["pull"] * 4


def test_another_device_moves_it_on(tmp_path: Path, store: LocalMemory) -> None:
    config = {"replica": str(tmp_path / "own.db"), "device": "phone"}
    with ReplicaStore(LocalMemory({"path": str(tmp_path / "t.db")}), config) as replica:
        assert replica.load_messages("t")
        watcher = Watcher(replica, "t")
        watcher.look()
        store.append_messages("t", [{"role": "user", "content": "from the laptop"}])
        told = watcher.look()
        assert told is not None
        assert [step["device"] for step in told["new"]] == ["laptop"]
        assert told["message"] == "user: from the laptop"


# -- the command -------------------------------------------------------------------------------------------------------


def watching(path: Path, *options: str, environment: dict[str, str], **streams: Any) -> Any:
    command = [*COMMAND, "watch", "t", "--store", f"sqlite:///{path}", "--interval", "0.1"]
    return subprocess.Popen([*command, *options], env=environment, **streams)


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_a_line_a_change_in_a_pipe(
    store: LocalMemory, tmp_path: Path, environment: dict[str, str], options: list[str]
) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with watching(tmp_path / "t.db", *options, environment=environment, **pipes) as process:
        first = process.stdout.readline()
        store.append_messages("t", [{"role": "assistant", "content": "colour \x1b[31m"}])
        second = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert (process.wait(), process.stderr.read()) == (0, "")
    if options:
        assert json.loads(first)["new"] == []
        assert [step["step"] for step in json.loads(second)["new"]] == [1]
    else:
        assert first.endswith("; step 0 (update) by laptop; idle\n")
        assert second.endswith("; step 1 (update) by laptop; idle; assistant: colour \\x1b[31m\n")


def test_in_place_on_a_terminal(
    store: LocalMemory, tmp_path: Path, environment: dict[str, str]
) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    variables = environment | {"TERM": "xterm-256color", "COLUMNS": "80"}
    streams = {"stdin": theirs, "stdout": theirs, "stderr": subprocess.PIPE}
    with watching(tmp_path / "t.db", environment=variables, **streams) as process:
        os.close(theirs)
        shown = b""
        while b"begin" not in shown:
            shown += os.read(ours, 65536)
        agent(store).invoke({"messages": [("user", "go")]}, CONFIG)
        while b"What else?" not in shown:
            shown += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        assert (process.wait(), process.stderr.read()) == (0, b"")
    os.close(ours)
    assert b"interrupted" in shown


def test_bad_use(call: Run, url: str) -> None:
    for arguments, told in (
        (["nobody", "--store", url], "no thread 'nobody'"),
        (["trip", "--store", url, "--interval", "0"], "--interval"),
        (["trip", "--store", "sqlite:///typo.db"], "typo.db does not exist"),
    ):
        done = call("watch", *arguments)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert told in done.err
