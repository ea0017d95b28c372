"""Figures as tables, as a verdict, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from bench.figures import Figure, Spread, Target

__all__ = ["WIDTH", "as_json", "table", "verdicts"]

WIDTH = 88


def table(figures: Sequence[Figure]) -> Table:
    """One table of the figures, which share their title."""
    first = figures[0]
    title = first.title
    if peers := " / ".join(dict.fromkeys(map(_better, first.peers.values()))):
        title += f"; {'overhead ' if first.overhead else ''}ratio to {peers}"
    sheet = Table(
        title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0)
    )
    columns = (("case", 16), ("saver", 22), ("median (IQR)", 20), ("ratio (IQR)", 17), ("", 7))
    for header, width in columns:
        sheet.add_column(header, width=width, overflow="fold", header_style="dim")
    for figure in figures:
        labels = [figure.case, f"  {figure.unit}"]
        if figure.target is not None:
            labels[1] += f", {_goal(figure.target)}"
        last = len(figure.samples) - 1
        for row, entrant in enumerate(figure.samples):
            ratio = figure.ratio(entrant)
            sheet.add_row(
                "\n".join(labels[row:] if row == last else labels[row : row + 1]),
                figure.label(entrant),
                _text(figure.value(entrant)),
                _text(ratio) if ratio else "1" if entrant == figure.peer(entrant) else "",
                _verdict(figure.reached(entrant)),
            )
        sheet.add_row()
    return sheet


def verdicts(figures: Sequence[Figure]) -> Iterator[str]:
    """How many targets each saver reached, and after each which it missed."""
    reached: dict[str, list[bool]] = {}
    missed: dict[str, list[str]] = {}
    for figure in figures:
        for entrant in figure.samples:
            measured = figure.measured(entrant)
            if figure.target is None or measured is None:
                continue
            name = entrant.saver.name
            reached.setdefault(name, []).append(figure.target.reached(measured))
            if not reached[name][-1]:
                missed.setdefault(name, []).append(
                    f"  missed: {figure.title}, {figure.case}, {figure.label(entrant)}: "
                    f"{_text(measured)}, not {_goal(figure.target)}"
                )
    for name, all_of_it in reached.items():
        yield f"{name}: {sum(all_of_it)} of {len(all_of_it)} targets reached"
        yield from missed.get(name, [])


def as_json(figures: Sequence[Figure], about: dict[str, Any]) -> dict[str, Any]:
    """Everything measured, with every sample."""
    return {
        **about,
        "figures": [
            {
                "title": figure.title,
                "case": figure.case,
                "unit": figure.unit,
                "ratio_of": "overhead" if figure.overhead else "value",
                "target": figure.target and vars(figure.target),
                "savers": {
                    figure.label(entrant): {
                        "samples": list(samples),
                        "value": figure.value(entrant)._asdict(),
                        "ratio": ratio._asdict() if (ratio := figure.ratio(entrant)) else None,
                        "ratio_to": figure.label(peer) if (peer := figure.peer(entrant)) else None,
                        "reached": figure.reached(entrant),
                    }
                    for entrant, samples in figure.samples.items()
                },
            }
            for figure in figures
        ],
    }


def _better(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    most, last = ", ".join(names[:-1]), names[-1]
    return f"the {'better' if len(names) == 2 else 'best'} of {most} and {last}"


def _goal(target: Target) -> str:
    return f"{'≤' if target.kind == 'at most' else '≥'} {target.limit:g}"


def _verdict(reached: bool | None) -> str:
    return "" if reached is None else "[green]reached" if reached else "[red]missed"


def _text(spread: Spread) -> str:
    median, low, high = map(_number, spread)
    return median if low == high else f"{median} ({low}–{high})"


def _number(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"
