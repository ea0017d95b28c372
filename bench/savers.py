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
from typing import TYPE_CHECKING, Any, Union

from bench.plan import COLOURS, Colour

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver

__all__ = ["DEFAULT", "NAMESAKE", "NONE", "Factory", "Saver", "register", "resolve", "saver_names"]

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
        stored: Bytes the open saver holds. Without it, the files left in the folder after closing
            are counted.
        peer: A saver to compare with; targets are not judged for it.
    """

    name: str
    open: Factory
    colours: tuple[Colour, ...] = COLOURS
    persistent: bool = True
    stored: Callable[[Any], int] | None = None
    peer: bool = False


NONE = Saver("none", lambda folder: nullcontext(), persistent=False, peer=True)
"""No saver at all: what overhead is counted over."""

NAMESAKE: dict[Colour, str] = {"sync": "SqliteSaver", "async": "AsyncSqliteSaver"}
"""The peer that ratios refer to, for `invoke` and for `ainvoke`."""

DEFAULT = ("InMemorySaver", "charm")
"""Measured when no saver is named; the namesakes always are."""

_registry: dict[str, Saver] = {}


def register(
    name: str,
    *,
    colours: tuple[Colour, ...] = COLOURS,
    persistent: bool = True,
    stored: Callable[[Any], int] | None = None,
    peer: bool = False,
) -> Callable[[Factory], Saver]:
    """Register the decorated factory under a name; the options are those of `Saver`."""

    def decorate(factory: Factory) -> Saver:
        saver = Saver(name, factory, colours, persistent, stored, peer)
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
