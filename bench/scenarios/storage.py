"""What a long chat takes on disk, and how that grows with its length."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from bench.figures import Figure, Target
from bench.graphs import Chat, chat_graph
from bench.run import Run
from bench.size import sizes_after

__all__ = ["run"]


def run(run: Run, *, target: Target | None = None) -> Iterator[Figure]:
    """Megabytes at rest, after half of the chat too, and the exponent: 1 grows with the text, 2 with its square."""
    half, full = run.plan.stored_turns
    sizes = {}
    for entrant in run.once_each():
        chat = Chat("chat")
        stages = [
            partial(chat.take_turns, turns=half),
            partial(chat.take_turns, turns=full - half),
        ]
        sizes[entrant] = sizes_after(run, entrant, chat_graph, stages)
    for stage, turns in enumerate(run.plan.stored_turns):
        yield Figure(
            title="Stored by one chat",
            case=f"{turns} turns",
            unit="MB",
            samples={entrant: [found[stage].stored / 1e6] for entrant, found in sizes.items()},
            peers=run.peers,
            target=target,
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
