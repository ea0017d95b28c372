"""One turn of a chat, early in the thread and late, in every durability."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from bench.figures import Figure, Target
from bench.graphs import Chat, chat_graph
from bench.plan import Colour, Durability
from bench.run import Run, take_turns
from bench.savers import NAMESAKE
from bench.session import open_session

__all__ = ["run"]

Window = tuple[int, int]
Samples = dict[Window, dict[str, list[float]]]


def run(run: Run) -> Iterator[Figure]:
    """Milliseconds a turn; the target is for the overhead over no saver."""
    for colour in run.colours:
        call = "invoke" if colour == "sync" else "ainvoke"
        for durability in run.durabilities:
            for (first, last), samples in _samples(run, colour, durability).items():
                yield Figure(
                    title=f"Chat turn, {call}",
                    case=f"{durability}, {first}–{last}",
                    unit="ms",
                    samples=samples,
                    peer=NAMESAKE[colour],
                    overhead=True,
                    target=Target(0.75),
                )


def _samples(run: Run, colour: Colour, durability: Durability) -> Samples:
    plan = run.plan
    names = [saver.name for saver in run.entrants(colour, baseline=True)]
    samples: Samples = {window: {name: [] for name in names} for window in (plan.early, plan.late)}
    for _ in range(plan.rounds):
        with ExitStack() as stack:
            turns = {}
            for saver in run.entrants(colour, baseline=True):
                folder = stack.enter_context(run.folder())
                session = stack.enter_context(
                    open_session(saver, colour, folder, chat_graph(colour))
                )
                # What happens once (imports, the schema) is not a turn's.
                Chat("warm-up", durability).take_turns(session, 2)
                chat = Chat("chat", durability)
                turns[saver.name] = partial(chat.take_turns, session, plan.block)
            for block, first in enumerate(range(1, plan.late[1] + 1, plan.block)):
                seconds = take_turns(turns, first=block)
                for window in samples:
                    if window[0] <= first <= window[1]:
                        for name in names:
                            samples[window][name].append(1e3 * seconds[name] / plan.block)
    return samples
