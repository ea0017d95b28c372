from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.channels import DeltaChannel
from langgraph.graph import START, StateGraph
from langgraph.graph.message import _messages_delta_reducer
from pydantic import BaseModel

from charm_checkpoint.cli import reports
from charm_checkpoint.cli.diff import gather
from charm_checkpoint.errors import ConfigError
from charm_checkpoint.sqlite import LocalMemory

Run = Callable[..., Any]
CONFIG: Any = {"configurable": {"thread_id": "t"}}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalMemory]:
    with LocalMemory({"path": str(tmp_path / "t.db"), "device": "laptop"}) as store:
        yield store


class Seat(BaseModel):
    number: int


class State(TypedDict, total=False):
    value: Any
    other: Any
    added: Annotated[list[str], operator.add]


def between(store: LocalMemory, old: Any, new: Any) -> Any:
    """What `diff` tells of one channel that changed from one value to another."""
    builder = StateGraph(State).add_node("a", lambda state: {}).add_edge(START, "a")
    graph: Any = builder.compile(checkpointer=store.get_langgraph_checkpointer())
    graph.update_state(CONFIG, {"value": old, "other": 1})
    graph.update_state(CONFIG, {"value": new})
    report = gather(store, "t", limit=0)
    assert report["unchanged"] == ["other"]
    [difference] = report["differences"]
    assert (difference["channel"], difference["change"]) == ("value", "changed")
    return [(p["path"], p["change"], p["before"], p["after"]) for p in difference["parts"]]


USER = {"role": "user", "content": "hi", "id": "1"}


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        (1, 2, []),
        ("x", ["x"], []),
        (1, True, []),
        ([1, 2], [1, 2, 3], [("[2]", "added", None, 3)]),
        ([1, 2, 3], [3], [("[0]", "removed", 1, None), ("[1]", "removed", 2, None)]),
        ([1, 2, 3], [1, 9, 3], [("[1]", "changed", 2, 9)]),
        ([], ["x"], [("[0]", "added", None, "x")]),
        ({"a": 1, "b": 2}, {"b": 3, "c": None}, [
            ("['a']", "removed", 1, None), ("['b']", "changed", 2, 3), ("['c']", "added", None, None)
        ]),
        ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}, [("['a'][0]['b']", "changed", 1, 2)]),
        ([USER], [{**USER, "content": "ho"}], [("[0]", "changed", USER, {**USER, "content": "ho"})]),
        (
            [USER, {"id": "2"}], [{"id": "3"}, USER],
            [("[1]", "removed", {"id": "2"}, None), ("[0]", "added", None, {"id": "3"})],
        ),
        ([USER, {"id": "2"}], [{"id": "2"}, USER], []),
        ({"a": {1, 2}}, {"a": {1}}, [("['a']", "changed", "{1, 2}", "{1}")]),
    ],
)  # fmt: skip
def test_within_a_channel(store: LocalMemory, old: Any, new: Any, parts: list[Any]) -> None:
    assert between(store, old, new) == parts


def test_what_the_last_step_changed(
    call: Run, run: Run, url: str, conforms: Callable[[Any, Any], bool]
) -> None:
    report = call("diff", "trip", "--store", url, "--json").json
    assert conforms(report, reports.Diff)
    assert (report["before"]["step"], report["after"]["step"]) == (0, 1)
    found = {d["channel"]: d for d in report["differences"]}
    assert {c: d["change"] for c, d in found.items()} == {
        "messages": "changed", "note": "added", "seat": "added",
    }  # fmt: skip
    [part] = found["messages"]["parts"]
    assert (part["path"], part["change"], part["before"]) == ("[1]", "added", None)
    assert part["after"]["content"] == "Found one."
    assert "Seat" in found["seat"]["error"]
    out = run("diff", "trip", "--store", url).out
    assert "messages: 1 added\n+ [1] assistant: Found one." in out
    assert "note: added\n+ 'by the window'" in out
    assert "seat: added\n! not shown: " in out


def test_two_checkpoints_by_how_their_ids_begin(call: Run, url: str) -> None:
    steps = call("history", "forked", "--store", url, "--json").json["checkpoints"]
    head = next(s["checkpoint_id"] for s in steps if s["is_head"])
    branch = next(s["checkpoint_id"] for s in steps if s["is_branch"])
    report = call("diff", "forked", branch, "--store", url, "--json").json
    ends = [report[side]["checkpoint_id"] for side in ("before", "after")]
    assert ends == [branch, head]
    [messages] = [d for d in report["differences"] if d["channel"] == "messages"]
    parts = {(p["change"], (p["before"] or p["after"])["id"]) for p in messages["parts"]}
    shown = {call("show", "forked", "--store", url, "--json").json["messages"][-1]["id"]}
    assert {id for change, id in parts if change == "added"} >= shown
    assert {change for change, _ in parts} == {"added", "removed"}
    back = call("diff", "forked", head[:25], branch, "--store", url, "--json").json
    assert (back["before"], back["after"]) == (report["after"], report["before"])
    same = call("diff", "forked", head, head, "--store", url)
    assert "No channel differs." in same.out


def test_the_first_has_nothing_before_it(call: Run, url: str) -> None:
    first = call("history", "trip", "--store", url, "--json").json["checkpoints"][-1]
    second = call("diff", "talk", "--store", url, "--json").json
    assert second["before"] is None
    assert [d["change"] for d in second["differences"]] == ["added"]
    assert "nothing: it is the first" in call("diff", "talk", "--store", url).out
    assert first["parent_id"] is None


def test_another_thread(call: Run, store: LocalMemory, tmp_path: Path) -> None:
    store.save_messages("t", [{"role": "user", "content": "hi"}])
    store.get_langgraph_checkpointer().copy_thread("t", "copy")
    url = f"sqlite:///{tmp_path}/t.db"
    assert call("diff", "t", "--with", "copy", "--store", url, "--json").json["differences"] == []
    store.append_messages("copy", [{"role": "assistant", "content": "there"}])
    report = call("diff", "t", "--with", "copy", "--store", url, "--json").json
    assert [report[side]["thread_id"] for side in ("before", "after")] == ["t", "copy"]
    [messages] = report["differences"]
    assert [p["after"]["content"] for p in messages["parts"]] == ["there"]


def test_limit(call: Run, run: Run, store: LocalMemory, tmp_path: Path) -> None:
    store.save_messages("t", [{"role": "user", "content": str(i)} for i in range(30)])
    store.save_messages("t", [])
    url = f"sqlite:///{tmp_path}/t.db"
    [messages] = call("diff", "t", "--store", url, "--json").json["differences"]
    assert (len(messages["parts"]), messages["more"]) == (20, 10)
    out = run("diff", "t", "--store", url, "--limit", "3").out
    assert "messages: 30 removed\n" in out
    assert "… and 27 more; --limit 0 shows all." in out
    [messages] = call("diff", "t", "--store", url, "--limit", "0", "--json").json["differences"]
    assert (len(messages["parts"]), messages["more"]) == (30, 0)


class Chat(TypedDict):
    messages: Annotated[list[Any], DeltaChannel(_messages_delta_reducer)]
    counts: Annotated[list[int], DeltaChannel(lambda value, updates: [*(value or ()), *updates])]


def test_channels_that_are_kept_as_changes(store: LocalMemory) -> None:
    chat = StateGraph(Chat).add_node("a", lambda _: {"messages": [("ai", "hello")], "counts": 1})
    built = chat.add_edge(START, "a").compile(store.get_langgraph_checkpointer())
    built.invoke({"messages": [("user", "hi")], "counts": 0}, CONFIG)
    counts, messages = gather(store, "t")["differences"]
    assert [(p["change"], p["after"]["content"]) for p in messages["parts"]] == [("added", "hello")]
    assert not messages["as_writes"]
    assert (counts["as_writes"], counts["change"], counts["error"]) == (True, "changed", None)
    assert counts["parts"] == [{"path": "[0]", "change": "added", "before": None, "after": 1}]


class Log(TypedDict):
    log: Annotated[
        list[int],
        DeltaChannel(lambda value, updates: [*(value or ()), *updates], snapshot_frequency=3),
    ]


def test_writes_across_snapshots_and_branches(
    store: LocalMemory, call: Run, tmp_path: Path
) -> None:
    """Whatever was written on either way since the two parted, also where a snapshot lies between."""
    graph = StateGraph(Log).add_node("a", lambda state: {"log": -len(state["log"])})
    built = graph.add_edge(START, "a").compile(store.get_langgraph_checkpointer())
    for n in range(1, 5):
        built.invoke({"log": n}, CONFIG)
    states = list(built.get_state_history(CONFIG))
    for new, old in ((0, 3), (0, 6), (1, 10)):
        config = [states[place].config["configurable"]["checkpoint_id"] for place in (old, new)]
        [log] = gather(store, "t", config, limit=0)["differences"]
        assert log["as_writes"]
        before, after = (states[place].values["log"] for place in (old, new))
        assert [p["after"] for p in log["parts"]] == after[len(before) :]
        assert {p["change"] for p in log["parts"]} == {"added"}

    store.fork("t", "other", at=states[3].config["configurable"]["checkpoint_id"])
    built.invoke({"log": 70}, {"configurable": {"thread_id": "other"}})
    [log] = gather(store, "t", other="other", limit=0)["differences"]
    assert [(p["change"], p["before"], p["after"]) for p in log["parts"]] == [("changed", 4, 70)]
    told = call("diff", "t", "--with", "other", "--store", f"sqlite:///{tmp_path}/t.db").out
    assert "log: 1 changed (shown as writes)" in told


def test_messages_of_a_subgraph_that_are_kept_as_changes(store: LocalMemory) -> None:
    inner = StateGraph(Chat).add_node("b", lambda _: {"messages": [("ai", "hello")]})
    sub = inner.add_edge(START, "b").compile(checkpointer=True)
    outer = StateGraph(State).add_node(
        "inner", lambda _: bool(sub.invoke({"messages": [("user", "hi")]})) and {"value": 1}
    )
    built = outer.add_edge(START, "inner").compile(store.get_langgraph_checkpointer())
    built.invoke({"other": 1}, CONFIG)
    [messages] = gather(store, "t", namespace="inner")["differences"]
    assert [p["after"]["content"] for p in messages["parts"]] == ["hello"]


def test_subgraph(store: LocalMemory) -> None:
    inner = StateGraph(State).add_node("b", lambda _: {"value": 7}).add_edge(START, "b")
    outer = StateGraph(State).add_node("inner", inner.compile(checkpointer=True))
    built = outer.add_edge(START, "inner").compile(store.get_langgraph_checkpointer())
    built.invoke({"other": 1}, CONFIG)
    report = gather(store, "t", namespace="inner")
    assert [d["channel"] for d in report["differences"]] == ["value"]
    with pytest.raises(ConfigError, match="no checkpoints in namespace 'outer'"):
        gather(store, "t", namespace="outer")


def test_bad_ids(call: Run, url: str) -> None:
    for arguments, told in (
        (["nobody"], "no thread 'nobody'"),
        (["trip", "--with", "nobody"], "no thread 'nobody'"),
        (["trip", "zzz"], "no checkpoint whose id begins with 'zzz'; history lists them"),
        (["trip", "1"], "3 checkpoints whose ids begin with '1'"),
        (["trip", "1", "2", "3"], "unexpected extra argument"),
    ):
        done = call("diff", *arguments, "--store", url)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert told in done.err


def test_a_terminal_of_80_columns(terminal: Run, url: str, plain: Callable[[str], bool]) -> None:
    shown = terminal("diff", "trip", "--store", url, NO_COLOR="1").out
    assert max(map(len, shown.splitlines())) <= 80
    assert plain(shown)
    assert "\x1b[32m+" in terminal("diff", "trip", "--store", url).out


def test_stored_text_cannot_command_the_terminal(
    call: Run, url: str, odd: str, plain: Callable[[str], bool]
) -> None:
    done = call("diff", odd, "--store", url)
    assert done.code == 0
    assert plain(done.out)
    assert (
        r"+ [0] user: colour \x1b[31m\u202e"
        in call("diff", "talk", "--with", odd, "--store", url).out
    )
