"""How much is measured: sizes and repetitions of every scenario."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["COLOURS", "DURABILITIES", "FULL", "QUICK", "Colour", "Durability", "Plan"]

Colour = Literal["sync", "async"]
Durability = Literal["sync", "async", "exit"]

COLOURS: tuple[Colour, ...] = ("sync", "async")
DURABILITIES: tuple[Durability, ...] = ("async", "sync", "exit")


@dataclass(frozen=True)
class Plan:
    """Sizes and repetitions; the defaults are those of a full run.

    Attributes:
        name: What the report calls this plan.
        rounds: Chats from their first turn to the last.
        block: Turns that one saver takes before it is the next one's turn; one sample.
        early: First and last chat turn of the early window; whole blocks.
        late: The same, for the late window.
        fanouts: Invocations of the `Send` graph.
        width: Parallel tasks in one such invocation.
        chats: Chats at once.
        chat_turns: Turns of each of them, in one sample.
        crowds: How often that many are held at once.
        stored_turns: The two lengths of a chat at which its storage is measured.
        unchanged_steps: Supersteps over the channel that does not change.
        cold_messages: Length of the thread that a cold process opens.
        cold_rounds: Cold processes per saver and measure.
    """

    name: str = "full"
    rounds: int = 5
    block: int = 5
    early: tuple[int, int] = (1, 20)
    late: tuple[int, int] = (181, 200)
    fanouts: int = 30
    width: int = 50
    chats: int = 32
    chat_turns: int = 5
    crowds: int = 10
    stored_turns: tuple[int, int] = (200, 400)
    unchanged_steps: int = 20
    cold_messages: int = 500
    cold_rounds: int = 10


FULL = Plan()
QUICK = Plan(
    name="quick",
    rounds=1,
    early=(1, 20),
    late=(81, 100),
    fanouts=8,
    chat_turns=4,
    crowds=3,
    stored_turns=(50, 100),
    cold_messages=100,
    cold_rounds=3,
)
