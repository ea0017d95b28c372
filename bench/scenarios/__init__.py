"""One module per scenario; each has `run(run)`, which yields figures as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bench.figures import Figure
from bench.run import Run
from bench.scenarios import chat, cold, concurrent, fanout, storage, unchanged

__all__ = ["SCENARIOS"]

SCENARIOS: dict[str, Callable[[Run], Iterator[Figure]]] = {
    "chat": chat.run,
    "fanout": fanout.run,
    "concurrent": concurrent.run,
    "storage": storage.run,
    "unchanged": unchanged.run,
    "cold": cold.run,
}
"""By the name that `--scenario` takes, in the order they are run."""
