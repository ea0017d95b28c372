"""`watch`: a thread as it goes on, seen by one cheap request each time: what is there that was not seen yet?"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from charm_checkpoint.backend import CheckpointRow, Entry, HeadMark, Pulled, Scan, Snapshot
from charm_checkpoint.cli.history import step_of, step_table
from charm_checkpoint.cli.output import console, facts, iso, local, preview, printable, shorten
from charm_checkpoint.cli.reports import Head, NewStep, Step, Watched
from charm_checkpoint.cli.show import asked, role_of, said
from charm_checkpoint.cli.standing import Standing, head_of
from charm_checkpoint.cli.stores import known_thread, store_name
from charm_checkpoint.cli.threads import STATUS_STYLE
from charm_checkpoint.messages import to_dicts
from charm_checkpoint.rules import status_of
from charm_checkpoint.store import CheckpointStore

__all__ = ["Watcher", "watch"]

# Steps that came between two looks are told one by one, as far as that.
_STEPS = 100
# What a terminal shows of them.
_SHOWN = 12
_MESSAGE = 200


class Watcher:
    """Looks at a thread again and again.

    Args:
        store: Where it is.
        thread_id: The thread.

    Raises:
        ThreadNotFoundError: There is no such thread.
    """

    def __init__(self, store: CheckpointStore, thread_id: str) -> None:
        self._thread_id = known_thread(store, thread_id).thread_id
        self._store = store
        self._saver = store.get_langgraph_checkpointer()
        self._marks: tuple[HeadMark, ...] = ()
        self._root: Snapshot | None = None
        self._began = False

    def look(self) -> Watched | None:
        """What changed since the last look; `None` if nothing did."""
        thread_id, held = self._thread_id, self._marks
        pulled = self._saver.engine.call(lambda backend: backend.pull(thread_id, held))
        self._marks = tuple(pulled.heads)
        if not any(mark.head.namespace == "" for mark in pulled.heads):
            news = self._root is not None or not self._began
            self._root, self._marks, self._began = None, (), True
            return self._report((), "deleted") if news else None
        if not pulled.entries:
            return None
        new = self._steps(pulled, held) if self._began else []
        self._root = self._whole_root(pulled)
        self._began = True
        return self._report(new, status_of(write.channel for write in self._root.writes))

    def _whole_root(self, pulled: Pulled) -> Snapshot:
        """The root head, with the values that were known before."""
        found = next((e.snapshot for e in pulled.entries if e.namespace == ""), None)
        if found is None or found.checkpoint is None:
            assert self._root is not None
            return self._root
        known = {(b.channel, b.version): b for b in (self._root.blobs if self._root else ())}
        known.update({(b.channel, b.version): b for b in found.blobs})
        named = found.checkpoint.versions.items()
        return found._replace(blobs=[known[key] for key in named if key in known])

    # -- the steps between -----------------------------------------------------------------------------------------

    def _steps(self, pulled: Pulled, held: tuple[HeadMark, ...]) -> list[NewStep]:
        before = {mark.head.namespace: mark.head.checkpoint_id for mark in held}
        new = [
            (row, entry.namespace)
            for entry in pulled.entries
            for row in self._chain(entry, before.get(entry.namespace))
        ]
        new.sort(key=lambda each: each[0].checkpoint_id)
        heads = {mark.head.checkpoint_id for mark in pulled.heads}
        return [
            {**step_of(row, is_head=row.checkpoint_id in heads, is_branch=False), "namespace": ns}
            for row, ns in new
        ]

    def _chain(self, entry: Entry, before: str | None) -> list[CheckpointRow]:
        """A new head and what it grew from, down to the head before: only itself where that is not below it."""
        row = entry.snapshot.checkpoint
        if row is None or row.checkpoint_id == before:
            return []
        if row.parent_id == before:
            return [row]
        scan = Scan(self._thread_id, entry.namespace, limit=_STEPS, values=False)
        page = self._saver.engine.call(lambda backend: backend.scan(scan))
        rows: Mapping[str | None, CheckpointRow] = {
            r.checkpoint_id: r for e in page.entries if (r := e.snapshot.checkpoint)
        }
        chain = [row]
        while chain[-1].parent_id != before and (parent := rows.get(chain[-1].parent_id)):
            if len(chain) > _STEPS:
                break
            chain.append(parent)
        return chain if chain[-1].parent_id == before else [row]

    # -- where it stands -------------------------------------------------------------------------------------------

    def _report(self, new: list[NewStep] | tuple[()], status: str) -> Watched:
        report: Watched = {
            "store": store_name(self._store),
            "thread_id": self._thread_id,
            "at": iso(time.time()),
            "status": status,
            "head": None,
            "new": list(new),
            "next": [],
            "interrupts": [],
            "failures": [],
            "message": None,
        }
        if self._root is not None and self._root.checkpoint is not None:
            standing = Standing(self._root, self._saver.serde)
            report["head"] = head_of(self._root.checkpoint)
            report["next"] = standing.next()
            report["interrupts"] = list(standing.interruptions())
            report["failures"] = list(standing.failures())
            found = standing.state().get("messages")
            report["message"] = _last(found.value) if found else None
        return report


def _last(messages: Any) -> str | None:
    """The beginning of the last message of a list, and who said it."""
    if not isinstance(messages, list) or not messages:
        return None
    try:
        [message] = to_dicts(messages[-1:])
    except (TypeError, ValueError):
        return None  # of a channel of this name that holds something else
    return f"{shorten(role_of(message), 12)}: {shorten(said(message), _MESSAGE)}"


# -- telling it --------------------------------------------------------------------------------------------------------


def watch(store: CheckpointStore, thread_id: str, interval: float, *, as_json: bool) -> None:
    """Show a thread until Ctrl-C: on a terminal in place, else a line each time that something changed.

    Args:
        store: Where it is.
        thread_id: The thread.
        interval: How often to look, in seconds.
        as_json: Whether the lines are JSON, also on a terminal.

    Raises:
        ThreadNotFoundError: There is no such thread.
    """
    watcher = Watcher(store, thread_id)
    in_place = sys.stdout.isatty() and not as_json
    screen = console()
    live = Live(console=screen, auto_refresh=False) if in_place else None
    steps: deque[Step] = deque(maxlen=_SHOWN)
    try:
        with live or nullcontext():
            while True:
                report = watcher.look()
                if report is not None and live:
                    steps.extend(step for step in report["new"] if step["namespace"] == "")
                    live.update(_draw(report, list(steps), screen), refresh=True)
                elif report is not None:
                    print(json.dumps(report) if as_json else _line(report), flush=True)
                time.sleep(interval)
    except KeyboardInterrupt:
        return


def _draw(report: Watched, steps: list[Step], screen: Console) -> RenderableType:
    head = report["head"]
    status = report["status"]
    rows = {
        "Thread": printable(report["thread_id"]),
        "Status": status,
        "Next": printable(", ".join(report["next"])),
        "Last message": report["message"],
        "Seen": local(report["at"]),
    }
    parts: list[RenderableType] = [facts(rows)]
    for interruption in report["interrupts"]:
        parts.append(Text(f"\nWaits{_in(interruption['node'])} for an answer to:", style="yellow"))
        parts.append(Text(asked(interruption), overflow="fold"))
    for failure in report["failures"]:
        parts.append(Text(f"\nFailed{_in(failure['node'])}:", style=STATUS_STYLE["failed"]))
        parts.append(Text(f"  {printable(failure['error'])}", overflow="fold"))
    if head is not None:
        now: Step = {**head, "is_head": True, "is_branch": False}
        before: list[Step] = [
            {**s, "is_head": False} for s in steps if s["checkpoint_id"] != head["checkpoint_id"]
        ]
        parts += [Text(), step_table([now, *before[::-1]], width=screen.width, cut=True)]
    return Group(*parts)


def _in(node: str | None) -> str:
    return f" in {printable(node)}" if node else ""


def _line(report: Watched) -> str:
    head = report["head"]
    parts = [local(report["at"])]
    for step in report["new"]:
        within = f" in {printable(step['namespace'])}" if step["namespace"] else ""
        parts.append(_told(step) + within)
    if head and not report["new"]:
        parts.append(_told(head))
    parts.append(
        report["status"] + (f" before {', '.join(report['next'])}" if report["next"] else "")
    )
    parts += [f"asks: {preview(i['value'], _MESSAGE)}" for i in report["interrupts"]]
    parts += [f"failed: {printable(f['error'])}" for f in report["failures"]]
    if report["message"] and report["new"]:
        parts.append(report["message"])
    return "; ".join(parts)


def _told(step: Head | NewStep) -> str:
    number = "?" if step["step"] is None else step["step"]
    return f"step {number} ({printable(step['source'] or '?')}) by {printable(step['device'])}"
