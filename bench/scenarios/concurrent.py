"""Many chats at once with one saver: threads for `invoke`, tasks for `ainvoke`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from bench.figures import Figure, Target
from bench.graphs import Chat, chat_graph
from bench.run import Run, take_turns
from bench.savers import Entrant
from bench.session import Session

__all__ = ["run"]


def run(run: Run, *, target: Target) -> Iterator[Figure]:
    """Turns a second over all chats; every sample begins new chats."""
    plan = run.plan
    samples: dict[Entrant, list[float]] = {}
    with ExitStack() as stack:
        sessions: dict[Entrant, Session] = {}
        for entrant in run.entrants():
            samples[entrant] = []
            sessions[entrant] = stack.enter_context(run.session(entrant, chat_graph))
            Chat("warm-up").take_turns(sessions[entrant], 2)
        for number in range(plan.crowds):
            work = {}
            for entrant, session in sessions.items():
                chats = [Chat(f"chat-{number}-{seat}") for seat in range(plan.chats)]
                work[entrant] = partial(session.chat_at_once, chats, plan.chat_turns)
            for entrant, seconds in take_turns(work, first=number).items():
                samples[entrant].append(plan.chats * plan.chat_turns / seconds)
    yield Figure(
        title=f"{plan.chats} chats at once{plan.distance}",
        case=f"{plan.chat_turns} turns each",
        unit="turns/s",
        samples=samples,
        peers=run.peers,
        target=target,
    )
