"""One superstep with many parallel tasks (`Send`), on a new thread each time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from bench.figures import Figure, Target
from bench.graphs import LostStateError, fanout_graph
from bench.run import Run, take_turns
from bench.savers import Entrant
from bench.session import Session

__all__ = ["run"]


def run(run: Run, *, target: Target | None = None) -> Iterator[Figure]:
    """Milliseconds an invocation; ratios are of the overhead over no saver."""
    width = run.plan.width
    samples: dict[Entrant, list[float]] = {}
    with ExitStack() as stack:
        sessions: dict[Entrant, Session] = {}
        for entrant in run.entrants(baseline=True):
            samples[entrant] = []
            sessions[entrant] = stack.enter_context(run.session(entrant, fanout_graph))
            _invoke(sessions[entrant], "warm-up", width)
        for number in range(run.plan.fanouts):
            work = {
                entrant: partial(_invoke, session, f"thread-{number}", width)
                for entrant, session in sessions.items()
            }
            for entrant, seconds in take_turns(work, first=number).items():
                samples[entrant].append(1e3 * seconds)
    yield Figure(
        title=f"{width}-way Send{run.plan.distance}",
        case="an invocation",
        unit="ms",
        samples=samples,
        peers=run.peers,
        overhead=True,
        target=target,
    )


def _invoke(session: Session, thread_id: str, width: int) -> None:
    results = session.invoke({"width": width}, thread_id)["results"]
    if len(results) != width:
        raise LostStateError(f"{len(results)} results of {width} tasks")
