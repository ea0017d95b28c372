"""`threads`: what a store holds."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice, takewhile
from typing import TYPE_CHECKING, cast

from rich.console import Console
from rich.table import Table

from charm_checkpoint.cli.output import WIDE, iso, local, printable
from charm_checkpoint.cli.reports import Thread, Threads
from charm_checkpoint.cli.stores import is_made, store_name
from charm_checkpoint.cli.sync import backend_of
from charm_checkpoint.errors import ConfigError
from charm_checkpoint.replica import ReplicaStore
from charm_checkpoint.rules import has_labels
from charm_checkpoint.store import CheckpointStore, ThreadInfo

if TYPE_CHECKING:
    from charm_checkpoint.backend import Labels, Status

__all__ = [
    "STATUS_STYLE",
    "diverged_threads",
    "list_threads",
    "parse_label",
    "render_threads",
]

STATUS_STYLE = {"interrupted": "yellow", "failed": "red"}
_DIVERGED = "diverged"
_SECONDS = {"m": 60, "h": 3600, "d": 86400}


def list_threads(
    store: CheckpointStore,
    limit: int,
    status: str | None = None,
    labels: Sequence[str] = (),
    *,
    device: str | None = None,
    since: str | None = None,
) -> Threads:
    """The newest threads.

    Args:
        store: Where they are.
        limit: At most so many, 0 for all.
        status: Only those; also `diverged`.
        labels: `NAME=VALUE` each: only threads that have all of them.
        device: Only threads that it wrote last.
        since: Only threads written since; see `_moment`.

    Raises:
        ConfigError: Nothing is found by such a status, label or time; or it takes a replica to tell.
    """
    diverged = diverged_threads(store)
    wanted = dict(map(parse_label, labels))
    begin = None if since is None else _moment(since)
    one_more = limit + 1 if limit else None
    if status == _DIVERGED:
        listed = _those(store, diverged, wanted)
    else:
        pages = one_more if device is None and begin is None else None
        listed = store.threads(limit=pages, status=cast("Status | None", status), labels=wanted)
    if not is_made(store):
        listed = iter(())
    if begin is not None:
        listed = takewhile(lambda info: info.updated_at >= begin, listed)
    if device is not None:
        listed = (info for info in listed if info.device == device)
    found = list(islice(listed, one_more))
    return {
        "store": store_name(store),
        "threads": [
            _thread(info, info.thread_id in (diverged or ())) for info in found[: limit or None]
        ],
        "more": bool(limit) and len(found) > limit,
        "filtered": any((status, wanted, device, since)),
    }


def diverged_threads(store: CheckpointStore) -> set[str] | None:
    """Threads with a conflict that nobody decided, `None` where only a replica could tell."""
    if not isinstance(store, ReplicaStore):
        return None
    return {c.thread_id for c in backend_of(store).conflicts()} if is_made(store) else set()


def _those(store: CheckpointStore, names: set[str] | None, labels: Labels) -> Iterator[ThreadInfo]:
    if names is None:
        raise ConfigError(
            "which threads have diverged is only known to a replica on this device; name it with --replica"
        )
    found = [info for name in names if (info := store.thread(name))]
    found.sort(key=lambda info: (info.updated_at, info.thread_id), reverse=True)
    return (info for info in found if has_labels(info.labels, labels))


def _moment(text: str) -> float:
    """`30m`, `12h` or `7d` ago, or a date, or a moment in ISO 8601: without a zone that of whoever asks.

    Returns:
        Seconds since the epoch.
    """
    try:
        if ago := re.fullmatch(r"(\d{1,6})([mhd])", text):
            return time.time() - int(ago[1]) * _SECONDS[ago[2]]
        return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone().timestamp()
    except (ValueError, OverflowError, OSError):
        raise ConfigError(
            f"--since {printable(text)!r} is neither a time ago (30m, 12h, 7d) nor a date (2026-01-31)"
        ) from None


def parse_label(text: str) -> tuple[str, str | int | bool]:
    """`NAME=VALUE`: a number, `true` or `false` where JSON says so, else text; within quotes always text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--label {text!r} is not of the form NAME=VALUE")
    try:
        parsed = json.loads(value)
    except ValueError:
        return name, value
    return name, parsed if isinstance(parsed, (str, int)) else value


def _thread(info: ThreadInfo, diverged: bool) -> Thread:
    return {
        "thread_id": info.thread_id,
        "status": info.status,
        "diverged": diverged,
        "updated_at": iso(info.updated_at),
        "created_at": iso(info.created_at),
        "device": info.device,
        "checkpoint_id": info.checkpoint_id,
        "namespaces": list(info.namespaces),
        "labels": dict(info.labels),
    }


def render_threads(report: Threads, console: Console) -> None:
    """Draw one line per thread."""
    if not report["threads"]:
        such = "such " if report["filtered"] else ""
        console.print(f"No {such}threads in {printable(report['store'])}.")
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
            f"{thread['status']}, {_DIVERGED}" if thread["diverged"] else thread["status"],
            local(thread["updated_at"], precise=wide),
            printable(thread["device"]),
        ]
        if wide:
            cells += [local(thread["created_at"]), thread["checkpoint_id"]]
        table.add_row(*cells, style=STATUS_STYLE.get(thread["status"]))
    console.print(table)
    if report["more"]:
        console.print("… and more; --limit 0 shows all.", style="dim")
