"""Moving threads."""

from __future__ import annotations

from typing import Annotated

import typer

from charm_checkpoint.cli.commands.options import Json, Store, ThreadId

__all__ = ["copy", "export", "fork", "import_"]

_Threads = Annotated[
    list[str] | None,
    typer.Option(
        "--thread", metavar="THREAD", help="Only this one; may be given again.", show_default=False
    ),
]
_OnExisting = Annotated[
    str,
    typer.Option(
        metavar="fail|skip",
        help="What to do about a thread that is there in another state: end with an error, or leave it out.",
    ),
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")]


def copy(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FROM", help="A URL or a provider's name, as for --store.", show_default=False
        ),
    ],
    target: Annotated[
        str, typer.Argument(metavar="TO", help="Likewise; made if missing.", show_default=False)
    ],
    thread: _Threads = None,
    on_existing: _OnExisting = "fail",
    dry_run: _DryRun = False,
    json: Json = False,
) -> None:
    """Copy threads with their whole history from one store to another, and compare both.

    FROM may also be a file of LangGraph's SqliteSaver, a database of its PostgresSaver, or a server of its RedisSaver;
    nothing in it is altered. A copy that was interrupted goes on when it is called again, and one that is repeated
    changes nothing. A thread is seen in TO once all of it is there. One that TO has in an earlier state is brought up
    to date.
    """
    from charm_checkpoint.cli import moving as command
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.stores import opened

    with opened(source) as origin, opened(target, make=True) as into:
        report = command.copy(origin, into, thread, on_existing, dry_run=dry_run)
        emit(report, json, command.render_copy)
    if report["left"]:
        raise typer.Exit(1)


def export(
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="- for standard output.")
    ],
    threads: Annotated[
        list[str] | None,
        typer.Argument(metavar="THREAD", help="Threads; none for all.", show_default=False),
    ] = None,
    status: Annotated[
        str | None,
        typer.Option(
            metavar="STATUS",
            help="Only those that are idle, interrupted or failed.",
            show_default=False,
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Only those whose newest metadata has this; may be given again.",
            show_default=False,
        ),
    ] = None,
    store: Store = None,
    json: Json = False,
) -> None:
    """Write threads with their whole history into one file.

    The file can be read without this program: docs/file-format.md describes it. What a store keeps encrypted is plain
    in it.
    """
    from charm_checkpoint.cli import moving as command
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.stores import opened

    with opened(store) as found:
        report = command.export(found, output, threads, status, label or [], as_json=json)
        if output != "-":
            emit(report, json, command.render_export)


def import_(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="- for standard input.", show_default=False)
    ],
    thread: _Threads = None,
    on_existing: _OnExisting = "fail",
    dry_run: _DryRun = False,
    store: Store = None,
    json: Json = False,
) -> None:
    """Copy threads out of a file that export wrote.

    The whole file is checked before anything is copied; the rest is as with copy.
    """
    from charm_checkpoint.cli import moving as command
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.stores import opened

    with opened(store, make=True) as found:
        report = command.import_file(found, file, thread, on_existing, dry_run=dry_run)
        emit(report, json, command.render_copy)
    if report["left"]:
        raise typer.Exit(1)


def fork(
    thread: ThreadId,
    new: Annotated[
        str, typer.Argument(metavar="NEW", help="The new thread's id.", show_default=False)
    ],
    at: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="How the id of the checkpoint begins, as history lists it; by default the newest.",
            show_default=False,
        ),
    ] = None,
    store: Store = None,
    json: Json = False,
) -> None:
    """Make a new thread of what led to a checkpoint of another, which stays as it is.

    The new one has the history below that checkpoint, without other branches. Where the thread went on from it, the new
    one stands before that step: questions that were asked there are asked again.
    """
    from charm_checkpoint.cli import moving as command
    from charm_checkpoint.cli.output import emit
    from charm_checkpoint.cli.stores import opened

    with opened(store) as found:
        emit(command.fork(found, thread, new, at), json, command.render_fork)
