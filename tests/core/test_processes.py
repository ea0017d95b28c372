"""Processes that end, or fork, while a saver is in use: what was acknowledged is there, and nobody hangs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.core.support import opened, run


def acknowledged(path: Path, scenario: str) -> list[str]:
    """Run a process of `leaver` to its end. Returns the threads that it said were stored."""
    said = run("leaver", path, scenario, timeout=60)
    lines = [json.loads(line) for line in said.splitlines()]
    assert lines
    return lines


def stored(path: Path) -> set[str]:
    """The threads of a file, each of them read whole."""
    with opened(path) as saver:
        found = {t.config["configurable"]["thread_id"]: t for t in saver.list(None)}
    for name, each in found.items():
        values = each.checkpoint["channel_values"]
        assert values.get("text", name * 500) == name * 500
    return set(found)


@pytest.mark.parametrize(
    "scenario",
    [
        "exit_handler",
        "exit_handler_first_use",
        "thread_writes_on",
        "daemons_write_on",
        "tasks_left_behind",
        "tasks_given_up",
        "no_farewell",
    ],
)
def test_the_end_of_a_process(path: Path, scenario: str) -> None:
    said = acknowledged(path, scenario)
    if scenario in ("exit_handler", "thread_writes_on"):
        assert said[-1] in ("very last", "thread 29")
    if scenario in ("thread_writes_on", "tasks_left_behind"):
        assert list(path.parent.iterdir()) == [path], "it was put in order"
    # What was stored without an answer may be more than that.
    assert set(said) <= stored(path)


def test_a_backend_that_stops_its_caller(path: Path) -> None:
    said = acknowledged(path, "backend_stops")
    assert set(said) <= stored(path)
    assert len(said) >= 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize(
    "scenario", ["parent_closes_first", "threads_busy", "several_at_once", "a_graph_goes_on"]
)
def test_a_fork(path: Path, scenario: str) -> None:
    said = acknowledged(path, scenario)
    assert set(said) <= stored(path)
    assert len(said) == len(set(said))
