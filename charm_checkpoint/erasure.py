"""Removes threads, or all of a subject's, in every place where a store keeps them, and looks whether they are gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from charm_checkpoint.backend import Backend, Compacted, Scan
from charm_checkpoint.codec import Codec, valid_id
from charm_checkpoint.config import mask
from charm_checkpoint.errors import (
    BackendError,
    BackendUnavailable,
    CheckpointStoreError,
    DeserializationError,
)
from charm_checkpoint.keeping import headers
from charm_checkpoint.rules import has_labels, is_label

if TYPE_CHECKING:
    from charm_checkpoint.store import CheckpointStore

__all__ = ["Erased", "Found", "Place", "Receipt", "Site", "Subject", "erase", "find"]

Label = str | int | bool

Subject = Mapping[str, "Label | tuple[Label, ...]"]
"""What all of a subject's threads have in their metadata, all at once; of several values in a tuple one."""

# How many checkpoints are looked at before that is told.
_STEP = 1000
# How many threads an error names.
_NAMED = 5


class Erased(NamedTuple):
    """One thread that was to be removed."""

    thread_id: str
    checkpoints: int
    """How many it had, in all namespaces."""
    known: bool
    """Whether there was anything of it, or had been before it was deleted. If not, its id may be misspelt."""
    error: str | None = None
    """Why it is not removed, or not known to be."""


class Place(NamedTuple):
    """One place where the threads were looked for afterwards."""

    name: str
    gone: bool
    """Whether nothing of them can be read there."""
    overwritten: bool | None
    """Whether its file holds no byte of them; `None` if that was not asked for, or is the database's own matter."""
    error: str | None = None
    """Why it is not done there, or not known to be."""

    @property
    def done(self) -> bool:
        """Whether nothing is left to do there."""
        return self.gone and self.overwritten is not False and self.error is None


class Receipt(NamedTuple):
    """What `delete` or `erase` did. Each thread's id stays in a tombstone: late writes do not bring the thread back."""

    at: float
    """Seconds since the epoch."""
    labels: Subject
    """What the threads were looked for by."""
    threads: tuple[Erased, ...]
    places: tuple[Place, ...]

    @property
    def found(self) -> bool:
        """Whether there were threads, and each that was named is known."""
        return bool(self.threads) and all(thread.known for thread in self.threads)

    @property
    def done(self) -> bool:
        """Whether what was meant was found, and nothing is left to do."""
        return (
            self.found
            and all(thread.error is None for thread in self.threads)
            and all(place.done for place in self.places)
        )


class Found(NamedTuple):
    """What was found of a subject."""

    threads: tuple[str, ...]
    errors: Mapping[str, CheckpointStoreError]
    """By the name of a place, why it may have more: it cannot be asked, or a checkpoint's metadata is damaged."""


class Site(NamedTuple):
    """A place where a store keeps threads."""

    name: str
    """Without secrets."""
    call: Callable[[Callable[[Backend], Any]], Any]
    """Calls a function with the backend there."""


def erase(
    store: CheckpointStore,
    threads: Sequence[str],
    labels: Subject,
    *,
    timeout: float,
    overwrite: bool = False,
    strict: bool = False,
    on_progress: Callable[[int, int], object] | None = None,
) -> Receipt:
    """Remove threads everywhere, and with `overwrite` their bytes: see `CheckpointStore.erase` and `delete`.

    With `strict` a thread that cannot be removed raises, else the receipt tells it.
    """
    at = time.time()
    names = dict.fromkeys(valid_id(name, "thread_id") for name in threads)
    if labels:
        # A place that could not tell all is asked once more in the end, and the receipt says what it answers.
        names.update(dict.fromkeys(find(store, labels).threads))
    erased: list[Erased] = []
    away: str | None = None
    for done, name in enumerate(names, 1):
        if away is None:
            each, away = _remove(store, name, strict)
        else:
            each = Erased(name, 0, False, away)  # each would wait as long
        erased.append(each)
        if on_progress is not None:
            on_progress(done, len(names))
    sites = store.sites()
    try:
        sent = store.wait_sent(names, timeout)
    except CheckpointStoreError as failed:
        places = [_look(site, names, labels, overwrite) for site in sites[:-1]]
        places.append(Place(sites[-1].name, False, None, str(mask(str(failed)))))
    else:
        places = [_look(site, names, labels, overwrite) for site in sites[: None if sent else -1]]
        if not sent:
            places.append(_unsent(sites[-1], names, labels, overwrite, timeout))
    return Receipt(at, labels, tuple(erased), tuple(places))


def find(
    store: CheckpointStore, labels: Subject, on_looked: Callable[[int], object] | None = None
) -> Found:
    """The threads of a subject, as far as they can be told: see `CheckpointStore.threads_of`.

    Raises:
        BackendError: There is no other place, and this one cannot be asked.
    """
    threads: dict[str, None] = {}
    errors: dict[str, CheckpointStoreError] = {}
    sites = store.sites()
    for site in sites:
        try:
            found, damaged = site.call(lambda backend: _having(backend, labels, on_looked))
        except BackendError as error:
            if len(sites) == 1:
                raise
            errors[site.name] = error
            continue
        threads.update(dict.fromkeys(found))
        if damaged:
            errors[site.name] = DeserializationError(_damaged(damaged))
    return Found(tuple(threads), errors)


def _having(
    backend: Backend, labels: Subject, on_looked: Callable[[int], object] | None = None
) -> tuple[list[str], list[str]]:
    """Threads of which any checkpoint has the labels, also one that has no head yet, or other metadata by now; and
    those of which that cannot be told."""
    found: dict[str, None] = {}
    damaged: dict[str, None] = {}
    for count, entry in enumerate(headers(backend, Scan()), 1):
        row = entry.snapshot.checkpoint
        assert row is not None
        if entry.thread_id not in found:
            try:
                if _matches(Codec.metadata(row), labels):
                    found[entry.thread_id] = None
            except (DeserializationError, AttributeError):  # no JSON, or no object
                damaged[entry.thread_id] = None
        if on_looked is not None and count % _STEP == 0:
            on_looked(count)
    return list(found), [name for name in damaged if name not in found]


def _damaged(threads: Sequence[str]) -> str:
    return (
        f"the metadata of a checkpoint of {_some(threads)} is damaged, so nobody can tell whose that is; if it is the "
        "subject's, erase it by the thread's id"
    )


def _some(threads: Sequence[str]) -> str:
    more = f" and {len(threads) - _NAMED:,} more" if len(threads) > _NAMED else ""
    return ", ".join(map(repr, threads[:_NAMED])) + more


def _matches(metadata: Mapping[str, Any], labels: Subject) -> bool:
    found = {name: metadata[name] for name in labels if is_label(metadata.get(name), name)}
    return all(
        any(
            has_labels(found, {name: value})
            for value in (asked if isinstance(asked, tuple) else (asked,))
        )
        for name, asked in labels.items()
    )


def _remove(store: CheckpointStore, thread_id: str, strict: bool) -> tuple[Erased, str | None]:
    """Remove a thread; tells also why nothing can be removed for the time being, if that is so."""
    engine = store.get_langgraph_checkpointer().engine
    query = Scan(thread_id=thread_id)
    count = 0
    try:
        count = engine.call(lambda backend: sum(1 for _ in headers(backend, query)))
        known = store._remove(thread_id) or count > 0
        if not known:
            left = engine.call(lambda backend: backend.read(thread_id, "", None)).deleted_through
            known = left is not None
    except CheckpointStoreError as failed:
        if strict:
            raise
        error = str(mask(str(failed)))
        away = error if isinstance(failed, BackendUnavailable) else None
        return Erased(thread_id, count, count > 0, error), away
    return Erased(thread_id, count, known), None


def _look(site: Site, threads: Collection[str], labels: Subject, overwrite: bool) -> Place:
    """With `overwrite` write a place's file anew without what was deleted; look whether anything of it is left."""
    try:
        overwritten = site.call(_overwrite) if overwrite and threads else None
        left, damaged = site.call(lambda backend: _left(backend, threads, labels))
    except CheckpointStoreError as failed:
        return Place(site.name, False, None, str(mask(str(failed))))
    error = None
    if left:
        error = f"there is something of {_some(left)}"
    elif damaged:
        error = _damaged(damaged)
    elif overwritten is False:
        error = (
            "another program reads the file, and keeps the old bytes in it; erase these threads again, by their ids, "
            "when that has ended"
        )
    return Place(site.name, not left, overwritten, error)


def _unsent(
    site: Site, threads: Collection[str], labels: Subject, overwrite: bool, timeout: float
) -> Place:
    """The place behind, which was not told within the time."""
    if not timeout:
        return Place(site.name, False, None, "it is not told yet; that is done in the background")
    place = _look(site, threads, labels, overwrite)
    if not place.done:
        return place
    waits = f"what was deleted is not sent yet, {timeout:g} s after; erase again, or send it"
    return place._replace(gone=False, error=waits)


def _overwrite(backend: Backend) -> bool | None:
    compact = getattr(backend, "compact", None)
    done: Compacted | None = compact and compact(pack=False)
    return done and done.complete


def _left(
    backend: Backend, threads: Collection[str], labels: Subject
) -> tuple[list[str], list[str]]:
    """Threads of which something is there; and those of which nobody can tell whether they are the subject's."""
    left = [
        thread_id
        for thread_id in threads
        if next(headers(backend, Scan(thread_id=thread_id)), None)
    ]
    found, damaged = _having(backend, labels) if labels else ([], [])
    return list(dict.fromkeys([*left, *found])), damaged
