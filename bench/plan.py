"""How much is measured: sizes and repetitions of every scenario."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["COLOURS", "DURABILITIES", "FULL", "QUICK", "Colour", "Durability", "Plan", "Window"]

Colour = Literal["sync", "async"]
Durability = Literal["sync", "async", "exit"]
Window = tuple[int, int]

COLOURS: tuple[Colour, ...] = ("sync", "async")
DURABILITIES: tuple[Durability, ...] = ("async", "sync", "exit")


@dataclass(frozen=True)
class Plan:
    """Sizes and repetitions; the defaults are those of a full run.

    Attributes:
        name: What the report calls this plan.
        rounds: Chats from their first turn to the last.
        block: Turns that one saver takes before it is the next one's turn; one sample.
        windows: First and last of the chat turns that are measured; whole blocks.
        fanouts: Invocations of the `Send` graph.
        width: Parallel tasks in one such invocation.
        chats: Chats at once.
        chat_turns: Turns of each of them, in one sample.
        crowds: How often that many are held at once.
        stored_turns: The two lengths of a chat at which its storage is measured.
        sent_turns: First and last of the chat turns whose bytes are counted.
        unchanged_steps: Supersteps over the channel that does not change.
        cold_messages: Length of the thread that a cold process opens.
        cold_rounds: Cold processes per saver and measure.
        offline_turns: Turns taken while the server is away.
        delay: Seconds that a server is away, each way; `None`: nothing stands between.
        far: The plan for scenarios with the server far away, where a trip takes its time on any machine.
    """

    name: str = "full"
    rounds: int = 5
    block: int = 5
    windows: tuple[Window, ...] = ((1, 20), (181, 200))
    fanouts: int = 30
    width: int = 50
    chats: int = 32
    chat_turns: int = 5
    crowds: int = 10
    stored_turns: tuple[int, int] = (200, 400)
    sent_turns: Window = (196, 200)
    unchanged_steps: int = 20
    cold_messages: int = 500
    cold_rounds: int = 10
    offline_turns: int = 1000
    delay: float | None = None
    far: Plan | None = None

    @property
    def distance(self) -> str:
        """How far away the server is, for titles."""
        return f", {1e3 * self.delay:g} ms away" if self.delay else ""


FULL = Plan(
    far=Plan(rounds=3, windows=((1, 20),), fanouts=8, chat_turns=3, crowds=3, delay=0.02),
)
QUICK = Plan(
    name="quick",
    rounds=1,
    windows=((1, 20), (81, 100)),
    fanouts=8,
    chat_turns=4,
    crowds=3,
    stored_turns=(50, 100),
    sent_turns=(96, 100),
    cold_messages=100,
    cold_rounds=3,
    far=Plan(
        rounds=1,
        windows=((1, 10),),
        fanouts=2,
        chat_turns=1,
        crowds=2,
        offline_turns=100,
        delay=0.02,
    ),
)
