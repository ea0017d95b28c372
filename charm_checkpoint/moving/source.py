"""Where threads are read from: anything that can tell its threads and go through one from its beginning."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Union

from langgraph.checkpoint.base import BaseCheckpointSaver

from charm_checkpoint.backend import Entry, HeadRow, Scan, ThreadQuery
from charm_checkpoint.engine import Engine
from charm_checkpoint.errors import ConfigError

if TYPE_CHECKING:
    from charm_checkpoint.backend import Backend
    from charm_checkpoint.store import CheckpointStore

__all__ = [
    "BackendSource",
    "Key",
    "Listing",
    "Place",
    "Source",
    "Thread",
    "engine_of",
    "key_of",
    "paged",
    "size_of",
    "source_of",
]

_PAGE = 500
# Pages grow and shrink to about so many bytes of values: a long chat's late checkpoints hold a megabyte each.
_PAGE_BYTES = 8 * 1024 * 1024
_FIRST_PAGE, _MOST_VALUES = 8, 100

Key = tuple[str, str]
"""`(checkpoint_id, namespace)`; greater ones are listed first."""


class Thread(NamedTuple):
    """A thread as it is before its checkpoints are read."""

    thread_id: str
    created_at: float
    """Seconds since the epoch."""
    heads: tuple[HeadRow, ...]
    """At least one."""


class Source(Protocol):
    """What threads can be read from. Reading alters nothing."""

    @property
    def name(self) -> str:
        """Where the threads are, for people: no secrets in it."""

    def threads(self) -> Iterator[str]:
        """The ids of all threads."""

    def thread(self, thread_id: str) -> Thread | None:
        """One thread, `None` if it is not there."""

    def entries(self, thread_id: str) -> Iterator[Entry]:
        """All checkpoints with their values and writes, each behind its parent. Reads as the caller goes on."""


Place = Union["CheckpointStore", BaseCheckpointSaver[Any], "Backend", Source]
"""Where threads can be: a store, a saver, a backend; to read from, also a `Source`."""


def engine_of(place: Any) -> Engine:
    """What runs the backend of a store, of one of this project's savers, or of a backend itself.

    Raises:
        ConfigError: It is none of these.
    """
    getter = getattr(place, "get_langgraph_checkpointer", None)
    engine = getattr(getter() if getter else place, "engine", None)
    if isinstance(engine, Engine):
        return engine
    if callable(getattr(place, "write", None)) and callable(getattr(place, "scan", None)):
        return Engine(place)
    raise ConfigError(
        f"{type(place).__name__} keeps no checkpoints in a backend; threads can be copied to stores, savers and "
        "backends of this project"
    )


def source_of(place: Any) -> Source:
    """Make a source of a store, of any LangGraph saver, or of a backend; a source is one already.

    Raises:
        ConfigError: Nothing can be read from it.
    """
    if callable(getattr(place, "entries", None)):
        return place  # type: ignore[no-any-return]
    if callable(own := getattr(place, "source", None)):
        return own()  # type: ignore[no-any-return]
    if isinstance(place, BaseCheckpointSaver) and not hasattr(place, "engine"):
        from charm_checkpoint.moving.savers import from_saver

        return from_saver(place)
    return BackendSource(engine_of(place))


class _Stub(NamedTuple):
    """What is known of a checkpoint whose row was listed and let go."""

    parent_id: str | None
    root_id: str | None


class Listing:
    """The checkpoints of one thread in a backend: which there are, and their values in pages.

    Args:
        engine: Runs the backend.
        thread_id: The thread.
    """

    def __init__(self, engine: Engine, thread_id: str) -> None:
        self._engine = engine
        self._thread_id = thread_id
        self.heads: dict[str, HeadRow] = {}
        """By namespace. Empty if the thread is not there, or was not copied to its end."""
        self.stubs: dict[Key, _Stub] = {}
        query = ThreadQuery(1, thread_id=thread_id)
        for row in engine.call(lambda backend: backend.threads(query)):
            self.heads = {head.namespace: head for head in row.heads}
            self.created_at = row.created_at
        scan = Scan(thread_id=thread_id, values=False, limit=_PAGE)
        for entry in _pages(engine, scan):
            row_ = entry.snapshot.checkpoint
            assert row_ is not None
            self.stubs[key_of(entry)] = _Stub(row_.parent_id, row_.root_id)
        self._order = list(self.stubs)
        self._place = {key: place for place, key in enumerate(self._order)}

    def read(self, keys: Iterable[Key]) -> dict[Key, Entry]:
        """Read some of the checkpoints whole; those that lie side by side in one page. What is gone is left out."""
        found: dict[Key, Entry] = {}
        places = sorted(self._place[key] for key in keys if key in self._place)
        for run in _runs(places):
            wanted = set(self._order[run[0] : run[-1] + 1])
            last = self._order[run[-1]]
            first = self._order[run[0] - 1] if run[0] else None
            after = (first[0], self._thread_id, first[1]) if first else None
            while wanted:
                scan = Scan(thread_id=self._thread_id, after=after, limit=len(wanted))
                page = self._engine.call(lambda backend, scan=scan: backend.scan(scan))  # type: ignore[misc]
                for entry in page.entries:
                    key = key_of(entry)
                    if key in wanted:
                        wanted.discard(key)
                        found[key] = entry
                after = page.next
                if after is None or (after[0], after[2]) <= last:
                    break
        return found


class BackendSource:
    """Reads threads through a backend's verbs.

    Args:
        engine: Runs the backend.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def name(self) -> str:
        return self.engine.backend.name

    def threads(self) -> Iterator[str]:
        after = None
        while True:
            query = ThreadQuery(_PAGE, after)
            rows = self.engine.call(lambda backend, query=query: backend.threads(query))  # type: ignore[misc]
            yield from (row.thread_id for row in rows)
            if len(rows) < _PAGE:
                return
            after = (rows[-1].updated_at, rows[-1].thread_id)

    def thread(self, thread_id: str) -> Thread | None:
        query = ThreadQuery(1, thread_id=thread_id)
        for row in self.engine.call(lambda backend: backend.threads(query)):
            return Thread(row.thread_id, row.created_at, tuple(row.heads))
        return None

    def entries(self, thread_id: str) -> Iterator[Entry]:
        listing = Listing(self.engine, thread_id)
        return self.listed(listing, listing.stubs)

    def listed(self, listing: Listing, keys: Collection[Key]) -> Iterator[Entry]:
        """Some checkpoints of a listing, each behind its parent."""
        return paged([k for k in _parents_first(listing.stubs) if k in keys], listing.read)


def paged(
    keys: Sequence[Key], read: Callable[[Sequence[Key]], Mapping[Key, Entry]]
) -> Iterator[Entry]:
    """Read checkpoints in pages of about the same number of bytes, in the order of `keys`."""
    place, count = 0, _FIRST_PAGE
    while place < len(keys):
        chunk = keys[place : place + count]
        place += count
        found = read(chunk)
        yield from (found[key] for key in chunk if key in found)
        size = sum(map(size_of, found.values())) // len(chunk)
        count = min(_MOST_VALUES, 2 * count, max(1, _PAGE_BYTES // max(1, size)))


def key_of(entry: Entry) -> Key:
    """The key of a checkpoint."""
    assert entry.snapshot.checkpoint is not None
    return entry.snapshot.checkpoint.checkpoint_id, entry.namespace


def size_of(entry: Entry) -> int:
    """About how many bytes a checkpoint holds."""
    row = entry.snapshot.checkpoint
    assert row is not None
    values = sum(len(blob.data) for blob in entry.snapshot.blobs)
    return (
        len(row.body) + len(row.metadata) + values + sum(len(w.data) for w in entry.snapshot.writes)
    )


def _pages(engine: Engine, scan: Scan) -> Iterator[Entry]:
    while True:
        page = engine.call(lambda backend, scan=scan: backend.scan(scan))  # type: ignore[misc]
        yield from page.entries
        if page.next is None:
            return
        scan = scan._replace(after=page.next)


def _runs(places: Sequence[int]) -> Iterator[list[int]]:
    run: list[int] = []
    for place in places:
        if run and place != run[-1] + 1:
            yield run
            run = []
        run.append(place)
    if run:
        yield run


def _parents_first(stubs: dict[Key, _Stub]) -> Iterator[Key]:
    """Keys by ascending id, but none before its parent and the root graph's checkpoint it was made under.

    Ids carry the clocks of the devices that made them, so that a child's can be the smaller one.
    """
    done: set[Key] = set()
    for first in sorted(stubs):
        waiting = [first]
        while waiting:
            key = waiting[-1]
            stub = stubs[key]
            before = [(stub.parent_id, key[1]), (stub.root_id, "")]
            # A forged cycle of parents has to end, too.
            blocked = [k for k in before if k in stubs and k not in done and k not in waiting]
            if blocked and key not in done:
                waiting += blocked
                continue
            waiting.pop()
            if key not in done:
                done.add(key)
                yield key
