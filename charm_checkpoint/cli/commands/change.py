"""Changing threads."""

from __future__ import annotations

from typing import Annotated

import typer

from charm_checkpoint.cli.commands.options import Json, Replica, Store, ThreadId, Timeout, Yes

__all__ = ["compact", "delete", "erase", "prune"]


def delete(
    thread: ThreadId,
    yes: Yes = False,
    timeout: Timeout = 30.0,
    store: Store = None,
    replica: Replica = None,
    json: Json = False,
) -> None:
    """Delete a thread with its whole history wherever the store keeps it, look whether it is gone, and print a receipt.

    As erase, for one thread, and without writing files anew: what was said is in their free room until that is used
    again. Exit code 1 says that it is not done yet, and then it is to be repeated, or that there never was such a
    thread; the receipt says which. Asks first; where nobody can be asked it needs --yes.
    """
    from charm_checkpoint.cli import erase as command
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.stores import opened, quiet

    with quiet(), opened(store, replica) as found:
        report = command.delete(found, thread, timeout, confirmed=yes)
        emit(report, json, command.render_erasure)
    if not report["done"]:
        raise typer.Exit(1)


def erase(
    threads: Annotated[
        list[str] | None,
        typer.Argument(metavar="THREAD", help="Threads' ids.", show_default=False),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="And all threads with this in the metadata of any checkpoint. Of several, one checkpoint has to have "
            "all. 17 and true are looked for as texts, too; in quotes ('\"17\"') only as a text.",
            show_default=False,
        ),
    ] = None,
    yes: Yes = False,
    timeout: Timeout = 30.0,
    store: Store = None,
    replica: Replica = None,
    json: Json = False,
) -> None:
    """Delete all threads of a subject wherever the store keeps them, look whether they are gone, and print a receipt.

    That is this device's file, what waits in it to be sent, and the store behind. For --label every checkpoint is
    looked at, so threads that have other metadata by now and copies that broke off are found, too. Exit code 1 says
    that it is not done yet, or that nothing was found, and the receipt why; repeat it then, with the ids in the
    receipt. Asks first; where nobody can be asked it needs --yes.
    """
    from charm_checkpoint.cli import erase as command
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.stores import opened, quiet

    with quiet(), opened(store, replica) as found:
        report = command.erase(found, threads or [], label or [], timeout, confirmed=yes)
        emit(report, json, command.render_erasure)
    if not report["done"]:
        raise typer.Exit(1)


def prune(
    thread: Annotated[
        list[str] | None,
        typer.Option(
            metavar="THREAD",
            help="Only this one. Can be given several times.",
            show_default=False,
        ),
    ] = None,
    keep_last: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Keep the newest N checkpoints of each thread's graph, and of each subgraph.",
            show_default=False,
        ),
    ] = None,
    max_age: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Remove checkpoints older than this: seconds, or 12h, 30d.",
            show_default=False,
        ),
    ] = None,
    idle: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Delete threads that nobody wrote to for so long.",
            show_default=False,
        ),
    ] = None,
    max_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Remove a thread's oldest checkpoints until it takes about this: bytes, or 100MB.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Remove nothing; say what would go.")
    ] = False,
    store: Store = None,
    json: Json = False,
) -> None:
    """Remove old history, beside running agents.

    Without limits here those of `retention` in the store's config hold. What always stays: where each thread goes on,
    all that this is read from, threads that wait for an answer, branches that somebody has to decide about, and
    threads with `retention: keep` in their newest metadata. One whose last step has not ended is never idle. In a
    file the room is used again by what comes; compact gives it back.
    """
    from charm_checkpoint.cli import prune as command
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.stores import opened

    limits = {"keep_last": keep_last, "max_age": max_age, "idle_ttl": idle, "max_bytes": max_bytes}
    with opened(store) as found:
        report = command.prune(found, thread or [], limits, dry_run=dry_run)
        emit(report, json, command.render_pruning)


def compact(store: Store = None, replica: Replica = None, json: Json = False) -> None:
    """Give back the room of what was deleted, and store old values in less.

    Beside running agents. A file on this device, such as a replica's, is written anew: they wait, and it needs as much
    room again for that time. In Postgres what only old checkpoints have is packed: its room is free for what comes, and
    only this project's stores read it then.
    """
    from charm_checkpoint.cli import prune as command
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.stores import opened

    with opened(store, replica) as found:
        report = command.compact(found)
        emit(report, json, command.render_compaction)
    if report["complete"] is False:
        raise typer.Exit(1)
