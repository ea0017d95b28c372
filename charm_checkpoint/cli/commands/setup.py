"""The installation and its databases."""

from __future__ import annotations

from typing import Annotated

import typer

from charm_checkpoint.cli.commands.options import Json, Replica, Store

__all__ = ["demo", "doctor", "plugins", "sql"]


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the demo's file and say where it is.")
    ] = False,
    json: Json = False,
) -> None:
    """Watch a thread stop on one device and go on at another.

    Three real processes share one SQLite file in a temporary folder; the first is killed while it waits. No network, no
    key. Needs LangGraph: pip install "charm-checkpoint[demo]".
    """
    from charm_checkpoint.cli.demo.play import play

    raise typer.Exit(play(keep=keep, as_json=json))


def doctor(store: Store = None, replica: Replica = None, json: Json = False) -> None:
    """Check the installation, the store and the clock, and a replica with what is behind it."""
    from charm_checkpoint.cli.doctor import gather, render
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.stores import opened, quiet

    with quiet(), opened(store, replica) as found:
        report = gather(found)
        emit(report, json, render)
    if not report["ok"]:
        raise typer.Exit(1)


def sql(
    provider: Annotated[
        str, typer.Argument(metavar="PROVIDER", help="postgres, for one.", show_default=False)
    ],
    schema: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Where the tables go. By default the provider's own.",
            show_default=False,
        ),
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Let this role read and write them, and no more.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print the SQL that makes a provider's tables.

    For databases where agents may not make them: their owner runs it, before the first use and again with each release;
    it changes nothing that is there already. Connects to nothing.
    """
    from charm_checkpoint.cli.sql import script

    # In bytes: the output's own encoding might not have the names.
    typer.echo(script(provider, schema=schema, role=role).encode(), nl=False)


def plugins(json: Json = False) -> None:
    """List the installed providers of stores."""
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.plugins import gather, render

    emit(gather(), json, render)
