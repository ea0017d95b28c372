"""The newest checkpoint of a long thread, read by a process that has just started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from bench.figures import Figure, Target
from bench.graphs import Chat, LostStateError, chat_graph
from bench.run import Run
from bench.savers import Entrant, Saver
from bench.session import open_session

__all__ = ["run"]


def run(run: Run, *, target: Target, thoughts: int = 1) -> Iterator[Figure]:
    """Milliseconds to open and read once everything is imported, and since the process began.

    Args:
        run: Who takes part.
        target: For the first of these.
        thoughts: Supersteps in which a turn does nothing but leave a checkpoint.
    """
    messages = run.plan.cold_messages
    turns = messages // 2
    with ExitStack() as stack:
        folders: dict[Saver, tuple[Path, Path]] = {}
        for entrant in run.once_each():
            saver, colour = entrant
            if saver.persistent:
                filled, empty = (stack.enter_context(run.place(saver)).folder for _ in range(2))
                graph = chat_graph(colour, thoughts)
                with open_session(entrant, filled, graph) as session:
                    Chat("chat").take_turns(session, turns)
                folders[saver] = filled, empty
        entrants = [entrant for entrant in run.entrants() if entrant.saver.persistent]
        for case, whole in (("open and read", False), ("whole process", True)):
            samples: dict[Entrant, list[float]] = {entrant: [] for entrant in entrants}
            for number in range(run.plan.cold_rounds):
                shift = number % len(entrants)
                for entrant in entrants[shift:] + entrants[:shift]:
                    seconds = _read(entrant, *folders[entrant.saver], messages, whole)
                    samples[entrant].append(1e3 * seconds)
            yield Figure(
                title=f"Newest of {turns * (thoughts + 3):,} checkpoints ({messages} messages), cold",
                case=case,
                unit="ms",
                samples=samples,
                peers=run.peers,
                target=None if whole else target,
            )


def _read(entrant: Entrant, filled: Path, empty: Path, messages: int, whole: bool) -> float:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    spawned = time.time_ns() if whole else 0
    arguments = [entrant.saver.name, entrant.colour, filled, empty, "chat", spawned]
    done = subprocess.run(
        [sys.executable, "-m", "bench.cold_read", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout)
    if answer["messages"] != messages:
        raise LostStateError(
            f"a new process found {answer['messages']} messages of {messages} with "
            f"{entrant.saver.name!r}"
        )
    return float(answer["seconds"])
