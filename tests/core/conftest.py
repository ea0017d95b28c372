"""Where the tests of the core keep their threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from charm_checkpoint.sqlite import SqliteBackend
from tests.core.support import Gate


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is not there yet, in a folder of its own."""
    return tmp_path / "threads.db"


@pytest.fixture
def gate(path: Path) -> Iterator[Gate]:
    gate = Gate(SqliteBackend(path))
    yield gate
    gate.opened.set()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as pool:
        yield pool
