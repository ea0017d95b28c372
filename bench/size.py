"""How much a saver stores, and sends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.plan import Colour
from bench.run import Run
from bench.savers import Entrant
from bench.session import Session, open_session

if TYPE_CHECKING:
    from langgraph.graph import StateGraph

__all__ = ["Size", "sizes_after"]


class Size(NamedTuple):
    """Bytes stored now, and bytes that went to the server so far; these are counted by its proxy only."""

    stored: int
    sent: int


def sizes_after(
    run: Run,
    entrant: Entrant,
    build: Callable[[Colour], StateGraph[Any, Any]],
    stages: Sequence[Callable[[Session], object]],
) -> list[Size]:
    """The sizes after each stage, all in one place.

    A saver that leaves files is closed after each stage and opened again for the next: what counts
    is the size at rest, write-ahead logs and all.
    """
    saver, colour = entrant
    sizes = []
    with run.place(saver) as place:
        if saver.remote or saver.stored is not None:
            with open_session(entrant, place.folder, build(colour)) as session:
                for stage in stages:
                    stage(session)
                    stored = saver.stored(session.saver) if saver.stored else place.stored()
                    sizes.append(Size(stored, place.sent()))
        else:
            for stage in stages:
                with open_session(entrant, place.folder, build(colour)) as session:
                    stage(session)
                sizes.append(Size(place.stored(), place.sent()))
    return sizes
