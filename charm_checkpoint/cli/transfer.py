"""`sync push` and `sync pull`: what a replica does by itself, done now and waited for."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console

from charm_checkpoint.backend import ThreadQuery
from charm_checkpoint.cli.output import amount, printable, progress, size
from charm_checkpoint.cli.reports import Pull, Push
from charm_checkpoint.cli.stores import store_name
from charm_checkpoint.cli.sync import backend_of, entries_of, told
from charm_checkpoint.codec import valid_id
from charm_checkpoint.errors import BackendUnavailable
from charm_checkpoint.replica import ReplicaStore, SyncStatus

__all__ = ["pull", "push", "reach", "render_pull", "render_push"]

# How often a bar moves on, in seconds.
_TICK = 0.2


def reach(store: ReplicaStore) -> None:
    """Ask the store behind something, once.

    Raises:
        BackendUnavailable: It is away.
    """
    engine = store.remote.get_langgraph_checkpointer().engine
    engine.call(lambda backend: backend.threads(ThreadQuery(limit=1)), repeat=False)


# -- push --------------------------------------------------------------------------------------------------------------


def push(store: ReplicaStore, timeout: float) -> Push:
    """Send everything, and wait for it `timeout` seconds at most."""
    began = backend_of(store).sync_status()
    total, deadline = began.waiting.entries, time.monotonic() + timeout
    with progress("Sending", total) as show:
        while True:
            left = deadline - time.monotonic()
            done = store.flush(min(_TICK, max(left, 0.0)))
            now = store.sync_status()
            show(total - now.waiting.entries)
            # What is refused is only tried again after a while: nothing more happens till then.
            stuck = now.threads and all(each.error for each in now.threads.values())
            if done or stuck or left <= 0:
                break
    refused = {name: each.error for name, each in now.threads.items() if each.error}
    return {
        "remote": store_name(store.remote),
        "ok": done,
        "sent": max(0, total - now.waiting.entries),
        "bytes": max(0, began.waiting.bytes - now.waiting.bytes),
        "left": now.waiting.entries,
        "thread_count": len(now.threads),
        "refused": [{"thread_id": t, "error": told(e) or ""} for t, e in sorted(refused.items())],
        "error": None if done else _why(now, timeout),
    }


def _why(now: SyncStatus, timeout: float) -> str:
    if now.offline_since is not None and now.last_error:
        return told(now.last_error) or ""
    if any(waiting.error for waiting in now.threads.values()):
        return "the store behind does not take some threads"
    return f"not all was sent within {timeout:g} s"


def render_push(report: Push, console: Console) -> None:
    """Say what became of it."""
    remote = printable(report["remote"])
    if report["sent"]:
        sent = amount(report["sent"], "entry", "entries")
        console.print(f"Sent {sent} ({size(report['bytes'])}) to {remote}.")
    if report["ok"] and not report["left"]:
        console.print(f"Everything is at {remote}.")
    elif report["ok"]:
        entries = entries_of(report["left"], report["thread_count"])
        console.print(f"Left: {entries}; they belong to steps that are under way.")
    else:
        entries = entries_of(report["left"], report["thread_count"])
        console.print(
            f"On this device only: {entries}. {printable(report['error'] or '')}.", style="red"
        )
        for refusal in report["refused"]:
            console.print(
                f"Thread {printable(refusal['thread_id'])}: {printable(refusal['error'])}"
            )
        console.print("Nothing is lost: an agent that runs here sends them, and so does sync push.")


# -- pull --------------------------------------------------------------------------------------------------------------


def pull(store: ReplicaStore, threads: Sequence[str], limit: int, timeout: float) -> Pull:
    """Bring where threads are now to this device, so that they can be gone on with offline.

    Args:
        store: The replica.
        threads: Which; none for the newest ones.
        limit: How many of the newest, 0 for all.
        timeout: Seconds to wait for each.

    Raises:
        InvalidIdError: No thread can have such an id.
    """
    names = [valid_id(name, "thread id") for name in threads]
    done: list[str] = []
    missing: list[str] = []
    error = None
    try:
        reach(store)
        store.sync_status()  # makes the replica, if there is nothing to bring, too
        names = names or [info.thread_id for info in store.remote.threads(limit=limit or None)]
        with progress("Bringing", len(names)) as show:
            for count, name in enumerate(names, 1):
                store.refresh(name, timeout)
                known = not threads or store.thread(name)
                (done if known else missing).append(name)
                show(count)
    except BackendUnavailable as away:
        error = told(str(away))
    return {
        "remote": store_name(store.remote),
        "path": str(backend_of(store).path),
        "ok": not missing and error is None,
        "threads": done,
        "missing": missing,
        "error": error,
    }


def render_pull(report: Pull, console: Console) -> None:
    """Say what became of it."""
    count = amount(len(report["threads"]), "thread")
    console.print(
        f"{count} of {printable(report['remote'])} can be gone on with here, offline too."
    )
    for name in report["missing"]:
        console.print(f"There is no thread {printable(name)}.", style="red")
    if report["error"]:
        console.print(f"It ended early: {printable(report['error'])}.", style="red")
