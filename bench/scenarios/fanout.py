"""One superstep with many parallel tasks (`Send`), on a new thread each time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from bench.figures import Figure
from bench.graphs import LostStateError, fanout_graph
from bench.run import Run, take_turns
from bench.savers import NAMESAKE
from bench.session import Session, open_session

__all__ = ["run"]


def run(run: Run) -> Iterator[Figure]:
    """Milliseconds an invocation; ratios are of the overhead over no saver."""
    width = run.plan.width
    for colour in run.colours:
        savers = run.entrants(colour, baseline=True)
        samples: dict[str, list[float]] = {saver.name: [] for saver in savers}
        with ExitStack() as stack:
            sessions: dict[str, Session] = {}
            for saver in savers:
                folder = stack.enter_context(run.folder())
                sessions[saver.name] = stack.enter_context(
                    open_session(saver, colour, folder, fanout_graph(colour))
                )
                _invoke(sessions[saver.name], "warm-up", width)
            for number in range(run.plan.fanouts):
                work = {
                    name: partial(_invoke, session, f"thread-{number}", width)
                    for name, session in sessions.items()
                }
                for name, seconds in take_turns(work, first=number).items():
                    samples[name].append(1e3 * seconds)
        yield Figure(
            title=f"{width}-way Send",
            case="invoke" if colour == "sync" else "ainvoke",
            unit="ms",
            samples=samples,
            peer=NAMESAKE[colour],
            overhead=True,
        )


def _invoke(session: Session, thread_id: str, width: int) -> None:
    results = session.invoke({"width": width}, thread_id)["results"]
    if len(results) != width:
        raise LostStateError(f"{len(results)} results of {width} tasks")
