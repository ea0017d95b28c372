"""The graphs that are run, and the chat that is held with one of them."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Send
from typing_extensions import TypedDict

from bench.plan import Colour, Durability

if TYPE_CHECKING:
    from bench.session import Session

__all__ = ["Chat", "LostStateError", "chat_graph", "fanout_graph", "prose", "unchanged_graph"]

MESSAGE_CHARACTERS = 600


class LostStateError(Exception):
    """A saver did not give back what the graph had stored; its times mean nothing."""


@cache
def _text() -> str:
    """About 1.8 MB of words that zlib packs 2.7 times, as it does prose; the same in every run."""
    chance = random.Random(600)
    syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "en", "ar")]
    words = ["".join(chance.choices(syllables, k=chance.randint(1, 4))) for _ in range(12_000)]
    weights = [rank**-0.85 for rank in range(1, len(words) + 1)]
    return " ".join(chance.choices(words, weights, k=270_000))


def prose(number: int, characters: int = MESSAGE_CHARACTERS) -> str:
    """Text number `number`: no two numbers share theirs until the words run out."""
    text = _text()
    start = number * characters % (len(text) - characters)
    return text[start : start + characters]


def _node(colour: Colour, instant: Callable[[Any], Any]) -> Any:
    """The node in that colour: LangGraph sends a plain function under `ainvoke` to a thread."""
    if colour == "sync":
        return instant

    async def node(state: Any) -> Any:
        return instant(state)

    return node


def chat_graph(colour: Colour, thoughts: int = 1) -> StateGraph[Any, Any]:
    """`MessagesState` and instant nodes: one for each thought, then one that answers with 600 characters.

    A turn makes a checkpoint of its input, one of the step that takes it, and one of each node.
    """

    def think(state: MessagesState) -> dict[str, Any]:
        return {}

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(prose(len(state["messages"])))]}

    builder = StateGraph(MessagesState)
    thinking = [f"think-{number}" for number in range(thoughts)]
    for name in thinking:
        builder.add_node(name, _node(colour, think))
    builder.add_node("answer", _node(colour, answer))
    for edge in pairwise([START, *thinking, "answer", END]):
        builder.add_edge(*edge)
    return builder


class Chat:
    """A conversation with `chat_graph`, one human and one AI message a turn.

    Without a saver the whole conversation is the input of each turn, as a caller would have to do
    it; with one, the new message is.
    """

    def __init__(self, thread_id: str, durability: Durability = "async") -> None:
        self.thread_id = thread_id
        self.durability = durability
        self._turns = 0
        self._messages: list[Any] = []

    def take_turns(self, session: Session, turns: int) -> None:
        """Hold that many turns.

        Raises:
            LostStateError: The thread does not hold every message so far.
        """
        for _ in range(turns):
            message = self.next_input(session)
            self.answered(session.invoke(message, self.thread_id, self.durability))

    def next_input(self, session: Session) -> dict[str, Any]:
        """The graph's input for the next turn."""
        said = HumanMessage(prose(2 * self._turns))
        return {"messages": [said] if session.remembers else [*self._messages, said]}

    def answered(self, output: dict[str, Any]) -> None:
        """Take the graph's output, and check that nothing is missing in it."""
        self._turns += 1
        self._messages = output["messages"]
        if len(self._messages) != 2 * self._turns:
            raise LostStateError(
                f"thread {self.thread_id!r} has {len(self._messages)} messages after turn "
                f"{self._turns}, not {2 * self._turns}"
            )


class _FanoutState(TypedDict):
    width: int
    results: Annotated[list[str], operator.add]


def fanout_graph(colour: Colour) -> StateGraph[Any, Any]:
    """Input `{"width": n}` makes n tasks by `Send` in one superstep."""

    def spread(state: _FanoutState) -> list[Send]:
        return [Send("work", number) for number in range(state["width"])]

    def work(number: Any) -> dict[str, Any]:
        return {"results": [f"result {number}"]}

    builder = StateGraph(_FanoutState)
    builder.add_node("work", _node(colour, work))
    builder.add_conditional_edges(START, spread, ["work"])
    builder.add_edge("work", END)
    return builder


class _UnchangedState(TypedDict):
    document: Any
    steps: int


def unchanged_graph(colour: Colour) -> StateGraph[Any, Any]:
    """Input `{"steps": n}` makes n supersteps; whatever `document` holds stays as it is."""

    def step(state: _UnchangedState) -> dict[str, Any]:
        return {"steps": state["steps"] - 1}

    def more(state: _UnchangedState) -> str:
        return "step" if state["steps"] > 0 else END

    builder = StateGraph(_UnchangedState)
    builder.add_node("step", _node(colour, step))
    builder.add_edge(START, "step")
    builder.add_conditional_edges("step", more, ["step", END])
    return builder
