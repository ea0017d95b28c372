"""Looking at threads."""

from __future__ import annotations

from typing import Annotated

import typer

from charm_checkpoint.cli.commands.options import Json, Limit, Replica, Store, ThreadId

__all__ = ["diff", "history", "show", "threads", "watch"]


def threads(
    limit: Limit = 50,
    status: Annotated[
        str | None,
        typer.Option(
            metavar="STATUS",
            help="Only idle, interrupted or failed threads; or diverged ones, as this device's replica knows them.",
            show_default=False,
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Only threads with this in the metadata of their newest checkpoint. Can be given several times.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Only threads that this device wrote last.", show_default=False
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            help="Only threads written since then: 30m, 12h or 7d ago, or a date.",
            show_default=False,
        ),
    ] = None,
    store: Store = None,
    replica: Replica = None,
    json: Json = False,
) -> None:
    """List threads, newest first.

    A thread has diverged if a step of this device became a branch because another device was first, until somebody
    decides; see conflicts.
    """
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.stores import opened
    from charm_checkpoint.cli.threads import list_threads, render_threads

    with opened(store, replica) as found:
        report = list_threads(found, limit, status, label or (), device=device, since=since)
        emit(report, json, render_threads)


def show(
    thread: ThreadId,
    messages: Annotated[
        int, typer.Option(min=0, metavar="N", help="How many of the last messages.")
    ] = 5,
    store: Store = None,
    json: Json = False,
) -> None:
    """Show where a thread stands.

    What it waits for, its state and its last messages, read without the graph's code.
    """
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.show import gather, render
    from charm_checkpoint.cli.stores import opened

    with opened(store) as found:
        emit(gather(found, thread, messages), json, render)


Namespace = Annotated[
    str,
    typer.Option(
        metavar="NS", help="A subgraph's namespace, as show lists them.", show_default=False
    ),
]


def history(
    thread: ThreadId,
    namespace: Namespace = "",
    limit: Limit = 50,
    store: Store = None,
    json: Json = False,
) -> None:
    """Show a thread's checkpoints and branches.

    Newest first. The head is where the thread goes on; a branch is what a fork or the loser of a conflict left.
    """
    from charm_checkpoint.cli.history import gather, render
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.stores import opened

    with opened(store) as found:
        emit(gather(found, thread, namespace, limit), json, render)


def diff(
    thread: ThreadId,
    first: Annotated[
        str | None,
        typer.Argument(
            metavar="A", help="How a checkpoint's id begins, as in history.", show_default=False
        ),
    ] = None,
    second: Annotated[
        str | None,
        typer.Argument(metavar="B", help="Another one. By default the newest.", show_default=False),
    ] = None,
    other: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="THREAD",
            help="The thread that B is of: a fork or a copy, say. Both are the newest by default.",
            show_default=False,
        ),
    ] = None,
    namespace: Namespace = "",
    limit: Annotated[
        int, typer.Option(min=0, metavar="N", help="Of each channel at most so many; 0 for all.")
    ] = 20,
    store: Store = None,
    json: Json = False,
) -> None:
    """Show what one checkpoint has that another has not.

    Channel by channel; messages that were added, removed or changed by their ids. Without A what the last step changed.
    """
    from charm_checkpoint.cli.diff import gather, render
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.stores import opened

    ids = [each for each in (first, second) if each]
    with opened(store) as found:
        report = gather(found, thread, ids, other=other, namespace=namespace, limit=limit)
        emit(report, json, render)


def watch(
    thread: ThreadId,
    interval: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="How often to look.")
    ] = 1.0,
    store: Store = None,
    replica: Replica = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line, when something changed.")
    ] = False,
) -> None:
    """Show a thread as it goes on, until Ctrl-C.

    Its new checkpoints, where it stands and what it asks: in place on a terminal, else a line each time that something
    changed. A look is one request.
    """
    from charm_checkpoint.cli.stores import opened
    from charm_checkpoint.cli.watch import watch as run

    with opened(store, replica) as found:
        run(found, thread, interval, as_json=json)
