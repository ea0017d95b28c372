"""What lost against another device."""

from __future__ import annotations

from typing import Annotated

import typer

from charm_checkpoint.cli.commands.options import Branch, Json, Replica, Store, ThreadId, Yes

__all__ = ["conflicts", "dismiss", "promote"]


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
