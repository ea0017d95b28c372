"""`charm-checkpoint` and its commands, in the order of its help."""

from __future__ import annotations

from typing import Annotated

import typer

from charm_checkpoint.cli.commands import branches, change, look, move, setup, sync

__all__ = ["app"]

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Look at the threads of agents, copy and fork them, delete and prune them, check their store, look after a "
    "replica; watch a thread go from device to device.",
    epilog="Exit codes: 0 done; 1 the database or a check failed, or you said no; 2 bad use.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from charm_checkpoint.cli.versions import version_of

        typer.echo(f"charm-checkpoint {version_of('charm-checkpoint') or '(not installed)'}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


for command in (
    setup.demo,
    look.threads,
    look.show,
    look.history,
    look.diff,
    look.watch,
    change.delete,
    change.erase,
    change.prune,
    change.compact,
    move.copy,
    move.export,
    move.import_,
    move.fork,
    setup.doctor,
    branches.conflicts,
    branches.promote,
    branches.dismiss,
    setup.sql,
    setup.plugins,
):
    app.command(command.__name__.rstrip("_"))(command)  # import_, as import is Python's
app.add_typer(sync.app, name="sync")
