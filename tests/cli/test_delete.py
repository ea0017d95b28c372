from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from charm_checkpoint.cli import reports
from charm_checkpoint.manager import open_store
from charm_checkpoint.moving import copy_threads
from charm_checkpoint.moving.copying import Copier
from charm_checkpoint.sqlite import LocalMemory, SqliteBackend
from tests.cli.test_erase import cut

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
    assert conforms(report, reports.Erasure)
    assert report["done"]
    assert report["threads"] == [
        {"thread_id": "talk", "checkpoints": 1, "known": True, "error": None}
    ]
    assert [(p["gone"], p["overwritten"]) for p in report["places"]] == [(True, None)]
    assert threads(own) == []
    again = call("delete", "talk", "--yes", "--store", f"sqlite:///{own}")
    assert (again.code, again.err) == (0, "")
    assert "talk: nothing was there any more" in again.out


def test_nothing_is_found(call: Run, own: Path) -> None:
    done = call("delete", "nobody", "--yes", "--store", f"sqlite:///{own}")
    assert (done.code, done.err) == (1, "")
    assert "Nothing is deleted, " in done.out
    assert "nobody: there never was such a thread" in done.out
    assert "Gone from" not in done.out
    nowhere = call("delete", "talk", "--yes", "--store", f"sqlite:///{own}x")
    assert (nowhere.code, nowhere.out) == (2, "")
    assert "does not exist" in nowhere.err


def test_what_charmos_left(terminal: Run, own: Path) -> None:
    left = own.with_name("old.json")
    left.write_text('[{"role": "user", "content": "hi"}]')
    done = terminal("delete", "old", "--store", f"sqlite:///{own}", input="y\n")
    assert "Delete thread old (which no listing shows)" in done.out
    assert (done.code, left.exists()) == (0, False)


def test_what_a_copy_that_broke_off_left(
    call: Run, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dies(Exception):
        pass

    def die(*_: object) -> Any:
        raise Dies

    half = tmp_path / "half.db"
    monkeypatch.setattr(Copier, "_set_heads", die)
    with (
        LocalMemory({"path": str(own)}) as source,
        LocalMemory({"path": str(half)}) as target,
        pytest.raises(Dies),
    ):
        copy_threads(source, target)
    report = call("delete", "talk", "--yes", "--store", f"sqlite:///{half}", "--json").json
    assert [t["checkpoints"] for t in report["threads"]] == [1]


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


def test_the_receipt(call: Run, own: Path) -> None:
    done = call("delete", "talk", "--yes", "--store", f"sqlite:///{own}")
    assert (done.code, done.err) == (0, "")
    assert "Deleted 1 thread with 1 checkpoint" in done.out
    assert f"Gone from sqlite:{own}." in done.out


def test_it_looks(call: Run, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that only says that it deleted something."""
    monkeypatch.setattr(SqliteBackend, "delete", lambda *_, **__: True)
    done = call("delete", "talk", "--yes", "--store", f"sqlite:///{own}")
    assert (done.code, done.err) == (1, "")
    assert "there is something of 'talk'" in done.out
    assert "It is not done yet." in done.out


def test_a_replica(call: Run, own: Path, tmp_path: Path) -> None:
    """Also what nothing on this device has seen."""
    options = ("--store", f"sqlite:///{own}", "--replica", str(tmp_path / "device.db"))
    with open_store(options[1], replica=options[3]) as store:
        store.save_messages("other", [{"role": "user", "content": "hi"}])
    report = call("delete", "talk", "--yes", *options, "--json").json
    assert report["done"]
    assert [place["gone"] for place in report["places"]] == [True, True]
    assert threads(own) == ["other"]


def test_a_deletion_that_is_not_sent(
    call: Run, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--store", f"sqlite:///{own}", "--replica", str(tmp_path / "device.db"))
    with open_store(options[1], replica=options[3]) as store:
        assert store.load_messages("talk")
    cut(monkeypatch, own)
    done = call("delete", "talk", "--yes", *options, "--timeout", "0.1")
    assert done.code == 1
    assert f"Not done in sqlite:{own}: the line is cut." in done.out
    again = call("delete", "talk", "--yes", *options, "--timeout", "0.1")
    assert (again.code, again.err) == (1, "")
    assert f"Not done in sqlite:{own}: the line is cut." in again.out
    monkeypatch.undo()
    assert threads(own) == ["talk"]
    assert call("delete", "talk", "--yes", *options).code == 0
    assert threads(own) == []
