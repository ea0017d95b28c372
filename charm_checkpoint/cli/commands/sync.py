"""Looking after a replica."""

from __future__ import annotations

from typing import Annotated

import typer

from charm_checkpoint.cli.commands.options import Json, Limit, Replica, Store, Timeout

__all__ = ["app"]

app = typer.Typer(
    rich_markup_mode=None,
    help="Look after a replica: what the store behind it lacks, and what this device does. With --store it is the "
    "usual replica of that store, else the configured one.",
)


@app.command("status")
def sync_status(
    limit: Limit = 20, store: Store = None, replica: Replica = None, json: Json = False
) -> None:
    """Show what waits to be sent, since when, and whether the store behind answers.

    Reads this device's file only: that the store behind is away is what the last process found that asked.
    """
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.stores import opened_replica
    from charm_checkpoint.cli.sync import render_status, status

    with opened_replica(store, replica) as found:
        emit(status(found, limit), json, render_status)


@app.command("watch")
def sync_watch(
    interval: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="How often to look.")
    ] = 1.0,
    limit: Limit = 20,
    store: Store = None,
    replica: Replica = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line, when something changed.")
    ] = False,
) -> None:
    """Show the status as it changes, until Ctrl-C.

    In place on a terminal, else a line each time that something changed.
    """
    from charm_checkpoint.cli.stores import opened_replica
    from charm_checkpoint.cli.sync import watch

    with opened_replica(store, replica) as found:
        watch(found, limit, interval, as_json=json)


@app.command("push")
def sync_push(
    timeout: Timeout = 30.0, store: Store = None, replica: Replica = None, json: Json = False
) -> None:
    """Send everything that waits, and wait until it is there."""
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.stores import opened_replica
    from charm_checkpoint.cli.transfer import push, render_push

    with opened_replica(store, replica, asks=True) as found:
        report = push(found, timeout)
        emit(report, json, render_push)
    if not report["ok"]:
        raise typer.Exit(1)


@app.command("pull")
def sync_pull(
    threads: Annotated[
        list[str] | None,
        typer.Argument(metavar="THREAD", help="Threads; none for the newest.", show_default=False),
    ] = None,
    limit: Limit = 50,
    timeout: Timeout = 30.0,
    store: Store = None,
    replica: Replica = None,
    json: Json = False,
) -> None:
    """Bring threads to this device as they are now, so that they can be gone on with offline.

    Makes the replica where there is none. --limit is for the newest ones; --timeout for each thread.
    """
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.stores import opened_replica
    from charm_checkpoint.cli.transfer import pull, render_pull

    with opened_replica(store, replica, asks=True, make=True) as found:
        report = pull(found, threads or [], limit, timeout)
        emit(report, json, render_pull)
    if not report["ok"]:
        raise typer.Exit(2 if report["missing"] else 1)
