"""One turn of a chat, early in the thread and late, in every durability."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial

from bench.figures import Figure, Target
from bench.graphs import Chat, chat_graph
from bench.plan import Durability, Window
from bench.run import Run, take_turns
from bench.savers import Entrant

__all__ = ["run", "samples"]

Samples = dict[Window, dict[Entrant, list[float]]]


def run(run: Run, *, targets: Mapping[Durability, Target]) -> Iterator[Figure]:
    """Milliseconds a turn; targets are for the overhead over no saver."""
    for durability in run.durabilities:
        for (first, last), taken in samples(run, durability).items():
            yield Figure(
                title=f"Chat turn{run.plan.distance}",
                case=f"{durability}, {first}–{last}",
                unit="ms",
                samples=taken,
                peers=run.peers,
                overhead=True,
                target=targets.get(durability),
            )


def samples(run: Run, durability: Durability) -> Samples:
    """Milliseconds a turn of everybody, and of no saver at all, in each window of the thread."""
    plan = run.plan
    entrants = run.entrants(baseline=True)
    found: Samples = {window: {each: [] for each in entrants} for window in plan.windows}
    for _ in range(plan.rounds):
        with ExitStack() as stack:
            turns = {}
            for entrant in entrants:
                session = stack.enter_context(run.session(entrant, chat_graph))
                # What happens once (imports, the schema) is not a turn's.
                Chat("warm-up", durability).take_turns(session, 2)
                chat = Chat("chat", durability)
                turns[entrant] = partial(chat.take_turns, session, plan.block)
            last = max(last for _, last in plan.windows)
            for block, turn in enumerate(range(1, last + 1, plan.block)):
                seconds = take_turns(turns, first=block)
                for (first, last), taken in found.items():
                    if first <= turn <= last:
                        for entrant in entrants:
                            taken[entrant].append(1e3 * seconds[entrant] / plan.block)
    return found
