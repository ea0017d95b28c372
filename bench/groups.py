"""What is measured beside what: groups of savers, the scenarios they run, and the targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from bench.figures import Figure, Target
from bench.plan import DURABILITIES, Colour
from bench.run import Run
from bench.savers import Saver, resolve
from bench.scenarios import chat, cold, concurrent, fanout, replica, sent, storage, unchanged

__all__ = ["GROUPS", "Group"]

Scenario = Callable[[Run], Iterator[Figure]]


@dataclass(frozen=True)
class Group:
    """One comparison.

    Attributes:
        savers: Measured when none is named.
        peers: Always measured: the savers that ratios refer to, by the colour of the saver that is
            compared. Where there are several, the better one counts.
        scenarios: By the name that `--scenario` takes, in the order they are run.
    """

    savers: Sequence[str]
    peers: Mapping[Colour, Sequence[str]]
    scenarios: Mapping[str, Scenario]

    def entrants(self, names: Sequence[str], colours: Sequence[Colour]) -> list[Saver]:
        """The savers of those names, and the peers of the colours before them.

        Raises:
            LookupError: No such name.
        """
        peers = [name for colour in colours for name in self.peers[colour]]
        return sorted(
            map(resolve, dict.fromkeys([*peers, *names])), key=lambda saver: not saver.peer
        )


def _far(scenario: Callable[..., Iterator[Figure]], **options: Any) -> Scenario:
    """The scenario with the server far away, in the sizes for that."""

    def run(run: Run) -> Iterator[Figure]:
        assert run.plan.far is not None
        return scenario(replace(run, plan=run.plan.far), **options)

    return run


def _counted(
    scenario: Callable[..., Iterator[Figure]], delay: float = 0.0, **options: Any
) -> Scenario:
    """The scenario through a proxy that counts."""
    return lambda run: scenario(replace(run, plan=replace(run.plan, delay=delay)), **options)


_OFFICIAL = ("PostgresSaver", "AsyncPostgresSaver")
_ON_REDIS = ("RedisSaver", "AsyncRedisSaver", "PlainRedisSaver", "AsyncPlainRedisSaver")

GROUPS: dict[str, Group] = {
    "sqlite": Group(
        savers=("InMemorySaver", "charm"),
        peers={"sync": ("SqliteSaver",), "async": ("AsyncSqliteSaver",)},
        scenarios={
            "chat": partial(chat.run, targets=dict.fromkeys(DURABILITIES, Target(0.75))),
            "fanout": fanout.run,
            "concurrent": partial(concurrent.run, target=Target(1.5, "at least")),
            "storage": storage.run,
            "unchanged": partial(unchanged.run, target=Target(4.0, of="value")),
            "cold": partial(cold.run, target=Target(1.0)),
        },
    ),
    "postgres": Group(
        savers=("InMemorySaver", "charm-postgres"),
        peers={"sync": _OFFICIAL, "async": _OFFICIAL},
        scenarios={
            "chat": partial(chat.run, targets=dict.fromkeys(DURABILITIES, Target(0.5))),
            "far-chat": _far(chat.run, targets={"async": Target(0.65)}),
            "fanout": fanout.run,
            "far-fanout": _far(fanout.run, target=Target(0.2)),
            "concurrent": partial(concurrent.run, target=Target(1.8, "at least")),
            "far-concurrent": _far(concurrent.run, target=Target(8.0, "at least")),
            # Far enough that bytes are worth saving.
            "sent": _counted(sent.run, 0.0025, target=Target(5.0, of="value")),
            "unchanged": _counted(unchanged.run, target=Target(4.0, of="value")),
            "cold": partial(cold.run, target=Target(0.8), thoughts=17),
        },
    ),
    "redis": Group(
        savers=("InMemorySaver", "charm-redis"),
        peers={"sync": _ON_REDIS, "async": _ON_REDIS},
        scenarios={
            "chat": partial(
                chat.run, targets=dict.fromkeys(DURABILITIES, Target(0.6)), late=Target(0.75)
            ),
            # Five, and a turn's own time.
            "far-trips": _far(chat.trips, target=Target(5.5, of="value")),
            "far-fanout": _far(fanout.run, target=Target(0.6)),
            "storage": partial(storage.run, target=Target(0.25)),
            "sent": _counted(sent.run),
        },
    ),
    "replica": Group(
        savers=("charm", "charm-replica", "charm-replica-stale"),
        peers={"sync": ("PostgresSaver",), "async": ("AsyncPostgresSaver",)},
        scenarios={
            "turn": _far(replica.turn),
            "wake": _far(replica.wake),
            "lag": _far(replica.lag),
            "catch-up": _far(replica.catch_up),
        },
    ),
}
"""By the name that `--group` takes; the first is the default."""
