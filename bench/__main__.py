"""`python -m bench`: measure, print tables, write JSON."""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from bench import machine, report, servers
from bench.figures import Figure
from bench.groups import GROUPS
from bench.plan import COLOURS, DURABILITIES, FULL, QUICK
from bench.run import Run
from bench.savers import saver_names

Name = TypeVar("Name", bound=str)

SCENARIOS = "; ".join(f"{name}: {', '.join(group.scenarios)}" for name, group in GROUPS.items())

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def bench(
    group: Annotated[
        str, typer.Option("--group", "-g", help=f"What is compared, of {', '.join(GROUPS)}.")
    ] = next(iter(GROUPS)),
    scenario: Annotated[
        list[str] | None, typer.Option("--scenario", "-s", help=f"Of {SCENARIOS}.")
    ] = None,
    saver: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Of {', '.join(saver_names())}, or any module:factory. The group's peers take "
            "part in any case."
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

    Options that choose can be repeated; without them everything of the group is measured.
    """
    # Tracing, where the environment turns it on, would be measured with every run.
    os.environ["LANGSMITH_TRACING"] = os.environ["LANGCHAIN_TRACING_V2"] = "false"
    [chosen] = (GROUPS[name] for name in _chosen([group], GROUPS, "--group"))
    scenarios = _chosen(scenario, chosen.scenarios, "--scenario")
    colours = _chosen(colour, COLOURS, "--colour")
    durabilities = _chosen(durability, DURABILITIES, "--durability")
    try:
        savers = chosen.entrants(saver or chosen.savers, colours)
    except LookupError as error:
        raise typer.BadParameter(str(error), param_hint="--saver") from error
    plan = QUICK if quick else FULL
    if rounds:
        plan = replace(plan, rounds=rounds, far=plan.far and replace(plan.far, rounds=rounds))
    about: dict[str, Any] = {
        "group": group,
        "plan": asdict(plan),
        "machine": machine.describe(folder),
    }
    console = Console(width=report.WIDTH, highlight=False)
    with ExitStack() as stack:
        started = None
        for kind in {each.remote for each in savers if each.remote}:
            started = stack.enter_context(servers.start(kind))
            about["server"] = started.about()
        _introduce(console, about)
        run = Run(savers, chosen.peers, plan, colours, durabilities, folder, started)
        began = time.monotonic()
        # What is imported need not be searched for garbage before every sample.
        gc.collect()
        gc.freeze()
        figures: list[Figure] = []
        for name in scenarios:
            with Console(stderr=True).status(name):
                found = list(chosen.scenarios[name](run))
            figures += found
            for _, same in groupby(found, key=lambda figure: figure.title):
                console.print(report.table(list(same)))
            if json_file is not None:
                # Now, not at the end: a run that breaks off keeps what it has measured.
                json_file.write_text(json.dumps(report.as_json(figures, about), indent=1))
    for line in report.verdicts(figures):
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


def _introduce(console: Console, about: dict[str, Any]) -> None:
    facts = about["machine"]
    console.print(
        f"plan {about['plan']['name']}; Python {facts['python']}, SQLite {facts['sqlite']}, "
        f"{facts['cores']} cores, load {facts['load']}, fsync {facts['fsync_us']} µs; "
        + ", ".join(f"{name} {found}" for name, found in facts["distributions"].items() if found)
    )
    if server := about.get("server"):
        console.print("server: " + ", ".join(f"{name} {found}" for name, found in server.items()))
    console.print()


if __name__ == "__main__":
    app()
