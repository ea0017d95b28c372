"""Where the tests of the core keep their threads."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is not there yet, in a folder of its own."""
    return tmp_path / "threads.db"
