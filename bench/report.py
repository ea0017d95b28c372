"""Figures as tables of 80 columns, as a verdict, and as JSON."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from rich.table import Table

from bench.figures import Figure, Spread, Target

__all__ = ["WIDTH", "as_json", "table", "verdicts"]

WIDTH = 80


def table(figures: Sequence[Figure], judged: Collection[str]) -> Table:
    """One table of the figures, which share their title; targets are shown for the judged savers."""
    first = figures[0]
    title = first.title
    peers = dict.fromkeys(figure.peer for figure in figures if figure.peer)
    if peers:
        title += f"; {'overhead ' if first.overhead else ''}ratio to {' / '.join(peers)}"
    sheet = Table(
        title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0)
    )
    columns = (("case", 16), ("saver", 16), ("median (IQR)", 18), ("ratio (IQR)", 17), ("", 7))
    for header, width in columns:
        sheet.add_column(header, width=width, overflow="fold", header_style="dim")
    for figure in figures:
        labels = [figure.case, f"  {figure.unit}"]
        if figure.target is not None:
            labels[1] += f", {_goal(figure.target)}"
        last = len(figure.samples) - 1
        for row, saver in enumerate(figure.samples):
            ratio = figure.ratio(saver)
            sheet.add_row(
                "\n".join(labels[row:] if row == last else labels[row : row + 1]),
                saver,
                _text(figure.value(saver)),
                _text(ratio) if ratio else "1" if saver == figure.peer else "",
                _verdict(figure.reached(saver)) if saver in judged else "",
            )
        sheet.add_row()
    return sheet


def verdicts(figures: Sequence[Figure], judged: Collection[str]) -> Iterator[str]:
    """One line for each judged saver: how many targets it reached, and then those it missed."""
    for saver in judged:
        aims = [
            (figure, reached)
            for figure in figures
            if saver in figure.samples and (reached := figure.reached(saver)) is not None
        ]
        if aims:
            count = sum(reached for _, reached in aims)
            yield f"{saver}: {count} of {len(aims)} targets reached"
        for figure, reached in aims:
            if not reached and figure.target is not None:
                measured = figure.measured(saver)
                assert measured is not None
                yield f"  missed: {figure.title}, {figure.case}: {_text(measured)}, not " + _goal(
                    figure.target
                )


def as_json(
    figures: Sequence[Figure], judged: Collection[str], about: dict[str, Any]
) -> dict[str, Any]:
    """Everything measured, with every sample."""
    return {
        **about,
        "figures": [
            {
                "title": figure.title,
                "case": figure.case,
                "unit": figure.unit,
                "peer": figure.peer,
                "ratio_of": "overhead" if figure.overhead else "value",
                "target": figure.target and vars(figure.target),
                "savers": {
                    saver: {
                        "samples": list(samples),
                        "value": figure.value(saver)._asdict(),
                        "ratio": ratio._asdict() if (ratio := figure.ratio(saver)) else None,
                        "reached": figure.reached(saver) if saver in judged else None,
                    }
                    for saver, samples in figure.samples.items()
                },
            }
            for figure in figures
        ],
    }


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
