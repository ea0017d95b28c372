"""Removes all of a subject's threads, in every place that a store keeps them in, and looks whether they are gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from charm_checkpoint.backend import Backend, Labels, Scan, ThreadQuery
from charm_checkpoint.codec import valid_id
from charm_checkpoint.config import mask
from charm_checkpoint.errors import BackendError
from charm_checkpoint.retention import headers

if TYPE_CHECKING:
    from charm_checkpoint.store import CheckpointStore

__all__ = ["Erased", "Place", "Receipt", "Site", "erase"]


class Erased(NamedTuple):
    """One thread that was removed."""

    thread_id: str
    checkpoints: int
    """How many it had, in all namespaces."""


class Place(NamedTuple):
    """One place where the threads were looked for afterwards."""

    name: str
    gone: bool
    """Whether nothing of them can be read there."""
    overwritten: bool | None
    """Whether its file holds no byte of them; `None` where that is the database's own matter."""
    error: str | None = None
    """Why it is not done there, or not known to be."""

    @property
    def done(self) -> bool:
        """Whether nothing is left to do there."""
        return self.gone and self.overwritten is not False and self.error is None


class Receipt(NamedTuple):
    """What `erase` did. Each thread's id stays in a tombstone, so that late writes do not bring the thread back."""

    at: float
    """Seconds since the epoch."""
    labels: Labels
    """What the threads were looked for by."""
    threads: tuple[Erased, ...]
    places: tuple[Place, ...]

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return all(place.done for place in self.places)


class Site(NamedTuple):
    """A place where a store keeps threads."""

    name: str
    """Without secrets."""
    call: Callable[[Callable[[Backend], Any]], Any]
    """Calls a function with the backend there."""


def erase(
    store: CheckpointStore,
    threads: Sequence[str],
    labels: Labels,
    timeout: float,
    on_progress: Callable[[int, int], object] | None,
) -> Receipt:
    """Remove threads everywhere: see `CheckpointStore.erase`."""
    at, engine = time.time(), store.get_langgraph_checkpointer().engine
    names = dict.fromkeys(valid_id(name, "thread_id") for name in threads)
    if labels:
        names.update(dict.fromkeys(info.thread_id for info in store.threads(labels=labels)))
    erased = []
    for done, name in enumerate(names, 1):
        query = Scan(thread_id=name)
        count = engine.call(lambda backend, query=query: sum(1 for _ in headers(backend, query)))  # type: ignore[misc]
        store.delete(name)
        erased.append(Erased(name, count))
        if on_progress is not None:
            on_progress(done, len(names))
    sent = store.wait_sent(names, timeout)
    places = [_look(site, names, labels) for site in store.sites()]
    if not sent and all(place.done for place in places):
        waits = f"what was deleted is not sent yet, {timeout:g} s after; erase again, or send it"
        places[-1] = places[-1]._replace(gone=False, error=waits)
    return Receipt(at, labels, tuple(erased), tuple(places))


def _look(site: Site, threads: Collection[str], labels: Labels) -> Place:
    """Write a place's file anew without what was deleted, and look whether anything of the threads is left."""
    try:
        overwritten = site.call(_overwrite)
        left = site.call(lambda backend: _left(backend, threads, labels))
    except BackendError as failed:
        return Place(site.name, False, None, str(mask(str(failed))))
    error = None
    if left:
        error = f"there is something of {', '.join(map(repr, left[:5]))}"
    elif overwritten is False:
        error = "another program reads the file, and keeps the old bytes in it; erase again when that has ended"
    return Place(site.name, not left, overwritten, error)


def _overwrite(backend: Backend) -> bool | None:
    compact = getattr(backend, "compact", None)
    return None if compact is None else bool(compact(pack=False).complete)


def _left(backend: Backend, threads: Collection[str], labels: Labels) -> list[str]:
    found = [
        thread_id
        for thread_id in threads
        if backend.scan(Scan(thread_id=thread_id, limit=1, values=False)).entries
    ]
    if labels:
        found += [row.thread_id for row in backend.threads(ThreadQuery(5, labels=labels))]
    return list(dict.fromkeys(found))
