"""`diff`: what one checkpoint of a thread has that another has not, channel by channel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from langchain_core.messages import BaseMessage
from rich.console import Console
from rich.table import Table
from rich.text import Text

from charm_checkpoint.backend import CheckpointRow, Scan, Snapshot
from charm_checkpoint.cli.output import amount, facts, iso, local, preview, printable, shorten
from charm_checkpoint.cli.reports import Compared, Diff, Difference, Part
from charm_checkpoint.cli.show import role_of, said
from charm_checkpoint.cli.standing import Standing, Value, load, plain
from charm_checkpoint.cli.stores import known_thread, store_name
from charm_checkpoint.codec import Codec, named_by
from charm_checkpoint.errors import CheckpointStoreError, ConfigError
from charm_checkpoint.keeping import delta_channels, headers
from charm_checkpoint.messages import to_dicts
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.store import CheckpointStore

__all__ = ["gather", "render"]

_MESSAGES = "messages"
_PREVIEW = 200
_MAX_DEPTH = 12
_ABSENT = object()


class _Side(NamedTuple):
    thread_id: str
    snapshot: Snapshot
    state: Mapping[str, Value]
    stored: Mapping[str, tuple[str, bytes] | str]
    """By channel what tells whether two sides hold the same: the stored bytes, else the version."""
    as_writes: frozenset[str]
    """Channels that are kept as writes to earlier checkpoints, and that only their graph puts together."""


def gather(
    store: CheckpointStore,
    thread_id: str,
    ids: Sequence[str] = (),
    *,
    other: str | None = None,
    namespace: str = "",
    limit: int = 20,
) -> Diff:
    """Compare two checkpoints.

    Args:
        store: Where they are.
        thread_id: The thread of the first one.
        ids: How their ids begin. Without any: what the newest checkpoint has that its parent has not. With one: what
            the newest has that it has not.
        other: The thread of the second one, if that is another: a fork or a copy. Newest by default, as is the first.
        namespace: The root graph's (`''`) or a subgraph's.
        limit: How many changes within a channel are wanted, 0 for all.

    Raises:
        ThreadNotFoundError: There is no such thread.
        CheckpointNotFoundError: It has no such checkpoint, or several ids begin like that.
    """
    thread_id = known_thread(store, thread_id).thread_id
    theirs = thread_id if other is None else known_thread(store, other).thread_id
    rows, head = _rows(store, thread_id, namespace)
    their_rows, their_head = (rows, head) if other is None else _rows(store, theirs, namespace)
    first, second = (*ids, None, None)[:2]
    before_id = named_by(first, rows, thread_id) if first else None
    after_id = named_by(second, their_rows, theirs) if second else their_head
    if before_id is None:
        before_id = head if other is not None else their_rows[after_id].parent_id
    before = _side(store, thread_id, namespace, before_id) if before_id in rows else None
    after = _side(store, theirs, namespace, after_id)
    names = sorted({*(before.stored if before else ()), *after.stored})
    changed = [n for n in names if not before or before.stored.get(n) != after.stored.get(n)]
    as_writes = after.as_writes | (before.as_writes if before else frozenset())
    old_path, new_path = _paths(rows, before_id if before else None, their_rows, after_id)
    if before:
        before = _with_writes(store, before, namespace, as_writes & {*changed}, old_path)
    after = _with_writes(store, after, namespace, as_writes & {*changed}, new_path)
    return {
        "store": store_name(store),
        "namespace": namespace,
        "before": _compared(before) if before else None,
        "after": _compared(after),
        "differences": [
            _difference(n, before, after, limit, as_writes=n in as_writes) for n in changed
        ],
        "unchanged": [n for n in names if n not in changed],
    }


def _rows(
    store: CheckpointStore, thread_id: str, namespace: str
) -> tuple[dict[str, CheckpointRow], str]:
    """A namespace's checkpoints by id, and its head."""
    query = Scan(thread_id=thread_id, namespace=namespace)
    engine = store.get_langgraph_checkpointer().engine
    entries = engine.call(lambda backend: list(headers(backend, query)))
    rows = {row.checkpoint_id: row for e in entries if (row := e.snapshot.checkpoint)}
    head = next((e.snapshot.head for e in entries), None)
    if head is None or head not in rows:
        raise ConfigError(f"thread {thread_id!r} has no checkpoints in namespace {namespace!r}")
    return rows, head


def _side(
    store: CheckpointStore, thread_id: str, namespace: str, checkpoint_id: str | None
) -> _Side:
    saver = store.get_langgraph_checkpointer()
    snapshot = saver.engine.call(lambda backend: backend.read(thread_id, namespace, checkpoint_id))
    row = snapshot.checkpoint
    if row is None:
        raise ConfigError(f"checkpoint {checkpoint_id} of thread {thread_id!r} is gone meanwhile")
    state = Standing(snapshot, saver.serde).state()
    stored: dict[str, tuple[str, bytes] | str] = {
        blob.channel: (blob.type, blob.data) for blob in snapshot.blobs if blob.channel in state
    }
    deltas = delta_channels(row) - state.keys()
    stored.update({name: row.versions.get(name, "") for name in deltas})
    if _MESSAGES in deltas:
        place = {"checkpoint_id": row.checkpoint_id, "namespace": namespace}
        try:
            state[_MESSAGES] = Value(store.messages.load(thread_id, **place))
        except CheckpointStoreError as error:
            state[_MESSAGES] = Value(error=str(error))
    return _Side(thread_id, snapshot, state, stored, frozenset(deltas - {_MESSAGES}))


# -- channels that only their graph puts together ----------------------------------------------------------------------


def _paths(
    rows: Mapping[str, CheckpointRow],
    first: str | None,
    their_rows: Mapping[str, CheckpointRow],
    second: str,
) -> tuple[set[str], set[str]]:
    """What two checkpoints grew from since their ways parted, with where they did. A copy's ids are the same."""
    old, new = list(_chain(rows, first)), list(_chain(their_rows, second))
    shared = {*old} & {*new}

    def above(chain: list[str]) -> set[str]:
        end = next((n for n, id in enumerate(chain) if id in shared), len(chain) - 1)
        return {*chain[1 : end + 1]}

    return above(old), above(new)


def _chain(rows: Mapping[str, CheckpointRow], step: str | None) -> Iterator[str]:
    seen: set[str] = set()
    while (
        step is not None and step in rows and step not in seen
    ):  # a forged cycle of parents has to end
        seen.add(step)
        yield step
        step = rows[step].parent_id


def _with_writes(
    store: CheckpointStore, side: _Side, namespace: str, names: frozenset[str], path: set[str]
) -> _Side:
    """Give channels what was written to them on a path, oldest first, in the place of their values."""
    row = side.snapshot.checkpoint
    assert row is not None
    saver = store.get_langgraph_checkpointer()
    values = {}
    for name in names & side.stored.keys():
        place = (side.thread_id, namespace, row.checkpoint_id)
        values[name] = _written(saver, *place, name, set(path))
    return side._replace(state={**side.state, **values})


def _written(
    saver: CheckpointSaver,
    thread_id: str,
    namespace: str,
    step: str | None,
    name: str,
    path: set[str],
) -> Value:
    found: list[Any] = []
    while path and step is not None:
        place = (thread_id, namespace, step, (name,))
        ancestors = saver.engine.call(lambda backend, place=place: backend.lineage(*place))  # type: ignore[misc]
        # A walk ends at a snapshot; what was written before that is found from there.
        step = None
        for ancestor in ancestors:
            if ancestor.checkpoint_id in path:
                path.discard(ancestor.checkpoint_id)
                step = ancestor.checkpoint_id
                for write in reversed(ancestor.writes):
                    loaded = load(saver.serde, write.type, write.data)
                    if loaded.error:
                        return loaded
                    found.append(loaded.value)
    return Value(found[::-1])


def _compared(side: _Side) -> Compared:
    row = side.snapshot.checkpoint
    assert row is not None
    metadata = Codec.metadata(row)
    return {
        "thread_id": side.thread_id,
        "checkpoint_id": row.checkpoint_id,
        "step": metadata.get("step"),
        "source": metadata.get("source"),
        "device": row.device,
        "created_at": iso(row.created_at),
    }


# -- within a channel --------------------------------------------------------------------------------------------------


def _difference(
    name: str, before: _Side | None, after: _Side, limit: int, *, as_writes: bool
) -> Difference:
    old = before.state.get(name) if before else None
    new = after.state.get(name)
    error = (old and old.error) or (new and new.error) or None
    parts: list[Part] = []
    if old is not None and new is not None and error is None:
        parts = list(_parts("", old.value, new.value, 0))
        if [p["path"] for p in parts] == [""]:
            parts = []  # nothing but the two values themselves
    shown = parts[: limit or None]
    look = _writes if as_writes else _preview
    return {
        "channel": name,
        "change": "added" if old is None else "removed" if new is None else "changed",
        "before": None if old is None or old.error else look(old.value),
        "after": None if new is None or new.error else look(new.value),
        "parts": shown,
        "counts": dict(Counter(part["change"] for part in parts)),
        "more": len(parts) - len(shown),
        "as_writes": as_writes,
        "error": error,
    }


def _parts(path: str, old: Any, new: Any, depth: int) -> Iterator[Part]:
    """The innermost places where two values differ."""
    if _same(old, new):
        return
    if depth < _MAX_DEPTH:
        if isinstance(old, Mapping) and isinstance(new, Mapping) and not _is_message(old):
            for key in dict.fromkeys((*old, *new)):
                yield from _pair(
                    f"{path}[{key!r}]", old.get(key, _ABSENT), new.get(key, _ABSENT), depth
                )
            return
        if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
            yield from _items(path, old, new, depth)
            return
    yield _part(path, "changed", old, new)


def _pair(path: str, old: Any, new: Any, depth: int) -> Iterator[Part]:
    if old is _ABSENT:
        yield _part(path, "added", None, new)
    elif new is _ABSENT:
        yield _part(path, "removed", old, None)
    else:
        yield from _parts(path, old, new, depth + 1)


def _items(path: str, old: Sequence[Any], new: Sequence[Any], depth: int) -> Iterator[Part]:
    """By their ids if all have one, as messages have; else what lies between equal ends."""
    old_ids, new_ids = ([_id(item) for item in items] for items in (old, new))
    if None not in old_ids and None not in new_ids:
        places = {id: place for place, id in enumerate(old_ids)}
        kept = set(new_ids)
        for place, item in enumerate(old):
            if old_ids[place] not in kept:
                yield _part(f"{path}[{place}]", "removed", item, None)
        for place, item in enumerate(new):
            at = places.get(new_ids[place])
            before = _ABSENT if at is None else old[at]
            yield from _pair(f"{path}[{place}]", before, item, _MAX_DEPTH)
        return
    least = min(len(old), len(new))
    start = next((i for i in range(least) if not _same(old[i], new[i])), least)
    most = least - start
    end = next((i for i in range(most) if not _same(old[-1 - i], new[-1 - i])), most)
    gone, come = old[start : len(old) - end], new[start : len(new) - end]
    for i in range(max(len(gone), len(come))):
        was = gone[i] if i < len(gone) else _ABSENT
        yield from _pair(f"{path}[{start + i}]", was, come[i] if i < len(come) else _ABSENT, depth)


def _same(old: Any, new: Any) -> bool:
    try:
        return type(old) is type(new) and bool(old == new)
    except Exception:  # noqa: BLE001 - values of any kind, arrays for one
        return repr(old) == repr(new)


def _id(item: Any) -> str | None:
    found = item.get("id") if isinstance(item, Mapping) else getattr(item, "id", None)
    return found if isinstance(found, str) else None


def _is_message(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "role" in value and "content" in value
    return isinstance(value, BaseMessage)


def _part(path: str, change: str, old: Any, new: Any) -> Part:
    return {"path": path, "change": change, "before": _plain(old), "after": _plain(new)}


def _plain(value: Any) -> Any:
    return plain(to_dicts([value])[0] if isinstance(value, BaseMessage) else value)


def _writes(value: Any) -> str:
    return amount(len(value), "write")


def _preview(value: Any) -> str:
    if isinstance(value, (list, tuple)) and value and all(map(_is_message, value)):
        return amount(len(value), "message")
    return preview(value, _PREVIEW)


# -- drawing -----------------------------------------------------------------------------------------------------------

_SIGNS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}


def render(report: Diff, console: Console) -> None:
    """Draw it: the two checkpoints, then every channel that differs."""
    before, after = report["before"], report["after"]
    console.print(
        facts(
            {
                "From": _told(before) if before else "nothing: it is the first",
                "To": _told(after),
                "Subgraph": printable(report["namespace"]),
                "Store": printable(report["store"]),
            }
        )
    )
    for difference in report["differences"]:
        console.print(Text(f"\n{_title(difference)}", style="bold"))
        console.print(_lines(difference))
        if difference["more"]:
            console.print(f"… and {difference['more']} more; --limit 0 shows all.", style="dim")
    if not report["differences"]:
        console.print("\nNo channel differs.")
    elif report["unchanged"]:
        console.print(
            Text(f"\nUnchanged: {printable(', '.join(report['unchanged']))}", style="dim")
        )


def _told(side: Compared) -> str:
    step = "?" if side["step"] is None else side["step"]
    return (
        f"{printable(side['thread_id'])} {side['checkpoint_id']}\n"
        f"step {step} ({printable(side['source'] or '?')}) by {printable(side['device'])}, "
        f"{local(side['created_at'])}"
    )


def _title(difference: Difference) -> str:
    counts = [f"{count} {kind}" for kind in _SIGNS if (count := difference["counts"].get(kind))]
    title = f"{printable(difference['channel'])}: {', '.join(counts) or difference['change']}"
    return f"{title} (shown as writes)" if difference["as_writes"] else title


def _lines(difference: Difference) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    if difference["error"]:
        table.add_row("!", Text(f"not shown: {printable(difference['error'])}", style="yellow"))
    elif difference["parts"]:
        for part in difference["parts"]:
            _add_part(table, part)
    else:
        for sign, style, text in (
            ("-", "red", difference["before"]),
            ("+", "green", difference["after"]),
        ):
            if text is not None:
                table.add_row(Text(sign, style=style), Text(printable(text)))
    return table


def _add_part(table: Table, part: Part) -> None:
    sign, style = _SIGNS[part["change"]]
    old, new = (part["before"], part["after"])
    shown = new if part["change"] == "added" else old
    if _is_message(shown):
        role = shorten(role_of(shown), 12)
        text = shorten(said(shown), _PREVIEW)
        if part["change"] == "changed":
            text += f" → {shorten(said(new), _PREVIEW)}"
        table.add_row(Text(sign, style=style), Text(f"{part['path']} {role}: {text}"))
        return
    text = preview(shown, _PREVIEW)
    if part["change"] == "changed":
        text += f" → {preview(new, _PREVIEW)}"
    table.add_row(Text(sign, style=style), Text(f"{printable(part['path'])} {text}"))
