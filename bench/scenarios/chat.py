"""One turn of a chat, early in the thread and late, in every durability."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial

from bench.figures import Figure, Target
from bench.graphs import Chat, chat_graph
from bench.plan import Durability, Window
from bench.run import Run, take_turns
from bench.savers import NONE, Entrant

__all__ = ["run", "samples", "trips"]

Samples = dict[Window, dict[Entrant, list[float]]]


def run(
    run: Run, *, targets: Mapping[Durability, Target], late: Target | None = None
) -> Iterator[Figure]:
    """Milliseconds a turn; targets are for the overhead over no saver.

    Args:
        run: Who takes part.
        targets: By durability.
        late: For windows after the first, where it is another one.
    """
    for durability in run.durabilities:
        for (first, last), taken in samples(run, durability).items():
            early = (first, last) == run.plan.windows[0]
            yield Figure(
                title=f"Chat turn{run.plan.distance}",
                case=f"{durability}, {first}–{last}",
                unit="ms",
                samples=taken,
                peers=run.peers,
                overhead=True,
                target=targets.get(durability) if early else late or targets.get(durability),
            )


def trips(run: Run, *, target: Target) -> Iterator[Figure]:
    """Round trips that a turn waits for, one after another: its time, in trips of the far server."""
    assert run.plan.delay is not None
    trip = 2e3 * run.plan.delay
    for (first, last), taken in samples(run, "async").items():
        yield Figure(
            title=f"Round trips a chat turn waits for{run.plan.distance}",
            case=f"async, {first}–{last}",
            unit="trips",
            samples={
                entrant: [each / trip for each in milliseconds]
                for entrant, milliseconds in taken.items()
                if entrant.saver != NONE
            },
            peers=run.peers,
            target=target,
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
