"""What a long chat takes on disk, and how that grows with its length."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from bench.figures import Figure
from bench.graphs import Chat, chat_graph
from bench.run import Run
from bench.size import sizes_after

__all__ = ["run"]


def run(run: Run) -> Iterator[Figure]:
    """Megabytes at rest, and the exponent: 1 grows with the text, 2 with its square."""
    half, full = run.plan.stored_turns
    sizes = {}
    for entrant in run.once_each():
        chat = Chat("chat")
        stages = [
            partial(chat.take_turns, turns=half),
            partial(chat.take_turns, turns=full - half),
        ]
        sizes[entrant] = sizes_after(run, entrant, chat_graph, stages)
    yield Figure(
        title="Stored by one chat",
        case=f"{full} turns",
        unit="MB",
        samples={entrant: [after.stored / 1e6] for entrant, (_, after) in sizes.items()},
        peers=run.peers,
    )
    yield Figure(
        title="Stored by one chat",
        case=f"growth {half}–{full}",
        unit="exponent",
        samples={
            entrant: [math.log(after.stored / before.stored, full / half)]
            for entrant, (before, after) in sizes.items()
        },
    )
