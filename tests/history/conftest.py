"""The savers, one after the other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.history.faces import (
    ASYNC,
    OWN,
    SYNC,
    Saver,
)


@pytest.fixture(params=SYNC, ids=lambda f: f.__name__)
def saver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Saver]:
    with request.param(tmp_path) as saver:
        yield saver


@pytest.fixture(params=OWN, ids=lambda f: f.__name__)
def fencing_saver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Saver]:
    with request.param(tmp_path) as saver:
        yield saver


@pytest.fixture(params=ASYNC, ids=lambda f: f.__name__)
async def async_saver(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Saver]:
    context = request.param(tmp_path)
    if hasattr(context, "__aenter__"):
        async with context as saver:
            yield saver
    else:
        with context as saver:
            yield saver
