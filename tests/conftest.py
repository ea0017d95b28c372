"""What holds for every test: nothing of the user's own set-up, and a header that says what was tested with."""

from __future__ import annotations

import os
import sqlite3
from importlib import metadata

import pytest
from hypothesis import settings

# A busy machine is no failure: examples are counted, never timed.
settings.register_profile("charm-checkpoint", deadline=None)
settings.load_profile("charm-checkpoint")

# CHARM_TEST_* choose servers to test with; every other variable is the user's own agents'.
for _name in [n for n in os.environ if n.startswith("CHARM_") and not n.startswith("CHARM_TEST_")]:
    del os.environ[_name]
# Workers of pytest-xdist have it, and it would give pipes a width.
os.environ.pop("COLUMNS", None)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    # Signed tokens hold the time, and the names of tests have to be the same in every process.
    return argname if isinstance(val, str) and val.startswith("eyJ") else None


def pytest_report_header(config: pytest.Config) -> list[str]:
    names = ("langgraph", "langgraph-checkpoint", "langchain-core", "charmos")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return [f"with: {versions}", f"sqlite: {sqlite3.sqlite_version}"]
