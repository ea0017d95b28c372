"""One run: who takes part, and how its scenarios time them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bench.place import Place, new_place
from bench.plan import COLOURS, DURABILITIES, FULL, Colour, Durability, Plan
from bench.savers import NONE, Entrant, Saver
from bench.servers import Servers
from bench.session import Session, open_session

if TYPE_CHECKING:
    from langgraph.graph import StateGraph

__all__ = ["Run", "take_turns", "timed"]

Name = TypeVar("Name")


@dataclass(frozen=True)
class Run:
    """What every scenario is given.

    Attributes:
        savers: All that take part, without "no saver".
        peers: Those that ratios refer to, by the colour of the saver that is compared.
        plan: How much is measured.
        colours: Which of `invoke` and `ainvoke`.
        durabilities: LangGraph's modes that the chat is held in.
        base: The folder in which savers get theirs.
        servers: Where remote savers get a database.
    """

    savers: Sequence[Saver]
    peers: Mapping[Colour, Sequence[str]] = field(default_factory=dict)
    plan: Plan = FULL
    colours: Sequence[Colour] = COLOURS
    durabilities: Sequence[Durability] = DURABILITIES
    base: Path | None = None
    servers: Servers | None = None

    def entrants(self, *, baseline: bool = False) -> list[Entrant]:
        """Every saver in every colour it serves, after no saver at all if a baseline is wanted."""
        savers = [NONE, *self.savers] if baseline else self.savers
        return [
            Entrant(saver, colour)
            for saver in savers
            for colour in self.colours
            if colour in saver.colours
        ]

    def once_each(self) -> list[Entrant]:
        """Every saver in one colour, `invoke` if it can: for what does not depend on the colour."""
        first: dict[Saver, Entrant] = {}
        for entrant in self.entrants():
            first.setdefault(entrant.saver, entrant)
        return list(first.values())

    def place(self, saver: Saver) -> AbstractContextManager[Place]:
        """A fresh place for it, gone at the end; its server is as far away as the plan says."""
        return new_place(self.base, self.servers if saver.remote else None, self.plan.delay)

    @contextmanager
    def session(
        self, entrant: Entrant, build: Callable[[Colour], StateGraph[Any, Any]]
    ) -> Iterator[Session]:
        """The entrant in a place of its own, with the graph that is built for its colour."""
        with (
            self.place(entrant.saver) as place,
            open_session(entrant, place.folder, build(entrant.colour)) as session,
        ):
            yield session


def timed(work: Callable[[], object]) -> float:
    """Seconds that the work takes, with no garbage collection of what was before or meanwhile."""
    gc.collect()
    gc.disable()
    try:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    finally:
        gc.enable()


def take_turns(work: Mapping[Name, Callable[[], object]], first: int) -> dict[Name, float]:
    """Time everyone's work, one after the other, so that a slow moment hits all alike.

    Args:
        work: What each does.
        first: Who begins; count it up, so that everyone is first, second, … equally often.

    Returns:
        Seconds, by the same names.
    """
    names = list(work)
    shift = first % len(names)
    return {name: timed(work[name]) for name in names[shift:] + names[:shift]}
