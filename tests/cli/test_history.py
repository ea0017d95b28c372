from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt
from rich.console import Console

from charm_checkpoint.cli import reports
from charm_checkpoint.cli.history import step_table
from charm_checkpoint.cli.lanes import draw, order
from charm_checkpoint.sqlite import LocalMemory

Run = Callable[..., Any]


def test_json_tells_branches(call: Run, url: str, conforms: Callable[[Any, Any], bool]) -> None:
    report = call("history", "forked", "--store", url, "--json").json
    assert conforms(report, reports.History)
    steps = report["checkpoints"]
    assert report["total"] == len(steps)
    (head,) = (s for s in steps if s["is_head"])
    assert head["checkpoint_id"] == report["head"]
    # Answered twice: what the first answer led to is a branch, and both grew from the same checkpoint.
    assert [s["step"] for s in steps if s["is_branch"]] == [2]
    by_id = {s["checkpoint_id"]: s for s in steps}
    (branch,) = (s for s in steps if s["is_branch"])
    trunk = head
    while trunk["step"] > branch["step"] - 1:
        trunk = by_id[trunk["parent_id"]]
    assert branch["parent_id"] == trunk["checkpoint_id"]
    assert steps[-1]["step"] == -1
    assert steps[-1]["parent_id"] is None


def test_limit_still_knows_the_head(call: Run, url: str) -> None:
    report = call("history", "forked", "--store", url, "--json", "--limit", "1").json
    assert len(report["checkpoints"]) == 1
    assert report["total"] > 1
    assert report["checkpoints"][0]["is_head"]
    assert (
        "more; --limit 0 shows all" in call("history", "forked", "--store", url, "--limit", "1").out
    )


def test_drawing(run: Run, terminal: Run, url: str, plain: Callable[[str], bool]) -> None:
    done = run("history", "forked", "--store", url)
    assert done.code == 0
    assert plain(done.out)
    assert "├─╯" in done.out
    marked = [line.split()[-1] for line in done.out.splitlines()]
    assert (marked.count("head"), marked.count("branch")) == (1, 1)
    shown = terminal("history", "forked", "--store", url, NO_COLOR="1").out.splitlines()
    assert max(map(len, shown)) <= 80
    assert len(shown) == len(done.out.splitlines())  # no line was folded


def test_subgraph(call: Run, tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    ask = StateGraph(MessagesState).add_node("ask", lambda _: {"messages": [interrupt("?")]})
    outer = StateGraph(MessagesState).add_node("inner", ask.add_edge(START, "ask").compile())
    with LocalMemory({"path": str(path)}) as store:
        graph = outer.add_edge(START, "inner").compile(store.get_langgraph_checkpointer())
        graph.invoke({"messages": [("user", "hi")]}, {"configurable": {"thread_id": "t"}})
        info = store.thread("t")
        assert info is not None
        _, inner = info.namespaces
    url = f"sqlite:///{path}"
    report = call("history", "t", "--store", url, "--namespace", inner, "--json").json
    assert report["namespace"] == inner
    ids = {step["checkpoint_id"] for step in report["checkpoints"]}
    assert report["head"] in ids
    whole = call("history", "t", "--store", url, "--json").json
    assert ids.isdisjoint(step["checkpoint_id"] for step in whole["checkpoints"])
    wrong = call("history", "t", "--store", url, "--namespace", "innner")
    assert wrong.code == 2
    assert inner in wrong.err


# -- lanes -------------------------------------------------------------------------------------------------------------


def drawn(**parents: str | None) -> list[str]:
    return [f"{lanes} {id or ''}".rstrip() for lanes, id in draw(parents)]


@pytest.mark.parametrize(
    ("parents", "lines"),
    [
        ({}, []),
        ({"a": None}, ["● a"]),
        ({"a": "gone", "b": "a"}, ["● b", "● a"]),
        ({"a": None, "b": "a", "c": "a"}, ["● c", "│ ● b", "├─╯", "● a"]),
        (
            {"a": None, "b": "a", "c": "a", "d": "b", "e": "c"},
            ["● e", "│ ● d", "● │ c", "│ ● b", "├─╯", "● a"],
        ),
        (
            {"a": None, "b": "a", "c": "a", "d": "a"},
            ["● d", "│ ● c", "├─╯", "│ ● b", "├─╯", "● a"],
        ),
        ({"a": None, "b": None, "c": "b"}, ["● c", "● b", "● a"]),
        (  # from the right past a lane that goes on
            {"a": None, "b": None, "c": "a", "d": "b", "e": "a"},
            ["● e", "│ ● d", "│ │ ● c", "├─┼─╯", "│ ● b", "● a"],
        ),
        (
            {"a": "b", "b": None},
            ["● a", "● b"],
        ),  # a clock went backwards: the child first all the same
    ],
)
def test_lanes(parents: dict[str, str | None], lines: list[str]) -> None:
    assert drawn(**parents) == lines


def test_lanes_go_on_where_the_history_is_cut() -> None:
    """Two branches are not drawn as one because what they grew from is not on the page."""
    parents = {"e": "gone", "d": "other", "c": "gone", "b": "c"}
    lines = [f"{lanes} {id or ''}".rstrip() for lanes, id in draw(parents, cut=True)]
    assert lines == ["● e", "│ ● d", "│ │ ● b", "│ │ ● c", "├─┼─╯"]


@pytest.mark.parametrize("branches", [3, 8, 40])
def test_many_branches_in_80_columns(branches: int) -> None:
    ids = [f"1f1e6de8-9385-6{i:03}-8000-000000000000" for i in range(2 * branches)]
    steps: Any = [
        {
            "checkpoint_id": id,
            "parent_id": ids[i - branches] if i >= branches else None,
            "step": i,
            "source": "update",
            "device": "a-laptop-with-a-long-name",
            "created_at": "2026-01-01T00:00:00+00:00",
            "is_head": False,
            "is_branch": True,
        }
        for i, id in reversed(list(enumerate(ids)))
    ]
    console = Console(width=80, file=io.StringIO())
    console.print(step_table(steps, width=80))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 80
    assert all(any(id[:18] in line and "branch" in line for line in lines) for id in ids)


def test_cycle_is_cut() -> None:
    assert sorted(order({"a": "b", "b": "a", "c": "a"})) == ["a", "b", "c"]
    assert len(list(draw({"a": "a"}))) == 1


def test_random_histories() -> None:
    chance = random.Random(7)
    for _ in range(200):
        ids = [f"{i:03}" for i in range(chance.randrange(1, 30))]
        parents = {id: chance.choice([None, "gone", *ids[:i]]) for i, id in enumerate(ids)}
        shown = order(parents)
        assert sorted(shown) == ids
        place = {id: i for i, id in enumerate(shown)}
        assert all(place[id] < place[p] for id, p in parents.items() if p in place)
        for line in draw(parents):
            assert line.lanes.count("●") == (line.checkpoint_id is not None)
            assert ("╯" in line.lanes) == (line.checkpoint_id is None)
