"""What each step stores beside a 1 MiB channel that does not change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.figures import Figure, Target
from bench.graphs import prose, unchanged_graph
from bench.run import Run
from bench.savers import NAMESAKE
from bench.session import Session
from bench.size import stored_after

__all__ = ["run"]

KIBI = 1024
DOCUMENTS: dict[str, Any] = {
    "one str": prose(0, KIBI * KIBI),
    "list of str": [prose(number, KIBI) for number in range(KIBI)],
}
"""A saver may keep one kind apart from the checkpoint and the other inside it."""


def run(run: Run) -> Iterator[Figure]:
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

        samples = {}
        for saver, colour in run.once_each():
            before, after = stored_after(run, saver, colour, unchanged_graph, [begin, go_on])
            samples[saver.name] = [(after - before) / steps / 1e3]
        yield Figure(
            title="Unchanged 1 MiB channel, stored a step",
            case=case,
            unit="kB",
            samples=samples,
            peer=NAMESAKE["sync"],
            target=Target(4.0, of="value"),
        )
