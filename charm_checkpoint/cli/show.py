"""`show`: where a thread stands, what it holds, what was said last."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from charm_checkpoint.cli.output import facts, iso, local, preview, printable, shorten
from charm_checkpoint.cli.reports import Channel, Interruption, Shown
from charm_checkpoint.cli.standing import Standing, Value, head_of, plain
from charm_checkpoint.cli.stores import known_thread, store_name
from charm_checkpoint.cli.threads import STATUS_STYLE, diverged_threads
from charm_checkpoint.codec import Codec
from charm_checkpoint.errors import CheckpointStoreError, ThreadNotFoundError
from charm_checkpoint.store import CheckpointStore

__all__ = ["asked", "gather", "render", "role_of", "said"]

_MESSAGES = "messages"
_PREVIEW = 200
_MESSAGE = 1000
# In the metadata: DeltaChannels, whose values are put together from the checkpoints before.
_COUNTERS = "counters_since_delta_snapshot"


def gather(store: CheckpointStore, thread_id: str, messages: int) -> Shown:
    """Find out where a thread stands.

    Args:
        store: Where it is.
        thread_id: The thread.
        messages: How many of its last messages are wanted.

    Raises:
        ThreadNotFoundError: There is no such thread, or no root graph's checkpoint in it.
    """
    info = known_thread(store, thread_id)
    saver = store.get_langgraph_checkpointer()
    snapshot = saver.engine.call(lambda backend: backend.read(info.thread_id, "", None))
    row = snapshot.checkpoint
    if row is None:
        raise ThreadNotFoundError(f"thread {thread_id!r} has no checkpoint of a root graph")
    metadata = Codec.metadata(row)
    standing = Standing(snapshot, saver.serde)
    state = standing.state()
    said = _messages(store, info.thread_id, state.get(_MESSAGES), row.versions)
    found: list[dict[str, Any]] = said.value or []
    return {
        "store": store_name(store),
        "thread_id": info.thread_id,
        "status": info.status,
        "diverged": info.thread_id in (diverged_threads(store) or ()),
        "created_at": iso(info.created_at),
        "updated_at": iso(info.updated_at),
        "head": head_of(row),
        "next": standing.next(),
        "interrupts": list(standing.interruptions()),
        "failures": list(standing.failures()),
        "channels": [_channel(name, value) for name, value in state.items()]
        + [_replayed(name) for name in sorted({*(metadata.get(_COUNTERS) or ())} - {*state})],
        "message_count": len(found),
        "messages": plain(found[max(0, len(found) - messages) :]),
        "messages_error": said.error,
        "namespaces": list(info.namespaces),
    }


def _channel(name: str, found: Value) -> Channel:
    shown = found.error is None
    return {
        "name": name,
        "bytes": found.size,
        "type": type(found.value).__qualname__ if shown else None,
        "preview": preview(found.value, _PREVIEW) if shown else None,
        "error": found.error,
    }


def _replayed(name: str) -> Channel:
    preview = "(kept as changes to earlier checkpoints)"
    return {"name": name, "bytes": 0, "type": None, "preview": preview, "error": None}


def _messages(
    store: CheckpointStore, thread_id: str, found: Value | None, versions: Mapping[str, str]
) -> Value:
    """The thread's messages as dicts, also beside channels that cannot be read back."""
    from charm_checkpoint.messages import to_dicts

    if _MESSAGES not in versions:
        return Value()
    try:
        if found is not None and isinstance(found.value, list):
            return Value(to_dicts(found.value))
        return found if found and found.error else Value(store.load_messages(thread_id))
    except CheckpointStoreError as error:
        return Value(error=str(error))


# -- drawing -----------------------------------------------------------------------------------------------------------

_EXPLAINED = {
    "interrupted": "interrupted: it waits for an answer",
    "failed": "failed: its last step raised",
}


def render(report: Shown, console: Console) -> None:
    """Draw it for people: what it waits for first, then what it holds."""
    head = report["head"]
    step = "?" if head["step"] is None else head["step"]
    console.print(
        facts(
            {
                "Thread": printable(report["thread_id"]),
                "Status": _EXPLAINED.get(report["status"], report["status"]),
                "Diverged": "a branch of it waits for you; see conflicts"
                if report["diverged"]
                else None,
                "Head": head["checkpoint_id"],
                "Step": f"{step} ({head['source'] or '?'})",
                "Device": printable(head["device"]),
                "Written": local(head["created_at"]),
                "Begun": local(report["created_at"]),
                "Next": printable(", ".join(report["next"])),
                "Subgraphs": printable(", ".join(name for name in report["namespaces"] if name)),
                "Store": printable(report["store"]),
            }
        )
    )
    for interruption in report["interrupts"]:
        console.print(
            f"\nWaits{_in(interruption['node'])} for an answer to:",
            style=STATUS_STYLE["interrupted"],
        )
        console.print(Text(asked(interruption), overflow="fold"))
    for failure in report["failures"]:
        console.print(f"\nFailed{_in(failure['node'])}:", style=STATUS_STYLE["failed"])
        console.print(Text(f"  {printable(failure['error'])}", overflow="fold"))
    if report["channels"]:
        console.print()
        console.print(_channel_table(report["channels"]))
    _render_messages(report, console)


def _in(node: str | None) -> str:
    return f" in {printable(node)}" if node else ""


def asked(interruption: Interruption) -> str:
    """What is asked, on lines of its own."""
    if interruption["error"]:
        return printable(f"  (not shown: {interruption['error']})")
    value = interruption["value"]
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
    return "\n".join(f"  {printable(line)}" for line in text.split("\n"))


def _channel_table(channels: list[Channel]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("Channel", overflow="fold", max_width=24)
    table.add_column("Bytes", justify="right", no_wrap=True)
    table.add_column("Type", overflow="ellipsis", max_width=16)
    table.add_column("Value", overflow="fold")
    for channel in channels:
        if channel["error"]:
            value = Text(f"not shown: {printable(channel['error'])}", style="yellow")
        else:
            value = Text(channel["preview"] or "", no_wrap=True, overflow="ellipsis")
        name, kind = printable(channel["name"]), printable(channel["type"] or "?")
        table.add_row(name, f"{channel['bytes']:,}", kind, value)
    return table


def _render_messages(report: Shown, console: Console) -> None:
    if report["messages_error"]:
        console.print(
            f"\nMessages are not shown: {printable(report['messages_error'])}", style="yellow"
        )
    if not report["messages"]:
        return
    count, shown = report["message_count"], len(report["messages"])
    title = f"Messages ({count})" if shown == count else f"Last {shown} of {count} messages"
    console.print(f"\n{title}", style="bold")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for message in report["messages"]:
        table.add_row(shorten(role_of(message), 12), shorten(said(message), _MESSAGE))
    console.print(table)


def role_of(message: Mapping[str, Any]) -> str:
    """Who says it."""
    return str(message.get("role") or message.get("type") or "record")


def said(message: Mapping[str, Any]) -> str:
    """A message's text, and the tools it calls."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    said = [_text_of(part) for part in parts if part]
    for call in message.get("tool_calls") or ():
        function = call.get("function") or call
        arguments = function.get("arguments", function.get("args"))
        shown = arguments if isinstance(arguments, str) else preview(arguments, _PREVIEW)
        said.append(f"→ {function.get('name')}({shown})")
    return " ".join(said) or preview(dict(message), _MESSAGE)


def _text_of(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping):
        return str(part["text"]) if "text" in part else f"[{part.get('type', 'block')}]"
    return str(part)
