"""Options and arguments that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Branch", "Json", "Limit", "Replica", "Store", "ThreadId", "Timeout", "Yes"]

Store = Annotated[
    str | None,
    typer.Option(
        metavar="URL_OR_PROVIDER",
        help="sqlite:///threads.db, another database's URL, or a provider's name. By default what the environment or "
        "charm.yaml says, else local.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
ThreadId = Annotated[
    str, typer.Argument(metavar="THREAD", help="The thread's id.", show_default=False)
]
Replica = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="This device's file in front of --store; true for the usual one.",
        show_default=False,
    ),
]
Branch = Annotated[
    str | None,
    typer.Argument(
        metavar="BRANCH",
        help="How the branch's id begins, as conflicts lists it.",
        show_default=False,
    ),
]
Timeout = Annotated[float, typer.Option(min=0, metavar="SECONDS", help="How long to wait.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Limit = Annotated[int, typer.Option(min=0, metavar="N", help="At most so many; 0 for all.")]
