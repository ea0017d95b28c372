"""Many chats at once with one saver: threads for `invoke`, tasks for `ainvoke`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from bench.figures import Figure, Target
from bench.graphs import Chat, chat_graph
from bench.run import Run, take_turns
from bench.savers import NAMESAKE
from bench.session import Session, open_session

__all__ = ["run"]


def run(run: Run) -> Iterator[Figure]:
    """Turns a second over all chats; every sample begins new chats."""
    plan = run.plan
    for colour in run.colours:
        savers = run.entrants(colour)
        samples: dict[str, list[float]] = {saver.name: [] for saver in savers}
        with ExitStack() as stack:
            sessions: dict[str, Session] = {}
            for saver in savers:
                folder = stack.enter_context(run.folder())
                sessions[saver.name] = stack.enter_context(
                    open_session(saver, colour, folder, chat_graph(colour))
                )
                Chat("warm-up").take_turns(sessions[saver.name], 2)
            for number in range(plan.crowds):
                work = {}
                for name, session in sessions.items():
                    chats = [Chat(f"chat-{number}-{seat}") for seat in range(plan.chats)]
                    work[name] = partial(session.chat_at_once, chats, plan.chat_turns)
                for name, seconds in take_turns(work, first=number).items():
                    samples[name].append(plan.chats * plan.chat_turns / seconds)
        yield Figure(
            title=f"{plan.chats} chats at once",
            case="invoke" if colour == "sync" else "ainvoke",
            unit="turns/s",
            samples=samples,
            peer=NAMESAKE[colour],
            target=Target(1.5, "at least"),
        )
