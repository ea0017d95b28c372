"""Which savers take part: a name, and a factory that opens one in a fresh folder."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Union

from bench.plan import COLOURS, Colour

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver

    from bench.servers import Kind

__all__ = [
    "NONE",
    "Entrant",
    "Factory",
    "Saver",
    "register",
    "replica_store",
    "resolve",
    "saver_names",
]

Opened = Union[
    "AbstractContextManager[BaseCheckpointSaver[Any] | None]",
    "AbstractAsyncContextManager[BaseCheckpointSaver[Any] | None]",
]
Factory = Callable[[Path], Opened]


@dataclass(frozen=True)
class Saver:
    """One entrant.

    Attributes:
        name: Its name in options and tables.
        open: Takes a folder, returns a context manager (either kind) that yields the saver. Given a
            folder that was used before, it opens what is there.
        colours: `"sync"` if `invoke` can use it, `"async"` if `ainvoke` can.
        persistent: Another process, given the folder, can read what was written.
        remote: The kind of database it wants, whose URL it finds in the file `url` of the folder.
        stored: Bytes the open saver holds. Without it, the files left in the folder after closing
            are counted, and what the database takes.
        peer: A saver to compare with; targets are not judged for it.
    """

    name: str
    open: Factory
    colours: tuple[Colour, ...] = COLOURS
    persistent: bool = True
    remote: Kind | None = None
    stored: Callable[[Any], int] | None = None
    peer: bool = False


class Entrant(NamedTuple):
    """A saver driven in one colour: by `invoke` or by `ainvoke`."""

    saver: Saver
    colour: Colour


NONE = Saver("none", lambda folder: nullcontext(), persistent=False, peer=True)
"""No saver at all: what overhead is counted over."""

_registry: dict[str, Saver] = {}


def register(
    name: str,
    *,
    colours: tuple[Colour, ...] = COLOURS,
    persistent: bool = True,
    remote: Kind | None = None,
    stored: Callable[[Any], int] | None = None,
    peer: bool = False,
) -> Callable[[Factory], Saver]:
    """Register the decorated factory under a name; the options are those of `Saver`."""

    def decorate(factory: Factory) -> Saver:
        saver = Saver(name, factory, colours, persistent, remote, stored, peer)
        _registry[name] = saver
        return saver

    return decorate


def saver_names() -> list[str]:
    """The registered names."""
    return list(_registry)


def resolve(name: str) -> Saver:
    """The saver of that registered name, or of `module:attribute`: a registered or a bare factory.

    A bare factory takes part in both colours, or in `ainvoke` only if its context manager is an
    asynchronous one.

    Raises:
        LookupError: No such name.
    """
    if name in _registry:
        return _registry[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        known = ", ".join(_registry)
        raise LookupError(f"no saver {name!r}: use module:factory, or one of {known}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise LookupError(f"no saver {name!r}: {error}") from error
    if isinstance(found, Saver):
        # Under this name a process that has not imported the module finds it, too.
        return replace(found, name=name)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        either = isinstance(found(Path(folder)), AbstractContextManager)
    return Saver(name, found, COLOURS if either else ("async",))


def _bytes_in(value: object) -> int:
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_bytes_in, value.values()))
    if isinstance(value, (tuple, list)):
        return sum(map(_bytes_in, value))
    return 0


def _held_in_memory(saver: Any) -> int:
    return _bytes_in([saver.storage, saver.writes, saver.blobs])


@register("InMemorySaver", persistent=False, stored=_held_in_memory, peer=True)
@contextmanager
def in_memory(folder: Path) -> Iterator[BaseCheckpointSaver[Any]]:
    """The floor: it stores nothing, but serializes all the same."""
    from langgraph.checkpoint.memory import InMemorySaver

    yield InMemorySaver()


@register("SqliteSaver", colours=("sync",), peer=True)
@contextmanager
def sqlite(folder: Path) -> Iterator[BaseCheckpointSaver[Any]]:
    """The namesake for `invoke`."""
    from langgraph.checkpoint.sqlite import SqliteSaver

    with SqliteSaver.from_conn_string(str(folder / "bench.db")) as saver:
        yield saver


@register("AsyncSqliteSaver", colours=("async",), peer=True)
@asynccontextmanager
async def async_sqlite(folder: Path) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    """The namesake for `ainvoke`."""
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    async with AsyncSqliteSaver.from_conn_string(str(folder / "bench.db")) as saver:
        yield saver


@register("charm")
@contextmanager
def charm(folder: Path) -> Iterator[BaseCheckpointSaver[Any] | None]:
    """This project on its SQLite backend, with default settings."""
    from charm_checkpoint import open_store

    with open_store(f"sqlite:///{folder}/bench.db") as store:
        yield store.get_langgraph_checkpointer()


@register("PostgresSaver", colours=("sync",), remote="postgres", peer=True)
@contextmanager
def postgres(folder: Path) -> Iterator[BaseCheckpointSaver[Any]]:
    """The namesake for `invoke`, with a pool as its documentation has it."""
    from langgraph.checkpoint.postgres import PostgresSaver
    from psycopg_pool import ConnectionPool

    with ConnectionPool(_url(folder), max_size=20, kwargs=_pooled(), open=True) as pool:
        saver = PostgresSaver(pool)
        if _is_new(folder):
            saver.setup()
        yield saver


@register("AsyncPostgresSaver", colours=("async",), remote="postgres", peer=True)
@asynccontextmanager
async def async_postgres(folder: Path) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    """The namesake for `ainvoke`."""
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
    from psycopg_pool import AsyncConnectionPool

    async with AsyncConnectionPool(_url(folder), max_size=20, kwargs=_pooled(), open=False) as pool:
        saver = AsyncPostgresSaver(pool)
        if _is_new(folder):
            await saver.setup()
        yield saver


@register("charm-postgres", remote="postgres")
@contextmanager
def charm_postgres(folder: Path) -> Iterator[BaseCheckpointSaver[Any] | None]:
    """This project on its Postgres backend, with default settings."""
    from charm_checkpoint import open_store

    with open_store(_url(folder)) as store:
        yield store.get_langgraph_checkpointer()


@register("charm-replica", remote="postgres")
@contextmanager
def charm_replica(folder: Path) -> Iterator[BaseCheckpointSaver[Any] | None]:
    """A file in front of this project's Postgres backend, with default settings."""
    with replica_store(folder) as store:
        yield store.get_langgraph_checkpointer()


@register("charm-replica-stale", remote="postgres")
@contextmanager
def charm_replica_stale(folder: Path) -> Iterator[BaseCheckpointSaver[Any] | None]:
    """The same, where nobody else writes: it need not look at the database for an hour."""
    with replica_store(folder, max_staleness=3600) as store:
        yield store.get_langgraph_checkpointer()


@register("RedisSaver", colours=("sync",), remote="redis", peer=True)
@contextmanager
def redis(folder: Path) -> Iterator[BaseCheckpointSaver[Any]]:
    """The namesake for `invoke`; it needs modules."""
    from langgraph.checkpoint.redis import RedisSaver

    with RedisSaver.from_conn_string(_url(folder)) as saver:
        saver.setup()
        yield saver


@register("AsyncRedisSaver", colours=("async",), remote="redis", peer=True)
@asynccontextmanager
async def async_redis(folder: Path) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    """The namesake for `ainvoke`; it needs modules."""
    from langgraph.checkpoint.redis.aio import AsyncRedisSaver

    async with AsyncRedisSaver.from_conn_string(_url(folder)) as saver:
        yield saver


@register("PlainRedisSaver", colours=("sync",), remote="redis", peer=True)
@contextmanager
def plain_redis(folder: Path) -> Iterator[BaseCheckpointSaver[Any]]:
    """The `RedisSaver` of langgraph-checkpoint-plainredis."""
    from langgraph_checkpoint_plainredis import RedisSaver

    saver = RedisSaver(url=_url(folder))
    yield saver
    saver.client.close()


@register("AsyncPlainRedisSaver", colours=("async",), remote="redis", peer=True)
@asynccontextmanager
async def async_plain_redis(folder: Path) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    """The `AsyncRedisSaver` of langgraph-checkpoint-plainredis."""
    from langgraph_checkpoint_plainredis import AsyncRedisSaver

    saver = AsyncRedisSaver(url=_url(folder))
    yield saver
    await saver.client.aclose()


@register("charm-redis", remote="redis")
@contextmanager
def charm_redis(folder: Path) -> Iterator[BaseCheckpointSaver[Any] | None]:
    """This project on its Redis backend, with default settings."""
    from charm_checkpoint import open_store

    with open_store(_url(folder)) as store:
        yield store.get_langgraph_checkpointer()


def replica_store(folder: Path, **options: Any) -> Any:
    """The replica whose file is in the folder; one and the same while it is open."""
    from charm_checkpoint import open_store

    return open_store(_url(folder), replica=str(folder / "bench.db"), wake_timeout=60, **options)


def _url(folder: Path) -> str:
    return (folder / "url").read_text()


def _pooled() -> dict[str, Any]:
    from psycopg.rows import dict_row

    return {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}


def _is_new(folder: Path) -> bool:
    """Whether this is the first to ask: the official savers have to be told once to make their tables."""
    mark = folder / "opened"
    if mark.exists():
        return False
    mark.touch()
    return True
