"""What each step stores and sends beside a 1 MiB channel that does not change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.figures import Figure, Target
from bench.graphs import prose, unchanged_graph
from bench.run import Run
from bench.session import Session
from bench.size import Size, sizes_after

__all__ = ["run"]

KIBI = 1024
DOCUMENTS: dict[str, Any] = {
    "one str": prose(0, KIBI * KIBI),
    "list of str": [prose(number, KIBI) for number in range(KIBI)],
}
"""A saver may keep one kind apart from the checkpoint and the other inside it."""


def run(run: Run, *, target: Target) -> Iterator[Figure]:
    """Kilobytes a superstep, counted from when the channel is already stored.

    The two checkpoints that begin a run, its input's and that of the step that takes it, are borne
    by the supersteps.
    """
    steps = run.plan.unchanged_steps
    for case, document in DOCUMENTS.items():

        def begin(session: Session, document: Any = document) -> None:
            session.invoke({"document": document, "steps": 2}, "thread")

        def go_on(session: Session) -> None:
            session.invoke({"steps": steps}, "thread")

        added = {}
        for entrant in run.once_each():
            before, after = sizes_after(run, entrant, unchanged_graph, [begin, go_on])
            added[entrant] = Size(after.stored - before.stored, after.sent - before.sent)
        counted = {entrant: size for entrant, size in added.items() if size.sent}
        for what, sizes in (("stored", added), ("sent", counted)):
            if sizes:
                yield Figure(
                    title=f"Unchanged 1 MiB channel, {what} a step",
                    case=case,
                    unit="kB",
                    samples={
                        entrant: [getattr(size, what) / steps / 1e3]
                        for entrant, size in sizes.items()
                    },
                    peers=run.peers,
                    target=target,
                )
