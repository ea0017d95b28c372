"""The commands and their options. What they do is imported when they run, so that `--help` is quick."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Look at the threads of agents, delete them, check their store; watch one go from device to device.",
    epilog="Exit codes: 0 done; 1 the database or a check failed, or you said no; 2 bad use.",
)

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
Limit = Annotated[int, typer.Option(min=0, metavar="N", help="At most so many; 0 for all.")]


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


@app.command()
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


@app.command()
def threads(limit: Limit = 50, store: Store = None, json: Json = False) -> None:
    """List threads, newest first."""
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.stores import opened
    from charm_checkpoint.cli.threads import list_threads, render_threads

    with opened(store) as found:
        emit(list_threads(found, limit), json, render_threads)


@app.command()
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


@app.command()
def history(
    thread: ThreadId,
    namespace: Annotated[
        str,
        typer.Option(
            metavar="NS", help="A subgraph's namespace, as show lists them.", show_default=False
        ),
    ] = "",
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


@app.command()
def delete(
    thread: ThreadId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    store: Store = None,
    json: Json = False,
) -> None:
    """Delete a thread with its whole history.

    Asks first; where nobody can be asked it needs --yes.
    """
    from charm_checkpoint.cli import threads as command
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.stores import opened

    with opened(store) as found:
        report = command.delete(found, thread, confirmed=yes)
        emit(report, json, command.render_deletion)
    if not report["deleted"]:
        raise typer.Exit(1)


@app.command()
def doctor(store: Store = None, json: Json = False) -> None:
    """Check the installation, the store and the clock."""
    from charm_checkpoint.cli.doctor import gather, render
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.stores import opened

    with opened(store) as found:
        report = gather(found)
        emit(report, json, render)
    if not report["ok"]:
        raise typer.Exit(1)


@app.command()
def plugins(json: Json = False) -> None:
    """List the installed providers of stores."""
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.plugins import gather, render

    emit(gather(), json, render)
