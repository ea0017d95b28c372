"""The kit as a plugin author meets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_PLUGIN_TESTS = """
import pytest
from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.testing import BackendContract, MessagesContract

class TestMyBackend(BackendContract):
    @pytest.fixture
    def backend(self):
        yield MemoryBackend()

class TestForgotten(BackendContract):
    pass

class TestForgottenStore(MessagesContract):
    pass
"""


def _python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_it_works_without_any_setting(tmp_path: Path) -> None:
    """In pytest-asyncio's strict mode, with its defaults; and it says what a subclass has forgotten."""
    (tmp_path / "test_plugin.py").write_text(_PLUGIN_TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    chosen = "test_tasks or test_setup_twice or test_closing_twice"
    ran = _python("-m", "pytest", "-k", chosen, "-p", "no:cacheprovider", cwd=tmp_path)
    assert "4 passed" in ran.stdout
    assert "5 errors" in ran.stdout
    assert "TestForgotten has to define a fixture `backend`" in ran.stdout
    assert "TestForgottenStore has to define a fixture `store`" in ran.stdout


def test_what_is_missing_is_named() -> None:
    ran = _python("-c", "import sys; sys.modules['pytest'] = None; import charm_checkpoint.testing")
    assert ran.returncode == 1
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: charm_checkpoint.testing needs pytest")
    assert 'pip install "charm-checkpoint[testing]"' in last


def test_the_package_itself_needs_none_of_it() -> None:
    program = (
        "import sys, charm_checkpoint, charm_checkpoint.store, charm_checkpoint.saver\n"
        "print([m for m in ('pytest', 'langgraph.graph', 'charm_checkpoint.testing') if m in sys.modules])"
    )
    ran = _python("-c", program)
    assert ran.stdout.strip() == "[]", ran.stderr
