"""One of two writers for test_two_processes: reads a thread, meets the other, writes."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple

from charm_checkpoint.errors import ThreadConflictError
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.sqlite import SqliteBackend
from tests.core.support import chat_graph, checkpoint_of, commands, id_of, place, say


class Meeting(CheckpointSaver):
    """A saver whose readers wait for the other process to have read, too."""

    other: socket.socket

    def meet(self) -> None:
        self.other.sendall(b".")
        if not self.other.recv(1):
            raise ConnectionError("the other writer is gone")

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        found = super().get_tuple(config)
        self.meet()
        return found


def race_puts(saver: Meeting, name: str, rounds: int) -> list[Any]:
    """One step a round, each on the newest checkpoint. Returns what became of them."""
    results: list[Any] = []
    for number in range(rounds):
        head = saver.get_tuple(place("puts"))
        parent = head.config if head else place("puts")
        checkpoint, versions = checkpoint_of(turn=f"{name} {number}", text=f"{number} " * 200)
        mine = place("puts", checkpoint["id"])
        try:
            saver.put(parent, checkpoint, {"source": "loop", "step": number}, versions)
            saver.put_writes(mine, [("turn", name), ("text", number)], f"task of {name}")
            results.append(["won", checkpoint["id"], head and id_of(head.config)])
        except ThreadConflictError as error:
            results.append(["lost", error.expected, error.actual, error.device])
            try:
                saver.put_writes(mine, [("turn", name)], f"task of {name}")
            except ThreadConflictError:
                pass
            else:
                raise AssertionError("writes of a refused step were accepted")
        # Nobody reads the next head before both have their answers.
        saver.meet()
    return results


def race_graphs(saver: Meeting, name: str, rounds: int) -> list[Any]:
    """One turn of a real graph a round. Returns those that were finished."""
    graph = chat_graph(saver)
    finished = []
    for number in range(rounds):
        turn = f"{name} {number}"
        try:
            graph.invoke(
                {"turns": [turn]},
                place("graphs"),
                durability=("sync", "async", "exit")[number % 3],
            )
            finished.append(turn)
        except ThreadConflictError:
            pass
        saver.meet()
    return finished


def main(path: str, name: str, descriptor: str) -> None:
    saver = Meeting(SqliteBackend(Path(path)), device=name)
    saver.other = socket.socket(fileno=int(descriptor))
    races = {"puts": race_puts, "graphs": race_graphs}
    for verb, rounds in commands():
        say(races[verb](saver, name, rounds))
    saver.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
