"""`prune` and `compact`: less history, and its room given back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from charm_checkpoint.backend import Compacted
from charm_checkpoint.cli.output import amount, printable, progress, size
from charm_checkpoint.cli.reports import Compaction, Pruning
from charm_checkpoint.cli.stores import is_made, store_name
from charm_checkpoint.policy import RetentionPolicy
from charm_checkpoint.retention import PruneReport
from charm_checkpoint.store import CheckpointStore

__all__ = ["compact", "prune", "render_compaction", "render_pruning"]


def prune(
    store: CheckpointStore, threads: Sequence[str], limits: Mapping[str, Any], *, dry_run: bool
) -> Pruning:
    """Remove what is not to be kept.

    Args:
        store: Where.
        threads: Which; none for all.
        limits: Of a `RetentionPolicy`; where all are `None` the store's configured ones.
        dry_run: Only tell what would go.

    Raises:
        ConfigError: There are no limits, or one of them is not valid.
        ThreadNotFoundError: There is no such thread.
    """
    policy = RetentionPolicy.of(limits) or None
    if is_made(store):
        with progress("Looking" if dry_run else "Pruning", 0) as show:
            done = store.prune(policy, threads=threads or None, dry_run=dry_run, on_progress=show)
    else:
        done = PruneReport(dry_run, 0, ())
    return {
        "store": store_name(store),
        "dry_run": dry_run,
        "looked_at": done.looked_at,
        "checkpoints": done.checkpoints,
        "bytes": done.bytes,
        "threads": [
            {
                "thread_id": each.thread_id,
                "checkpoints": each.checkpoints,
                "bytes": each.bytes,
                "deleted": each.deleted,
                "kept": each.kept,
            }
            for each in done.threads
        ],
    }


def render_pruning(report: Pruning, console: Console) -> None:
    """Say what went of which thread."""
    pruned = [thread for thread in report["threads"] if thread["checkpoints"]]
    if pruned:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        table.add_column("Thread", overflow="fold")
        table.add_column("Checkpoints", justify="right", no_wrap=True)
        table.add_column("Room", justify="right", no_wrap=True)
        table.add_column("")
        for thread in pruned:
            table.add_row(
                printable(thread["thread_id"]),
                f"{thread['checkpoints']:,}",
                "" if thread["bytes"] is None else size(thread["bytes"]),
                "all of it, for being idle" if thread["deleted"] else "",
            )
        console.print(table)
    for thread in report["threads"]:
        if thread["kept"]:
            name, why = printable(thread["thread_id"]), printable(thread["kept"])
            console.print(f"Thread {name} stays as it is: {why}.", style="dim")
    would = "would go" if report["dry_run"] else "went"
    room = "" if not report["bytes"] else f", {size(report['bytes'])}"
    about = " or so" if room and report["dry_run"] else ""
    told = f"{amount(report['checkpoints'], 'checkpoint')} of {amount(len(pruned), 'thread')}"
    of = amount(report["looked_at"], "thread")
    console.print(f"{told}{room}{about} {would}; looked at {of} in {printable(report['store'])}.")


def compact(store: CheckpointStore) -> Compaction:
    """Give room back.

    Raises:
        ConfigError: The database looks after its room itself.
    """
    done = store.compact() if is_made(store) else Compacted(0, 0, True)
    return {
        "store": store_name(store),
        "before": done.before,
        "after": done.after,
        "complete": done.complete,
    }


def render_compaction(report: Compaction, console: Console) -> None:
    """Say what became of it."""
    name = printable(report["store"])
    freed = report["before"] - report["after"]
    if report["complete"] is False:
        console.print(
            f"{name} is written anew, and shrinks when the programs that are reading it end."
        )
    elif freed > 0:
        left = size(report["after"])
        back = "given back" if report["complete"] else "free for what comes"
        console.print(f"{size(freed)} of {name} are {back}; {left} are left.")
    else:
        console.print(f"{name} takes {size(report['after'])}; there was nothing to give back.")
