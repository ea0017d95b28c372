"""`conflicts`, `promote` and `dismiss`: branches that a replica made because another device was first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from langgraph.checkpoint.serde.base import SerializerProtocol
from rich.console import Console
from rich.table import Table

from charm_checkpoint.backend import Snapshot
from charm_checkpoint.cli import reports
from charm_checkpoint.cli.output import WIDE, amount, ask, facts, iso, local, printable, shorten
from charm_checkpoint.cli.standing import Standing, Value
from charm_checkpoint.cli.stores import store_name
from charm_checkpoint.cli.sync import backend_of
from charm_checkpoint.codec import Codec, valid_id
from charm_checkpoint.errors import CheckpointStoreError, ConfigError, ThreadNotFoundError
from charm_checkpoint.replica import Conflict, ReplicaStore

__all__ = [
    "dismiss",
    "list_conflicts",
    "promote",
    "render_conflicts",
    "render_dismissal",
    "render_promotion",
]

# Time and version of an id: what tells one thread's apart.
_SHORT_ID = 18
_MESSAGE = 60


def list_conflicts(store: ReplicaStore, thread_id: str | None) -> reports.Conflicts:
    """All that wait for somebody to decide, or those of one thread, as this device's file has them."""
    return {
        "remote": store_name(store.remote),
        "path": str(backend_of(store).path),
        "conflicts": [_report(each) for each in backend_of(store).conflicts(thread_id)],
    }


def _report(conflict: Conflict) -> reports.Conflict:
    return {
        "thread_id": conflict.thread_id,
        "namespace": conflict.namespace,
        "branch": conflict.tip_id,
        "first": conflict.first_id,
        "head": conflict.head_id,
        "head_device": conflict.head_device,
        "head_moved_at": iso(conflict.head_moved_at),
        "noticed_at": iso(conflict.noticed_at),
    }


def render_conflicts(report: reports.Conflicts, console: Console) -> None:
    """Draw one line per branch."""
    if not report["conflicts"]:
        console.print(f"No conflicts in {printable(report['path'])}.")
        return
    console.print(_table(report["conflicts"], wide=console.width >= WIDE))
    console.print(
        "\npromote THREAD [BRANCH] goes on from a branch; dismiss THREAD [BRANCH] leaves the thread as it is.",
        style="dim",
    )


def _table(conflicts: Sequence[reports.Conflict], *, wide: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("Thread", overflow="fold")
    table.add_column("Branch", no_wrap=True)
    table.add_column("Overtaken by", overflow="ellipsis", min_width=6)
    table.add_column("At", no_wrap=True)
    of_subgraphs = any(conflict["namespace"] for conflict in conflicts)
    if of_subgraphs:
        table.add_column("Subgraph", overflow="ellipsis", min_width=8, no_wrap=True)
    for conflict in conflicts:
        cells = [
            printable(conflict["thread_id"]),
            conflict["branch"] if wide else conflict["branch"][:_SHORT_ID],
            printable(conflict["head_device"]),
            local(conflict["head_moved_at"], precise=wide),
        ]
        table.add_row(*cells, *([printable(conflict["namespace"])] if of_subgraphs else []))
    return table


# -- deciding ----------------------------------------------------------------------------------------------------------


def promote(
    store: ReplicaStore, thread_id: str, branch: str | None, *, confirmed: bool
) -> reports.Promotion:
    """Make a branch what its thread goes on from; without `confirmed` a person is asked.

    Args:
        store: The replica.
        thread_id: The thread.
        branch: How its newest checkpoint's id begins; needed where there are several.
        confirmed: Whether to do it without a question.

    Raises:
        ConfigError: There is no such conflict, or several, or nobody is there to be asked.
        ThreadNotFoundError: The thread was deleted elsewhere.
        ThreadConflictError: Another device moved the thread on at the same moment.
        BackendUnavailable: The store behind cannot be asked.
    """
    conflict = _one(_matching(store, thread_id, branch), thread_id)
    place = (conflict.thread_id, conflict.namespace)
    saver = store.get_langgraph_checkpointer()
    sides = {
        wanted: _side(saver.engine.call(lambda b, id=wanted: b.read(*place, id)), saver.serde)  # type: ignore[misc]
        for wanted in (conflict.tip_id, None)
    }
    ours, theirs = sides[conflict.tip_id], sides[None]
    if ours is None:
        raise ThreadNotFoundError(
            f"thread {thread_id!r} was deleted on another device, and this branch with it"
        )
    if not confirmed:
        explained = _explained(ours, theirs)
        confirmed = ask(
            f"Thread {printable(thread_id)} goes on from the branch\n   {explained['branch']}\n"
            f"and no longer from\n   {explained['head']}\nwhich stays as a branch. Do it?",
            what="promote asks before it moves a thread",
        )
    if confirmed:
        store.promote(conflict)
    return {
        "remote": store_name(store.remote),
        "thread_id": thread_id,
        "namespace": conflict.namespace,
        "promoted": confirmed,
        "branch": ours,
        "head": theirs,
    }


def dismiss(store: ReplicaStore, thread_id: str, branch: str | None) -> reports.Dismissal:
    """Take conflicts of a thread off the list: all, or those whose newest checkpoint's id begins with `branch`.

    Raises:
        ConfigError: There is none.
    """
    found = _matching(store, thread_id, branch)
    for conflict in found:
        store.dismiss(conflict)
    return {"thread_id": thread_id, "dismissed": [_report(conflict) for conflict in found]}


def _matching(store: ReplicaStore, thread_id: str, branch: str | None) -> list[Conflict]:
    of_thread = backend_of(store).conflicts(valid_id(thread_id, "thread id"))
    found = [conflict for conflict in of_thread if conflict.tip_id.startswith(branch or "")]
    if not found:
        which = f" whose branch begins with {branch!r}" if branch else ""
        raise ConfigError(f"thread {thread_id!r} has no conflict{which} on this device")
    return found


def _one(found: Sequence[Conflict], thread_id: str) -> Conflict:
    # Promoting a branch of the root graph takes those of its subgraphs along.
    of_root = [conflict for conflict in found if conflict.namespace == ""]
    candidates = of_root or found
    if len(candidates) > 1:
        branches = ", ".join(conflict.tip_id[:_SHORT_ID] for conflict in candidates)
        raise ConfigError(
            f"thread {thread_id!r} has {len(candidates)} branches to choose from: {branches}; name one"
        )
    return candidates[0]


def _side(snapshot: Snapshot, serde: SerializerProtocol) -> reports.Side | None:
    row = snapshot.checkpoint
    if row is None:
        return None
    return {
        "checkpoint_id": row.checkpoint_id,
        "device": row.device,
        "created_at": iso(row.created_at),
        "step": Codec.metadata(row).get("step"),
        "message": _last_message(Standing(snapshot, serde).state()),
    }


def _last_message(state: Mapping[str, Value]) -> str | None:
    from charm_checkpoint.messages import to_dicts

    found = state.get("messages", Value()).value
    try:
        said = to_dicts(found) if isinstance(found, list) else []
    except CheckpointStoreError:  # they are no messages; `show` says so
        said = []
    return shorten(str(said[-1].get("content")), _MESSAGE) if said else None


# -- drawing -----------------------------------------------------------------------------------------------------------


def _explained(branch: reports.Side, head: reports.Side | None) -> dict[str, str]:
    return {"branch": _words(branch), "head": _words(head) if head else "nothing: it was deleted"}


def _words(side: reports.Side) -> str:
    said = f": {side['message']}" if side["message"] else ""
    step = "" if side["step"] is None else f", step {side['step']}"
    when = local(side["created_at"], precise=False)
    return f"{side['checkpoint_id'][:_SHORT_ID]} by {printable(side['device'])}, {when}{step}{said}"


def render_promotion(report: reports.Promotion, console: Console) -> None:
    """Say what became of it."""
    name = printable(report["thread_id"])
    if not report["promoted"]:
        console.print(f"Thread {name} is left as it is.")
        return
    explained = _explained(report["branch"], report["head"])
    console.print(f"Thread {name} goes on from the branch.")
    console.print(facts({"now": explained["branch"], "before": explained["head"]}))


def render_dismissal(report: reports.Dismissal, console: Console) -> None:
    """Say what became of it."""
    count = amount(len(report["dismissed"]), "conflict")
    console.print(
        f"{count} of thread {printable(report['thread_id'])} off the list; the branches stay in its history."
    )
