"""`threads` and `delete`: what a store holds."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from charm_checkpoint.cli.output import WIDE, ask, iso, local, printable
from charm_checkpoint.cli.reports import Deletion, Thread, Threads
from charm_checkpoint.cli.stores import is_made, known_thread, store_name
from charm_checkpoint.store import CheckpointStore, ThreadInfo

__all__ = ["STATUS_STYLE", "delete", "list_threads", "render_deletion", "render_threads"]

STATUS_STYLE = {"interrupted": "yellow", "failed": "red"}


def list_threads(store: CheckpointStore, limit: int) -> Threads:
    """The newest threads, all for a limit of 0."""
    wanted = limit + 1 if limit else None
    found = list(store.threads(limit=wanted)) if is_made(store) else []
    shown = found[: limit or None]
    return {
        "store": store_name(store),
        "threads": [_thread(info) for info in shown],
        "more": len(found) > len(shown),
    }


def _thread(info: ThreadInfo) -> Thread:
    return {
        "thread_id": info.thread_id,
        "status": info.status,
        "updated_at": iso(info.updated_at),
        "created_at": iso(info.created_at),
        "device": info.device,
        "checkpoint_id": info.checkpoint_id,
        "namespaces": list(info.namespaces),
    }


def render_threads(report: Threads, console: Console) -> None:
    """Draw one line per thread."""
    if not report["threads"]:
        console.print(f"No threads in {printable(report['store'])}.")
        return
    wide = console.width >= WIDE
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("Thread", overflow="fold")
    table.add_column("Status", no_wrap=True)
    table.add_column("Updated", no_wrap=True)
    table.add_column("Device", overflow="ellipsis", min_width=6)
    if wide:
        table.add_column("Created", no_wrap=True)
        table.add_column("Newest checkpoint", no_wrap=True)
    for thread in report["threads"]:
        cells = [
            printable(thread["thread_id"]),
            thread["status"],
            local(thread["updated_at"], precise=wide),
            printable(thread["device"]),
        ]
        if wide:
            cells += [local(thread["created_at"]), thread["checkpoint_id"]]
        table.add_row(*cells, style=STATUS_STYLE.get(thread["status"]))
    console.print(table)
    if report["more"]:
        console.print("… and more; --limit 0 shows all.", style="dim")


def delete(store: CheckpointStore, thread_id: str, *, confirmed: bool) -> Deletion:
    """Delete a thread; without `confirmed` a person is asked.

    Raises:
        ThreadNotFoundError: There is no such thread.
        ConfigError: Nobody is there to be asked.
    """
    info = known_thread(store, thread_id)
    if not confirmed:
        when = local(iso(info.updated_at))
        confirmed = ask(
            f"Delete thread {printable(info.thread_id)} (last written {when} by {printable(info.device)}) with its "
            "whole history? There is no way back.",
            what="delete asks before it deletes",
        )
    if confirmed:
        store.delete(info.thread_id)
    return {"store": store_name(store), "thread_id": info.thread_id, "deleted": confirmed}


def render_deletion(report: Deletion, console: Console) -> None:
    """Say what became of it."""
    name = printable(report["thread_id"])
    console.print(
        f"Thread {name} is deleted." if report["deleted"] else f"Thread {name} is left as it is."
    )
