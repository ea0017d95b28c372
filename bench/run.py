"""One run: who takes part, and how its scenarios time them."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.plan import COLOURS, DURABILITIES, FULL, Colour, Durability, Plan
from bench.savers import NAMESAKE, NONE, Saver, resolve

__all__ = ["Run", "entrants", "take_turns", "timed"]


@dataclass(frozen=True)
class Run:
    """What every scenario is given.

    Attributes:
        savers: All that take part, without "no saver".
        plan: How much is measured.
        colours: Which of `invoke` and `ainvoke`.
        durabilities: LangGraph's modes that the chat is held in.
        base: The folder in which savers get theirs.
    """

    savers: Sequence[Saver]
    plan: Plan = FULL
    colours: Sequence[Colour] = COLOURS
    durabilities: Sequence[Durability] = DURABILITIES
    base: Path | None = None

    def entrants(self, colour: Colour, *, baseline: bool = False) -> list[Saver]:
        """The savers that serve this colour, after no saver at all if a baseline is wanted."""
        serving = [saver for saver in self.savers if colour in saver.colours]
        return [NONE, *serving] if baseline else serving

    def once_each(self) -> list[tuple[Saver, Colour]]:
        """Every saver in one colour, `invoke` if it can: for what does not depend on the colour."""
        return [
            (saver, "sync" if "sync" in saver.colours else saver.colours[0])
            for saver in self.savers
            if set(saver.colours) & set(self.colours)
        ]

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A fresh folder, removed at the end."""
        with tempfile.TemporaryDirectory(prefix="bench-", dir=self.base) as folder:
            yield Path(folder)


def entrants(names: Sequence[str], colours: Sequence[Colour]) -> list[Saver]:
    """The savers of those names and the namesakes that their ratios refer to, peers first.

    Raises:
        LookupError: No such name.
    """
    wanted = dict.fromkeys([*(NAMESAKE[colour] for colour in colours), *names])
    return sorted(map(resolve, wanted), key=lambda saver: not saver.peer)


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


def take_turns(work: Mapping[str, Callable[[], object]], first: int) -> dict[str, float]:
    """Time everyone's work, one after the other, so that a slow moment hits all alike.

    Args:
        work: What each saver does.
        first: Who begins; count it up, so that everyone is first, second, … equally often.

    Returns:
        Seconds, by the same names.
    """
    names = list(work)
    shift = first % len(names)
    return {name: timed(work[name]) for name in names[shift:] + names[:shift]}
