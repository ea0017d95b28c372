"""How much a saver stores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.plan import Colour
from bench.run import Run
from bench.savers import Saver
from bench.session import Session, open_session

if TYPE_CHECKING:
    from langgraph.graph import StateGraph

__all__ = ["stored_after"]


def stored_after(
    run: Run,
    saver: Saver,
    colour: Colour,
    build: Callable[[Colour], StateGraph[Any, Any]],
    stages: Sequence[Callable[[Session], object]],
) -> list[int]:
    """Bytes stored after each stage, on one folder.

    A saver that leaves files is closed after each stage and opened again for the next: what counts
    is the size at rest, write-ahead logs and all.
    """
    sizes = []
    with run.folder() as folder, ExitStack() as stack:
        if saver.stored is not None:
            session = stack.enter_context(open_session(saver, colour, folder, build(colour)))
            for stage in stages:
                stage(session)
                sizes.append(saver.stored(session.saver))
        else:
            for stage in stages:
                with open_session(saver, colour, folder, build(colour)) as session:
                    stage(session)
                sizes.append(_bytes_in_files(folder))
    return sizes


def _bytes_in_files(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
