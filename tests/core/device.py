"""A device for test_clock: one process with a clock of its own, running real turns on a shared thread."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from langgraph.checkpoint.base import id as ids

from tests.core.support import chat_graph, commands, opened, place, say


def set_clock(hours: float) -> None:
    """Make all that names or dates a checkpoint in this process see a shifted clock."""
    now, now_ns = time.time, time.time_ns
    module: Any = ids
    module.time = SimpleNamespace(time_ns=lambda: now_ns() + int(hours * 3600e9))
    time.time = lambda: now() + hours * 3600


def main(path: str, name: str, hours: str) -> None:
    set_clock(float(hours))
    with opened(Path(path), device=name) as saver:
        graph = chat_graph(saver)
        for verb, argument in commands():
            if verb == "clock":
                say(ids.uuid6().time)
            elif verb == "turn":
                thread_id, text, durability = argument
                graph.invoke({"turns": [text]}, place(thread_id), durability=durability)
                say("done")
            elif verb == "latest":
                state = graph.get_state(place(argument))
                checkpoint_id = state.config["configurable"]["checkpoint_id"]
                say([checkpoint_id, state.values["turns"]])
            else:
                raise ValueError(verb)


if __name__ == "__main__":
    main(*sys.argv[1:])
