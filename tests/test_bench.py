"""The benchmarks measure what they say, on sizes that take no time; no figure is asserted."""

from __future__ import annotations

import gc
import json
import math
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from rich.console import Console

from bench import report
from bench.figures import Figure, Target
from bench.graphs import LostStateError
from bench.plan import Plan
from bench.run import Run, entrants
from bench.savers import resolve
from bench.scenarios import SCENARIOS

ROOT = Path(__file__).parents[1]
TINY = Plan(
    name="tiny",
    rounds=2,
    block=1,
    early=(1, 2),
    late=(3, 4),
    fanouts=2,
    width=3,
    chats=3,
    chat_turns=2,
    crowds=2,
    stored_turns=(2, 4),
    unchanged_steps=2,
    cold_messages=4,
    cold_rounds=1,
)
SYNC = {"SqliteSaver", "InMemorySaver", "charm"}
ASYNC = {"AsyncSqliteSaver", "InMemorySaver", "charm"}
NONE = {"none"}
EXPECTED: dict[str, list[tuple[set[str], int]]] = {
    "chat": [(SYNC | NONE, 4)] * 6 + [(ASYNC | NONE, 4)] * 6,
    "fanout": [(SYNC | NONE, 2), (ASYNC | NONE, 2)],
    "concurrent": [(SYNC, 2), (ASYNC, 2)],
    "storage": [(SYNC | ASYNC, 1)] * 2,
    "unchanged": [(SYNC | ASYNC, 1)] * 2,
    "cold": [(SYNC - {"InMemorySaver"}, 1)] * 2 + [(ASYNC - {"InMemorySaver"}, 1)] * 2,
}
"""For each figure of a scenario: who is in it, and with how many samples."""


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> Iterator[None]:
    """Garbage is collected before each sample: not in everything that the tests have imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_measures_every_saver(scenario: str, tmp_path: Path) -> None:
    run = Run(entrants(["InMemorySaver", "charm"], ["sync", "async"]), TINY, base=tmp_path)

    figures = list(SCENARIOS[scenario](run))

    found = [({*figure.samples}, *{len(s) for s in figure.samples.values()}) for figure in figures]
    assert found == EXPECTED[scenario]
    for figure in figures:
        for saver, samples in figure.samples.items():
            assert all(math.isfinite(sample) for sample in samples), saver
            # An unchanged channel may well cost nothing, and a page may be freed.
            assert scenario == "unchanged" or all(sample > 0 for sample in samples), saver
        assert figure.peer is None or figure.peer in figure.samples
        assert figure.target is None or figure.reached("charm") is not None
    assert list(tmp_path.iterdir()) == [], "folders are removed"
    printed = _printed(figures)
    for figure in figures:
        assert all(word in printed for word in (figure.title, figure.case, *figure.samples))


def _printed(figures: list[Figure]) -> str:
    out = StringIO()
    console = Console(file=out, width=report.WIDTH)
    for figure in figures:
        console.print(report.table([figure], ["charm"]))
    assert all(len(line) <= report.WIDTH for line in out.getvalue().splitlines())
    return out.getvalue()


def test_ratios_are_of_the_overhead_in_the_same_round() -> None:
    figure = Figure(
        title="Turn",
        case="early",
        unit="ms",
        samples={
            "none": [1.0, 11.0, 1.0],
            "peer": [5.0, 15.0, 1.0],  # in the last round no slower than no saver
            "charm": [3.0, 14.0, 9.0],
        },
        peer="peer",
        overhead=True,
        target=Target(0.75),
    )

    ratio = figure.ratio("charm")

    assert ratio is not None
    assert ratio.median == pytest.approx((2 / 4 + 3 / 4) / 2)
    assert (figure.ratio("peer"), figure.ratio("none")) == (None, None)
    assert figure.reached("charm") is True
    assert figure.value("charm").median == 9.0


@pytest.mark.parametrize(
    ("target", "reached"),
    [
        (Target(2.0), True),
        (Target(1.9), False),
        (Target(2.0, "at least"), True),
        (Target(2.1, "at least"), False),
        (Target(8.0, of="value"), True),
        (Target(7.9, of="value"), False),
    ],
)
def test_a_target_is_held_against_the_median(target: Target, reached: bool) -> None:
    samples = {"peer": [4.0, 4.0, 4.0], "charm": [1.0, 8.0, 900.0]}
    figure = Figure("Turn", "late", "ms", samples, peer="peer", target=target)

    assert figure.reached("charm") is reached
    lines = list(report.verdicts([figure], ["charm"]))
    assert lines[0] == f"charm: {int(reached)} of 1 targets reached"
    assert len(lines) == (1 if reached else 2)
    assert ("reached" if reached else "missed") in _printed([figure])


class Forgetful(InMemorySaver):
    """Loses every thread."""

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return None


@contextmanager
def forgetful(folder: Path) -> Iterator[Forgetful]:
    yield Forgetful()


@asynccontextmanager
async def only_async(folder: Path) -> AsyncIterator[InMemorySaver]:
    yield InMemorySaver()


def test_a_saver_that_loses_state_is_not_timed(tmp_path: Path) -> None:
    run = Run([resolve(f"{__name__}:forgetful")], TINY, base=tmp_path)

    for scenario in ("chat", "concurrent", "storage", "cold"):
        with pytest.raises(LostStateError):
            list(SCENARIOS[scenario](run))


def test_a_saver_is_named_by_its_factory() -> None:
    assert resolve(f"{__name__}:forgetful").colours == ("sync", "async")
    assert resolve(f"{__name__}:only_async").colours == ("async",)
    for unknown in ("nobody", "no_such_module:factory", f"{__name__}:no_such_factory"):
        with pytest.raises(LookupError, match=unknown):
            resolve(unknown)


def test_the_command_writes_every_sample(tmp_path: Path) -> None:
    done = _bench("--quick", "-s", "unchanged", "--saver", "charm", "--json", tmp_path / "out.json")

    assert done.returncode == 0, done.stderr
    assert "Unchanged 1 MiB channel" in done.stdout
    written = json.loads((tmp_path / "out.json").read_text())
    assert [figure["case"] for figure in written["figures"]] == ["one str", "list of str"]
    assert set(written["figures"][0]["savers"]) == {"SqliteSaver", "AsyncSqliteSaver", "charm"}
    assert written["machine"]["distributions"]["langgraph"]


def test_the_command_names_what_it_does_not_know() -> None:
    done = _bench("-s", "nonsense")

    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert "Traceback" not in done.stderr


def _bench(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
