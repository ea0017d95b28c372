from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from charm_checkpoint.cli import reports
from charm_checkpoint.sqlite import LocalMemory

Run = Callable[..., Any]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A store of the test's own with one thread, `talk`."""
    path = tmp_path / "own.db"
    with LocalMemory({"path": str(path)}) as store:
        store.save_messages("talk", [{"role": "user", "content": "hi"}])
    return path


def threads(path: Path) -> list[str]:
    with LocalMemory({"path": str(path)}) as store:
        return [info.thread_id for info in store.threads()]


def test_yes(call: Run, own: Path, conforms: Callable[[Any, Any], bool]) -> None:
    report = call("delete", "talk", "--yes", "--store", f"sqlite:///{own}", "--json").json
    assert conforms(report, reports.Deletion)
    assert report["deleted"]
    assert threads(own) == []
    again = call("delete", "talk", "--yes", "--store", f"sqlite:///{own}")
    assert again.code == 2
    assert "there is no thread 'talk'" in again.err


def test_nobody_to_ask(call: Run, own: Path) -> None:
    done = call("delete", "talk", "--store", f"sqlite:///{own}")
    assert (done.code, done.out) == (2, "")
    assert "--yes" in done.err
    assert threads(own) == ["talk"]


@pytest.mark.parametrize(("answer", "left"), [("y\n", []), ("\x04", ["talk"])])
def test_asked(terminal: Run, own: Path, answer: str, left: list[str]) -> None:
    done = terminal("delete", "talk", "--store", f"sqlite:///{own}", input=answer)
    assert "Delete thread talk" in done.out
    assert done.code == (1 if left else 0)
    assert threads(own) == left
