"""What a replica in front of a far database costs, and how far behind it leaves that database."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from bench.figures import Figure, Target
from bench.graphs import Chat, chat_graph
from bench.run import Run, timed
from bench.savers import Entrant, replica_store
from bench.scenarios import chat
from bench.session import Session, open_session
from charm_checkpoint import open_store

if TYPE_CHECKING:
    from charm_checkpoint.replica import ReplicaStore

__all__ = ["catch_up", "lag", "turn", "wake"]

CHECKING, TRUSTING, LOCAL = "charm-replica", "charm-replica-stale", "charm"


def turn(run: Run) -> Iterator[Figure]:
    """Milliseconds a turn: against the official saver on the far database, and against the file alone."""
    wakes = {
        entrant: statistics.median(_refreshes(run, entrant))
        for entrant in run.entrants()
        if entrant.saver.name == CHECKING
    }
    for (first, last), samples in chat.samples(run, "async").items():
        case = f"async, {first}–{last}"
        for name, target in ((CHECKING, Target(1 / 6)), (TRUSTING, Target(1 / 30))):
            yield Figure(
                title=f"Chat turn with a replica{run.plan.distance}",
                case=f"{case}, {name}",
                unit="ms",
                samples={e: s for e, s in samples.items() if e.saver.peer or e.saver.name == name},
                peers=run.peers,
                overhead=True,
                target=target,
            )
        without = {
            entrant: [sample - wakes.get(entrant, 0.0) for sample in taken]
            for entrant, taken in samples.items()
            if entrant.saver.name in ("none", LOCAL, CHECKING)
        }
        yield Figure(
            title="Chat turn with a replica, less one look at the far database",
            case=case,
            unit="ms",
            samples=without,
            peers=dict.fromkeys(run.colours, (LOCAL,)),
            overhead=True,
            target=Target(1.3),
        )


def wake(run: Run) -> Iterator[Figure]:
    """Round trips to learn that nothing changed, and to take over what did; a trip is what the plan says."""
    for case, changed, limit in (("nothing changed", False, 1.5), ("a turn elsewhere", True, 2.5)):
        samples = {
            entrant: [ms / (2e3 * _delay(run)) for ms in _refreshes(run, entrant, changed=changed)]
            for entrant in run.once_each()
            if entrant.saver.name == CHECKING
        }
        yield Figure(
            title=f"Wake{run.plan.distance}",
            case=case,
            unit="trips",
            samples=samples,
            target=Target(limit, of="value"),
        )


def lag(run: Run) -> Iterator[Figure]:
    """Round trips from the end of a turn, which is its last local commit, to the far database's answer to it."""
    samples: dict[Entrant, list[float]] = {}
    for entrant in run.once_each():
        if entrant.saver.name == CHECKING:
            with _opened(run, entrant) as (store, session):
                talk = Chat("chat")
                taken = []
                for _ in range(20):
                    talk.take_turns(session, 1)
                    taken.append(timed(lambda s=store: s.wait_synced("chat", 60)))
                samples[entrant] = [t / (2 * _delay(run)) for t in taken[2:]]
    yield Figure(
        title=f"Behind this device after a turn{run.plan.distance}",
        case="20 turns, one at a time",
        unit="trips",
        samples=samples,
        target=Target(2.0, of="value"),
    )


def catch_up(run: Run) -> Iterator[Figure]:
    """Milliseconds a turn to bring turns to the far database: after they were taken offline, and one by one."""
    turns, threads = run.plan.offline_turns, 50
    samples: dict[Entrant, list[float]] = {}
    for entrant in run.once_each():
        if entrant.saver.name == CHECKING:
            samples[entrant] = [1e3 * _backlog(run, entrant, turns, threads) / turns]
        elif entrant.saver.peer:
            with run.session(entrant, chat_graph) as session:
                Chat("warm-up").take_turns(session, 1)
                seconds = timed(lambda s=session: Chat("chat").take_turns(s, 10))
                samples[entrant] = [1e3 * seconds / 10]
    yield Figure(
        title=f"{turns:,} turns offline in {threads} threads, brought{run.plan.distance}",
        case="a turn",
        unit="ms",
        samples=samples,
        peers=run.peers,
        target=Target(0.1),
    )


def _backlog(run: Run, entrant: Entrant, turns: int, threads: int) -> float:
    with _opened(run, entrant) as (store, session):
        Chat("warm-up").take_turns(session, 1)
        assert store.flush(60)
        with _offline(store):
            for number in range(threads):
                Chat(f"chat {number}").take_turns(session, turns // threads)
        seconds = timed(lambda: store.flush(600))
        assert not store.sync_status().waiting.entries
        return seconds


@contextmanager
def _offline(store: ReplicaStore) -> Iterator[None]:
    from charm_checkpoint.errors import BackendUnavailable

    remote: Any = store.remote.get_langgraph_checkpointer().engine.backend
    calls = ("write", "read", "pull", "scan", "threads")

    def away(*_: object, **__: object) -> Any:
        raise BackendUnavailable("offline for the benchmark")

    for name in calls:
        setattr(remote, name, away)
    try:
        yield
    finally:
        for name in calls:
            delattr(remote, name)


def _refreshes(run: Run, entrant: Entrant, *, changed: bool = False) -> list[float]:
    """Milliseconds that each of some wakes took."""
    with _opened(run, entrant) as (store, session), TemporaryDirectory() as other:
        Chat("chat").take_turns(session, 3)
        assert store.flush(60)
        url = store.remote.config["url"]
        with open_store(url, replica=f"{other}/other.db") as second:
            taken = []
            for _ in range(12):
                if changed:
                    second.save_messages("chat", [{"role": "user", "content": "elsewhere"}])
                    assert second.flush(60)
                taken.append(1e3 * timed(lambda: store.refresh("chat", 60)))
        return taken[2:]


@contextmanager
def _opened(run: Run, entrant: Entrant) -> Iterator[tuple[ReplicaStore, Session]]:
    """A replica in a place of its own, and a chat's graph with its saver."""
    with (
        run.place(entrant.saver) as place,
        replica_store(place.folder) as store,
        open_session(entrant, place.folder, chat_graph(entrant.colour)) as session,
    ):
        yield store, session


def _delay(run: Run) -> float:
    assert run.plan.delay is not None
    return run.plan.delay
