"""What commands print: one JSON object, or text for the width of the terminal.

Nothing that was stored reaches the terminal as it is: control characters, which could move its cursor or change its
colours, are shown as escapes.
"""

from __future__ import annotations

import json
import os
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from charm_checkpoint.errors import ConfigError

__all__ = [
    "WIDE",
    "amount",
    "ask",
    "console",
    "emit",
    "facts",
    "iso",
    "local",
    "preview",
    "printable",
    "progress",
    "shorten",
    "size",
]

R = TypeVar("R", bound=Mapping[str, Any])

WIDE = 120
"""Columns from which tables show everything."""

# So that a program that reads the text gets every column whole.
_PIPED_WIDTH = 1000


def console() -> Console:
    """Standard output: coloured on a terminal, unless `NO_COLOR` is set; never cut or folded in a pipe."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPED_WIDTH
    return Console(
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        width=width,
        markup=False,
        emoji=False,
        highlight=False,
    )


def emit(report: R, as_json: bool, render: Callable[[R, Console], None]) -> None:
    """Print a report as JSON, or as `render` draws it."""
    if as_json:
        # ASCII, so that lone surrogates in stored text are still valid JSON.
        print(json.dumps(report, indent=2, default=repr))
    else:
        render(report, console())


@contextmanager
def progress(doing: str, total: int | None) -> Iterator[Callable[..., object]]:
    """A bar on standard error while it is a terminal, gone at the end. `total` is `None` where nobody knows how much.

    Call what it gives with how much is done, and with how much there is where that was not known before.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    bar = Progress(
        TextColumn(doing),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True, color_system=None if os.environ.get("NO_COLOR") else "auto"),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task(doing, total=total)
        yield lambda done, total=total: bar.update(task, completed=done, total=total)


def ask(question: str, *, what: str) -> bool:
    """Ask on standard error whether to go on.

    Args:
        question: To be answered with yes or no.
        what: What asks, for the message where nobody can be asked.

    Raises:
        ConfigError: Nobody is there to be asked.
    """
    if not sys.stdin.isatty():
        raise ConfigError(f"{what}, and here is no terminal; pass --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def amount(count: int, one: str, many: str | None = None) -> str:
    """So many of something, whose plural by default ends with an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def size(count: int) -> str:
    """A number of bytes."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count} bytes"


def facts(rows: Mapping[str, str | None]) -> Table:
    """A list of names and values; those without a value are left out."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    return table


def iso(seconds: float) -> str | None:
    """A moment in UTC, as JSON has it; `None` if no calendar has it."""
    moment = _moment(seconds)
    return moment.isoformat(timespec="milliseconds") if moment else None


def local(seconds: str | None, *, precise: bool = True) -> str:
    """A moment as `iso` wrote it, in local time with its zone."""
    if seconds is None:
        return "?"
    moment = datetime.fromisoformat(seconds).astimezone()
    zone = moment.strftime("%Z")
    if len(zone) > 5:  # Windows has names like "W. Europe Standard Time"
        zone = moment.strftime("%z")
    return f"{moment:%Y-%m-%d %H:%M:%S} {zone}" if precise else f"{moment:%Y-%m-%d %H:%M} {zone}"


def _moment(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return None


def preview(value: object, width: int) -> str:
    """One line of at most `width` characters that shows what a value is; cheap for large values."""
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = brief.maxlong = width
    brief.maxdict = brief.maxlist = brief.maxtuple = brief.maxset = brief.maxfrozenset = 10
    return shorten(brief.repr(value), width)


def shorten(text: str, width: int) -> str:
    """One line of at most `width` characters."""
    text = printable(" ".join(text[: 4 * width].split()))
    return text if len(text) <= width else text[: width - 1] + "…"


def printable(text: str) -> str:
    """The text on one line, with escapes for what no terminal should get."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
