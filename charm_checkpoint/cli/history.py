"""`history`: a thread's checkpoints with their branches."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from charm_checkpoint.backend import CheckpointRow, Scan
from charm_checkpoint.cli.lanes import draw, order
from charm_checkpoint.cli.output import WIDE, local, printable
from charm_checkpoint.cli.reports import History, Step
from charm_checkpoint.cli.standing import head_of
from charm_checkpoint.cli.stores import known_thread, store_name
from charm_checkpoint.errors import ConfigError
from charm_checkpoint.keeping import headers
from charm_checkpoint.store import CheckpointStore

__all__ = ["gather", "render", "step_of", "step_table"]

# Time and version: what tells a version 6 UUID of one thread from the others.
_SHORT_ID = 18
# What a narrow terminal has left for lanes beside the other columns: with the devices, and what those take without.
_FEW_LANES, _BESIDE_LANES = 9, 62


def gather(store: CheckpointStore, thread_id: str, namespace: str, limit: int) -> History:
    """Read a thread's history.

    Args:
        store: Where it is.
        thread_id: The thread.
        namespace: The root graph's (`''`) or a subgraph's.
        limit: How many checkpoints are wanted, 0 for all. All are read, to tell branches.

    Raises:
        ThreadNotFoundError: There is no such thread.
        ConfigError: It has no such namespace.
    """
    info = known_thread(store, thread_id)
    if namespace not in info.namespaces:
        there = ", ".join(repr(name) for name in info.namespaces)
        raise ConfigError(f"thread {thread_id!r} has no namespace {namespace!r}; it has {there}")
    query = Scan(thread_id=info.thread_id, namespace=namespace)
    engine = store.get_langgraph_checkpointer().engine
    entries = engine.call(lambda backend: list(headers(backend, query)))
    head = next((e.snapshot.head for e in entries), None)
    rows = {row.checkpoint_id: row for e in entries if (row := e.snapshot.checkpoint)}
    parents = {id: row.parent_id for id, row in rows.items()}
    trunk = _ancestors(head, parents)
    steps = [
        step_of(rows[id], is_head=id == head, is_branch=id not in trunk) for id in order(parents)
    ]
    return {
        "store": store_name(store),
        "thread_id": info.thread_id,
        "namespace": namespace,
        "head": head,
        "total": len(steps),
        "checkpoints": steps[: limit or None],
    }


def _ancestors(head: str | None, parents: Mapping[str, str | None]) -> set[str]:
    """The head and all it came from."""
    found: set[str] = set()
    while head is not None and head not in found:
        found.add(head)
        head = parents.get(head)
    return found


def step_of(row: CheckpointRow, *, is_head: bool, is_branch: bool) -> Step:
    """One checkpoint, for a report."""
    return {
        **head_of(row),
        "is_head": is_head,
        "is_branch": is_branch,
    }


def render(report: History, console: Console) -> None:
    """Draw the checkpoints, newest first, with lanes for branches."""
    left = report["total"] - len(report["checkpoints"])
    console.print(step_table(report["checkpoints"], width=console.width, cut=left > 0))
    if left:
        console.print(f"… and {left} more; --limit 0 shows all.", style="dim")


def step_table(steps: list[Step], *, width: int, cut: bool = False) -> Table:
    """One line for each of a history's checkpoints, children before parents.

    Args:
        steps: The checkpoints.
        width: Columns there are.
        cut: Whether the history goes on behind them.
    """
    by_id = {step["checkpoint_id"]: step for step in steps}
    lines = list(draw({id: step["parent_id"] for id, step in by_id.items()}, cut=cut))
    wide, lanes_width = width >= WIDE, max((len(line.lanes) for line in lines), default=0)
    with_device = wide or lanes_width <= _FEW_LANES
    room = width - _BESIDE_LANES
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("Checkpoint", no_wrap=True)
    table.add_column("Step", justify="right", no_wrap=True)
    table.add_column("Source", no_wrap=True)
    if with_device:
        table.add_column("Device", overflow="ellipsis", min_width=6)
    table.add_column("Written", no_wrap=True)
    table.add_column("", no_wrap=True)
    for lanes, id in lines:
        if not wide and len(lanes) > room:
            lanes = f"{lanes[: room - 1]}…"
        if id is None:
            table.add_row(lanes)
            continue
        step = by_id[id]
        table.add_row(
            lanes,
            id if wide else id[:_SHORT_ID],
            "?" if step["step"] is None else str(step["step"]),
            printable(step["source"] or "?"),
            *([printable(step["device"])] if with_device else []),
            local(step["created_at"]),
            "head" if step["is_head"] else "branch" if step["is_branch"] else "",
            style="bold green" if step["is_head"] else "dim" if step["is_branch"] else None,
        )
    return table
