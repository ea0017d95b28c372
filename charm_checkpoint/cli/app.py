"""The commands and their options. What they do is imported when they run, so that `--help` is quick."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Look at the threads of agents, delete them, check their store, look after a replica; watch a thread go from "
    "device to device.",
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
    yes: Yes = False,
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


sync = typer.Typer(
    rich_markup_mode=None,
    help="Look after a replica: what the store behind it lacks, and what this device does. With --store it is the "
    "usual replica of that store, else the configured one.",
)
app.add_typer(sync, name="sync")


@sync.command("status")
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


@sync.command("watch")
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


@sync.command("push")
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


@sync.command("pull")
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


@app.command()
def conflicts(
    thread: Annotated[
        str | None, typer.Argument(metavar="THREAD", help="Only of it.", show_default=False)
    ] = None,
    store: Store = None,
    replica: Replica = None,
    json: Json = False,
) -> None:
    """List branches that this device's replica made because another device was first.

    A conflict is on the list of the device whose steps became a branch, until somebody there decides.
    """
    from charm_checkpoint.cli.conflicts import list_conflicts, render_conflicts
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.stores import opened_replica

    with opened_replica(store, replica) as found:
        emit(list_conflicts(found, thread), json, render_conflicts)


@app.command()
def promote(
    thread: ThreadId,
    branch: Branch = None,
    yes: Yes = False,
    store: Store = None,
    replica: Replica = None,
    json: Json = False,
) -> None:
    """Make the branch of a conflict what its thread goes on from.

    Shows both and asks first; where nobody can be asked it needs --yes. What the thread went on from before stays as a
    branch. Of several branches name one.
    """
    from charm_checkpoint.cli import conflicts as command
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.stores import opened_replica

    with opened_replica(store, replica, asks=True) as found:
        report = command.promote(found, thread, branch, confirmed=yes)
        emit(report, json, command.render_promotion)
    if not report["promoted"]:
        raise typer.Exit(1)


@app.command()
def dismiss(
    thread: ThreadId,
    branch: Branch = None,
    store: Store = None,
    replica: Replica = None,
    json: Json = False,
) -> None:
    """Take a thread's conflicts off the list, and leave the thread as it is.

    All of them, unless one is named. The branches stay in the thread's history.
    """
    from charm_checkpoint.cli.conflicts import dismiss, render_dismissal
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.stores import opened_replica

    with opened_replica(store, replica) as found:
        emit(dismiss(found, thread, branch), json, render_dismissal)


@app.command()
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


@app.command()
def plugins(json: Json = False) -> None:
    """List the installed providers of stores."""
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.plugins import gather, render

    emit(gather(), json, render)
