"""`python -m bench`: measure, print tables, write JSON."""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from bench import machine, report
from bench.figures import Figure
from bench.plan import COLOURS, DURABILITIES, FULL, QUICK
from bench.run import Run, entrants
from bench.savers import DEFAULT, saver_names
from bench.scenarios import SCENARIOS

Name = TypeVar("Name", bound=str)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def bench(
    scenario: Annotated[
        list[str] | None, typer.Option("--scenario", "-s", help=f"Of {', '.join(SCENARIOS)}.")
    ] = None,
    saver: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Of {', '.join(saver_names())}, or any module:factory. The Sqlite savers take "
            f"part in any case. Default: {' and '.join(DEFAULT)}."
        ),
    ] = None,
    colour: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(COLOURS)}.")] = None,
    durability: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(DURABILITIES)}.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Shorter threads, fewer rounds.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="How often the chat is held.")] = None,
    folder: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Where databases are made.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything, every sample, to this file.")
    ] = None,
) -> None:
    """Measure checkpointers side by side, in one run, on real compiled graphs.

    Options that choose can be repeated; without them everything is measured.
    """
    # Tracing, where the environment turns it on, would be measured with every run.
    os.environ["LANGSMITH_TRACING"] = os.environ["LANGCHAIN_TRACING_V2"] = "false"
    colours = _chosen(colour, COLOURS, "--colour")
    try:
        savers = entrants(saver or DEFAULT, colours)
    except LookupError as error:
        raise typer.BadParameter(str(error), param_hint="--saver") from error
    plan = QUICK if quick else FULL
    if rounds:
        plan = replace(plan, rounds=rounds)
    run = Run(savers, plan, colours, _chosen(durability, DURABILITIES, "--durability"), folder)
    judged = [entrant.name for entrant in savers if not entrant.peer]

    about = {"plan": vars(plan), "machine": machine.describe(folder)}
    console = Console(width=report.WIDTH, highlight=False)
    _introduce(console, about)
    began = time.monotonic()
    # What is imported need not be searched for garbage before every sample.
    gc.collect()
    gc.freeze()
    figures: list[Figure] = []
    for name in _chosen(scenario, SCENARIOS, "--scenario"):
        with Console(stderr=True).status(name):
            found = list(SCENARIOS[name](run))
        figures += found
        for _, same in groupby(found, key=lambda figure: figure.title):
            console.print(report.table(list(same), judged))
        if json_file is not None:
            # Now, not at the end: a run that breaks off keeps what it has measured.
            json_file.write_text(json.dumps(report.as_json(figures, judged, about), indent=1))
    for line in report.verdicts(figures, judged):
        console.print(line)
    console.print(f"measured in {time.monotonic() - began:.0f} s")


def _chosen(names: list[str] | None, known: Iterable[Name], option: str) -> list[Name]:
    known = list(known)
    if names is None:
        return known
    if unknown := set(names) - set(known):
        raise typer.BadParameter(
            f"no {', '.join(sorted(unknown))}; there are {', '.join(known)}", param_hint=option
        )
    return [name for name in known if name in names]


def _introduce(console: Console, about: dict[str, dict[str, Any]]) -> None:
    facts = about["machine"]
    console.print(
        f"plan {about['plan']['name']}; Python {facts['python']}, SQLite {facts['sqlite']}, "
        f"{facts['cores']} cores, load {facts['load']}, fsync {facts['fsync_us']} µs; "
        + ", ".join(f"{name} {found}" for name, found in facts["distributions"].items() if found)
    )
    console.print()


if __name__ == "__main__":
    app()
