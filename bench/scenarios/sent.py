"""What a chat sends to the server late in the thread, where the conversation is long and a turn adds little."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

from bench.figures import Figure, Target
from bench.graphs import MESSAGE_CHARACTERS, Chat, chat_graph
from bench.run import Run
from bench.size import sizes_after

__all__ = ["run"]


def run(run: Run, *, target: Target | None = None) -> Iterator[Figure]:
    """Bytes to the server in a turn, as a multiple of the text that the turn adds: two messages."""
    first, last = run.plan.sent_turns
    new = 2 * MESSAGE_CHARACTERS
    samples = {}
    for entrant in run.once_each():
        if entrant.saver.remote:
            chat = Chat("chat")
            turns = [first - 1] + [1] * (last - first + 1)
            stages = [partial(chat.take_turns, turns=count) for count in turns]
            sizes = sizes_after(run, entrant, chat_graph, stages)
            samples[entrant] = [
                (after.sent - before.sent) / new for before, after in pairwise(sizes)
            ]
    yield Figure(
        title=f"Sent in a turn that adds {new:,} bytes of text{run.plan.distance}",
        case=f"turns {first}–{last}",
        unit="× these",
        samples=samples,
        peers=run.peers,
        target=target,
    )
