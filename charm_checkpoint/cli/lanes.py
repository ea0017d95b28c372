"""Draws a history with branches as lanes of text, as `git log --graph` does."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from typing import NamedTuple

__all__ = ["Line", "draw", "order"]


class Line(NamedTuple):
    """One line of the drawing."""

    lanes: str
    checkpoint_id: str | None
    """`None` where lanes only join."""


def order(parents: Mapping[str, str | None]) -> list[str]:
    """Sort ids so that children come before parents, greater ids first.

    Args:
        parents: Id to its parent's, which may be missing. A cycle, which no graph makes, is cut open.
    """
    children = dict.fromkeys(parents, 0)
    for parent in parents.values():
        if parent in children:
            children[parent] += 1
    left = sorted(parents)
    ready = [_Descending(id) for id in left if not children[id]]
    heapq.heapify(ready)
    done: dict[str, None] = {}
    while len(done) < len(parents):
        while not ready:
            if (candidate := left.pop()) not in done:
                ready.append(_Descending(candidate))
        id = heapq.heappop(ready)
        if id in done:
            continue
        done[id] = None
        parent = parents[id]
        if parent in children:
            children[parent] -= 1
            if not children[parent]:
                heapq.heappush(ready, _Descending(parent))
    return [str(id) for id in done]


class _Descending(str):
    """Sorts the greatest first."""

    __slots__ = ()

    def __lt__(self, other: str) -> bool:
        return str.__gt__(self, other)


def draw(parents: Mapping[str, str | None], *, cut: bool = False) -> Iterator[Line]:
    """Draw each checkpoint with the lanes that lead from it to its parent.

    Args:
        parents: Id to its parent's, which may be missing.
        cut: Whether a parent that is missing comes further down, and not only nowhere: its lane goes on to the end.
    """
    lanes: list[str | None] = []  # what each waits for, from left to right
    for id in order(parents):
        if id in lanes:
            here = lanes.index(id)
        else:
            here = lanes.index(None) if None in lanes else len(lanes)
            lanes[here : here + 1] = [id]
        yield Line(
            " ".join("●" if i == here else "│" if lane else " " for i, lane in enumerate(lanes)), id
        )
        parent = parents[id] if cut or parents[id] in parents else None
        lanes[here] = None
        if parent in lanes and parent is not None:
            there = lanes.index(parent)
            lanes[max(here, there)] = None
            lanes[min(here, there)] = parent
            yield Line(_join(lanes, *sorted((here, there))), None)
        else:
            lanes[here] = parent
        while lanes and lanes[-1] is None:
            lanes.pop()


def _join(lanes: list[str | None], left: int, right: int) -> str:
    drawn = ""
    for i, lane in enumerate(lanes):
        if i == left:
            drawn += "├─"
        elif i == right:
            drawn += "╯ "
        elif left < i < right:
            drawn += "┼─" if lane else "──"
        else:
            drawn += "│ " if lane else "  "
    return drawn.rstrip()
