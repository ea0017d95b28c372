"""What was measured: samples per saver, and the ratios drawn from them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from bench.savers import NONE

__all__ = ["Figure", "Spread", "Target"]


class Spread(NamedTuple):
    """Median and quartiles of some samples."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Iterable[float]) -> Spread:
        """The spread of at least one sample."""
        values = list(samples)
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Target:
    """A limit to keep, by the median."""

    limit: float
    kind: Literal["at most", "at least"] = "at most"
    of: Literal["ratio", "value"] = "ratio"

    def reached(self, measured: Spread) -> bool:
        """Whether the median keeps the limit."""
        if self.kind == "at most":
            return measured.median <= self.limit
        return measured.median >= self.limit


@dataclass(frozen=True)
class Figure:
    """One thing measured for several savers, side by side.

    Attributes:
        title: What is measured and in which colour; figures with one title make one table.
        case: Which case of it.
        unit: Of the samples.
        samples: By saver's name. Sample `i` of every saver was taken in the same round.
        peer: The saver that ratios refer to.
        overhead: Ratios are of what exceeds the sample of no saver, which is among the samples.
        target: What the project's saver should reach.
    """

    title: str
    case: str
    unit: str
    samples: Mapping[str, Sequence[float]]
    peer: str | None = None
    overhead: bool = False
    target: Target | None = None

    def value(self, saver: str) -> Spread:
        """What was measured for it."""
        return Spread.of(self.samples[saver])

    def ratio(self, saver: str) -> Spread | None:
        """Its samples over the peer's of the same round; `None` for the peer and for no saver.

        A round in which the peer cost nothing over no saver says nothing, and is left out.
        """
        if self.peer is None or self.peer not in self.samples or saver in (self.peer, NONE.name):
            return None
        count = len(self.samples[saver])
        floor = self.samples[NONE.name] if self.overhead else [0.0] * count
        ratios = [
            (own - base) / (peer - base)
            for own, peer, base in zip(
                self.samples[saver], self.samples[self.peer], floor, strict=True
            )
            if peer > base
        ]
        return Spread.of(ratios) if ratios else None

    def measured(self, saver: str) -> Spread | None:
        """What its target is held against; `None` where there is nothing to judge."""
        if self.target is None:
            return None
        return self.value(saver) if self.target.of == "value" else self.ratio(saver)

    def reached(self, saver: str) -> bool | None:
        """Whether it reached the target; `None` where there is nothing to judge."""
        measured = self.measured(saver)
        return self.target.reached(measured) if self.target and measured else None
