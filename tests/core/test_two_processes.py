"""Two processes on one thread at once: one wins each step, the other is told, nothing acknowledged is lost."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.core.support import Process, id_of, latest, opened, place

Racers = dict[str, Process]


@pytest.fixture
def racers(tmp_path: Path) -> Iterator[Racers]:
    """Two writers on one file, each with one end of a line to the other."""
    ends = socket.socketpair()
    path = tmp_path / "threads.db"
    with (
        Process("racer", path, "laptop", ends[0].fileno(), pass_fds=[ends[0].fileno()]) as laptop,
        Process("racer", path, "phone", ends[1].fileno(), pass_fds=[ends[1].fileno()]) as phone,
    ):
        # Only theirs now: when one dies, the other notices.
        for end in ends:
            end.close()
        yield {"laptop": laptop, "phone": phone}


def race(racers: Racers, verb: str, rounds: int) -> list[list[Any]]:
    """Both do it at once. Returns what became of each, the laptop's first."""
    for racer in racers.values():
        racer.tell(verb, rounds)
    return [racer.hear() for racer in racers.values()]


@pytest.mark.parametrize("rounds", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_one_wins_each_step(racers: Racers, tmp_path: Path, rounds: int) -> None:
    results = dict(zip(racers, race(racers, "puts", rounds), strict=True))
    head: str | None = None
    won: list[str] = []
    for number in range(rounds):
        (winner, win), (_, loss) = sorted(
            ((name, each[number]) for name, each in results.items()),
            key=lambda found: found[1][0] != "won",
        )
        assert (win[0], loss[0]) == ("won", "lost"), f"round {number}"
        assert win[2] == head, "it grew from what both had read"
        assert loss[1:] == [head, win[1], winner], "the loser is told where, and by whom"
        head = win[1]
        won.append(head)

    with opened(tmp_path / "threads.db") as saver:
        listed = {id_of(t.config): t for t in saver.list(place("puts"))}
        newest = saver.get_tuple(place("puts"))
        assert newest is not None
        ancestry = []
        at: str | None = id_of(newest.config)
        while at is not None:
            ancestry.append(at)
            found = listed[at]
            values = found.checkpoint["channel_values"]
            number = rounds - len(ancestry)
            name = values["turn"].split()[0]
            assert values == {"turn": f"{name} {number}", "text": f"{number} " * 200}
            task = f"task of {name}"
            assert found.pending_writes == [(task, "turn", name), (task, "text", number)]
            at = id_of(found.parent_config) if found.parent_config else None
        assert ancestry == won[::-1], "all that was acknowledged is on the thread"
        assert len(listed) == rounds, "and nothing of what was refused"


def test_one_run_wins_each_turn(racers: Racers, tmp_path: Path) -> None:
    rounds = 30
    finished = race(racers, "graphs", rounds)
    turns = sorted((turn for each in finished for turn in each), key=lambda t: int(t.split()[1]))
    assert [int(turn.split()[1]) for turn in turns] == list(range(rounds)), "one of the two a round"
    with opened(tmp_path / "threads.db") as saver:
        assert latest(saver, "graphs")["turns"] == [
            said for turn in turns for said in (turn, f"re {turn}")
        ]
