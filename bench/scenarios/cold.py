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
from bench.plan import Colour
from bench.run import Run
from bench.savers import NAMESAKE, Saver
from bench.session import open_session

__all__ = ["run"]


def run(run: Run) -> Iterator[Figure]:
    """Milliseconds to open and read once everything is imported, and since the process began."""
    messages = run.plan.cold_messages
    with ExitStack() as stack:
        folders: dict[str, Path] = {}
        for saver, colour in run.once_each():
            if saver.persistent:
                folders[saver.name] = stack.enter_context(run.folder())
                with open_session(
                    saver, colour, folders[saver.name], chat_graph(colour)
                ) as session:
                    Chat("chat").take_turns(session, messages // 2)
        for colour in run.colours:
            call = "get_tuple" if colour == "sync" else "aget_tuple"
            savers = [saver for saver in run.entrants(colour) if saver.persistent]
            for case, whole in (("open and read", False), ("whole process", True)):
                samples: dict[str, list[float]] = {saver.name: [] for saver in savers}
                for number in range(run.plan.cold_rounds):
                    shift = number % len(savers)
                    for saver in savers[shift:] + savers[:shift]:
                        seconds = _read(saver, colour, folders[saver.name], messages, whole)
                        samples[saver.name].append(1e3 * seconds)
                yield Figure(
                    title=f"Newest of {messages} messages, cold, {call}",
                    case=case,
                    unit="ms",
                    samples=samples,
                    peer=NAMESAKE[colour],
                    target=None if whole else Target(1.0),
                )


def _read(saver: Saver, colour: Colour, folder: Path, messages: int, whole: bool) -> float:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    spawned = str(time.time_ns() if whole else 0)
    command = [sys.executable, "-m", "bench.cold_read", saver.name, colour, str(folder), "chat"]
    done = subprocess.run(
        [*command, spawned], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    answer = json.loads(done.stdout)
    if answer["messages"] != messages:
        raise LostStateError(
            f"a new process found {answer['messages']} messages of {messages} with {saver.name!r}"
        )
    return float(answer["seconds"])
