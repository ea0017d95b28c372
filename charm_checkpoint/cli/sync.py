"""`sync status` and `sync watch`: how far the store behind a replica is."""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from charm_checkpoint.cli.output import amount, console, facts, iso, local, printable, size
from charm_checkpoint.cli.reports import SyncStatus, Waiting
from charm_checkpoint.cli.stores import store_name
from charm_checkpoint.config import mask
from charm_checkpoint.replica import ReplicaBackend, ReplicaStore

__all__ = ["backend_of", "entries_of", "render_status", "status", "told", "watch"]


def backend_of(store: ReplicaStore) -> ReplicaBackend:
    """The replica itself: what is asked of it directly, and not through the store, sends nothing."""
    backend = store.get_langgraph_checkpointer().engine.backend
    assert isinstance(backend, ReplicaBackend)
    return backend


def status(store: ReplicaStore, limit: int) -> SyncStatus:
    """Look what waits to be sent, in this device's file only.

    Args:
        store: The replica.
        limit: How many threads are wanted, 0 for all.
    """
    found = backend_of(store).sync_status()
    threads = sorted(found.threads.items(), key=lambda each: (each[1].since or 0.0, each[0]))
    return {
        "remote": store_name(store.remote),
        "path": found.path,
        "entries": found.waiting.entries,
        "bytes": found.waiting.bytes,
        "since": _iso(found.waiting.since),
        "thread_count": len(threads),
        "threads": [
            _waiting(name, waiting.entries, waiting.bytes, waiting.since)
            for name, waiting in threads[: limit or None]
        ],
        "last_success": _iso(found.last_success),
        "last_error": told(found.last_error),
        "offline_since": _iso(found.offline_since),
        "conflicts": found.conflicts,
    }


def _waiting(thread_id: str, entries: int, size: int, since: float | None) -> Waiting:
    return {"thread_id": thread_id, "entries": entries, "bytes": size, "since": _iso(since)}


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else iso(seconds)


def told(error: str | None) -> str | None:
    """An error's text on one line, without secrets."""
    return None if error is None else str(mask(" ".join(error.split())))


def render_status(report: SyncStatus, console: Console) -> None:
    """Draw it once."""
    console.print(_draw(report))


def _draw(report: SyncStatus) -> RenderableType:
    """The totals, then one line per thread that has something to send."""
    away = report["offline_since"]
    waiting = "nothing: everything is at the store behind"
    if report["entries"]:
        waiting = f"{entries_of(report['entries'], report['thread_count'])}, {size(report['bytes'])}, since "
        waiting += local(report["since"])
    rows = {
        "Store behind": printable(report["remote"]),
        "This device": printable(report["path"]),
        "Waiting": waiting,
        "Last sent": local(report["last_success"]) if report["last_success"] else "never",
        "Offline": f"since {local(away)}" if away else None,
        # Of a store that is there and has everything, it is history.
        "Last error": printable(report["last_error"] or "") if away or report["entries"] else None,
        "Conflicts": f"{report['conflicts']}; see charm-checkpoint conflicts"
        if report["conflicts"]
        else None,
    }
    parts: list[RenderableType] = [facts(rows)]
    if report["threads"]:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        table.add_column("Thread", overflow="fold")
        table.add_column("Entries", justify="right", no_wrap=True)
        table.add_column("Size", justify="right", no_wrap=True)
        table.add_column("Waits since", no_wrap=True)
        for thread in report["threads"]:
            table.add_row(
                printable(thread["thread_id"]),
                str(thread["entries"]),
                size(thread["bytes"]),
                local(thread["since"]),
            )
        parts += [Text(), table]
    if left := report["thread_count"] - len(report["threads"]):
        parts.append(Text(f"… and {left} more; --limit 0 shows all.", style="dim"))
    return Group(*parts)


def entries_of(entries: int, threads: int) -> str:
    """How many entries of how many threads."""
    return f"{amount(entries, 'entry', 'entries')} of {amount(threads, 'thread')}"


def watch(store: ReplicaStore, limit: int, interval: float, *, as_json: bool) -> None:
    """Show the status until Ctrl-C: on a terminal in place, else a line each time that it changed.

    Args:
        store: The replica.
        limit: How many threads are wanted, 0 for all.
        interval: How often to look, in seconds.
        as_json: Whether the lines are JSON, also on a terminal.
    """
    in_place = sys.stdout.isatty() and not as_json
    live = Live(console=console(), auto_refresh=False) if in_place else None
    before = None
    try:
        with live or nullcontext():
            while True:
                report = status(store, limit)
                if report != before and live:
                    live.update(_draw(report), refresh=True)
                elif report != before:
                    print(json.dumps(report) if as_json else _line(report), flush=True)
                before = report
                time.sleep(interval)
    except KeyboardInterrupt:
        return


def _line(report: SyncStatus) -> str:
    parts = [local(iso(time.time()))]
    if report["entries"]:
        waiting = entries_of(report["entries"], report["thread_count"])
        parts.append(f"{waiting}, {size(report['bytes'])}, to be sent")
    else:
        parts.append("nothing to be sent")
    if report["offline_since"]:
        parts.append(f"offline since {local(report['offline_since'])}")
    if report["conflicts"]:
        parts.append(amount(report["conflicts"], "conflict"))
    return "; ".join(parts)
