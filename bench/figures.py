"""What was measured: samples per saver, and the ratios drawn from them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from bench.plan import Colour
from bench.savers import NONE, Entrant

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
    """One thing measured for several entrants, side by side.

    Attributes:
        title: What is measured; figures with one title make one table.
        case: Which case of it.
        unit: Of the samples.
        samples: Sample `i` of every entrant was taken in the same round.
        peers: The savers that ratios refer to, by the colour of the entrant that is compared. Where
            there are several, the ratio is to the one that did best.
        overhead: Ratios are of what exceeds the sample of no saver, which is among the samples.
        target: What savers that are no peers should reach.
    """

    title: str
    case: str
    unit: str
    samples: Mapping[Entrant, Sequence[float]]
    peers: Mapping[Colour, Sequence[str]] = field(default_factory=dict)
    overhead: bool = False
    target: Target | None = None

    def label(self, entrant: Entrant) -> str:
        """Its name in this figure; with its call, if the saver is here in both colours."""
        name = entrant.saver.name
        if sum(other.saver == entrant.saver for other in self.samples) == 1:
            return name
        return f"{name} {'invoke' if entrant.colour == 'sync' else 'ainvoke'}"

    def value(self, entrant: Entrant) -> Spread:
        """What was measured for it."""
        return Spread.of(self.samples[entrant])

    def peer(self, entrant: Entrant) -> Entrant | None:
        """The peer that its ratio refers to: the best by the median, and maybe itself."""
        names = self.peers.get(entrant.colour, ())
        peers = [other for other in self.samples if other.saver.name in names]
        if entrant.saver == NONE or not peers:
            return None
        best = max if self.target and self.target.kind == "at least" else min
        return best(peers, key=lambda peer: statistics.median(self._costs(peer)))

    def ratio(self, entrant: Entrant) -> Spread | None:
        """Its samples over its peer's of the same round; `None` if it has no peer, or is the peer.

        A round in which the peer cost nothing over no saver says nothing, and is left out.
        """
        peer = self.peer(entrant)
        if peer in (None, entrant):
            return None
        pairs = zip(self._costs(entrant), self._costs(peer), strict=True)
        ratios = [own / peers for own, peers in pairs if peers > 0]
        return Spread.of(ratios) if ratios else None

    def measured(self, entrant: Entrant) -> Spread | None:
        """What its target is held against; `None` where there is nothing to judge."""
        if self.target is None or entrant.saver.peer:
            return None
        return self.value(entrant) if self.target.of == "value" else self.ratio(entrant)

    def reached(self, entrant: Entrant) -> bool | None:
        """Whether it reached the target; `None` where there is nothing to judge."""
        measured = self.measured(entrant)
        return self.target.reached(measured) if self.target and measured else None

    def _costs(self, entrant: Entrant) -> Sequence[float]:
        samples = self.samples[entrant]
        if not self.overhead:
            return samples
        floor = self.samples[Entrant(NONE, entrant.colour)]
        return [sample - base for sample, base in zip(samples, floor, strict=True)]
