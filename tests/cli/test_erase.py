from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from charm_checkpoint.cli import erase as command
from charm_checkpoint.cli import reports
from charm_checkpoint.errors import BackendFull, BackendUnavailable
from charm_checkpoint.manager import open_store
from charm_checkpoint.sqlite import LocalMemory, SqliteBackend
from charm_checkpoint.store import CheckpointStore

Run = Callable[..., Any]


def fill(store: Any, *threads: str, user: str | int | None = None) -> None:
    assert isinstance(store, CheckpointStore)
    saver = store.get_langgraph_checkpointer()
    for name in threads:
        store.save_messages(name, [{"role": "user", "content": f"{name} said a secret"}])
        found = saver.get_tuple({"configurable": {"thread_id": name}})
        assert found is not None
        metadata: Any = {
            "user": name.split("-")[0] if user is None else user,
            "source": "update",
        }
        checkpoint: Any = {**found.checkpoint, "id": found.checkpoint["id"][:-4] + "ffff"}
        saver.put(found.config, checkpoint, metadata, {})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a store with two threads of Ann's and one of Bob's."""
    with LocalMemory({"path": str(tmp_path / "own.db")}) as store:
        fill(store, "ann-1", "ann-2", "bob-1")
    return tmp_path / "own.db"


def threads(path: Path) -> set[str]:
    with LocalMemory({"path": str(path)}) as store:
        return {info.thread_id for info in store.threads()}


def test_a_subject(call: Run, path: Path, conforms: Callable[[Any, Any], bool]) -> None:
    report = call(
        "erase", "--label", "user=ann", "--yes", "--store", f"sqlite:///{path}", "--json"
    ).json
    assert conforms(report, reports.Erasure)
    assert (report["confirmed"], report["found"], report["done"]) == (True, True, True)
    assert report["labels"] == {"user": "ann"}
    assert {t["thread_id"]: t["checkpoints"] for t in report["threads"]} == {"ann-1": 2, "ann-2": 2}
    assert [(p["gone"], p["overwritten"]) for p in report["places"]] == [(True, True)]
    assert threads(path) == {"bob-1"}
    assert b"ann-1 said" not in path.read_bytes()


def test_the_receipt(call: Run, path: Path) -> None:
    done = call("erase", "ann-1", "--yes", "--store", f"sqlite:///{path}")
    assert (done.code, done.err) == (0, "")
    assert "Deleted 1 thread with 2 checkpoints" in done.out
    assert "no byte of it is left in the file" in done.out
    assert threads(path) == {"ann-2", "bob-1"}
    again = call("erase", "ann-1", "--yes", "--store", f"sqlite:///{path}")
    assert again.code == 0
    assert "ann-1: nothing was there any more" in again.out


def test_only_a_misspelt_id(call: Run, path: Path) -> None:
    done = call("erase", "nobody", "--yes", "--store", f"sqlite:///{path}")
    assert (done.code, done.err) == (1, "")
    assert done.out.startswith("Nothing is deleted, ")
    assert "Gone from" not in done.out
    assert "Not everything that was named was found." in done.out


def test_some_cannot_be_deleted(call: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = SqliteBackend.delete

    def full(self: SqliteBackend, thread_id: str, *, at: float) -> bool:
        if thread_id == "ann-1":
            raise BackendFull("no room")
        return real(self, thread_id, at=at)

    monkeypatch.setattr(SqliteBackend, "delete", full)
    store = ("--yes", "--store", f"sqlite:///{path}")
    done = call("erase", "--label", "user=ann", *store)
    assert (done.code, done.err) == (1, "")
    assert "Deleted 1 thread with 2 checkpoints" in done.out
    assert "ann-1: no room" in done.out
    assert "It is not done yet." in done.out
    assert threads(path) == {"ann-1", "bob-1"}
    alone = call("erase", "ann-1", *store)
    assert alone.out.startswith("Not all is deleted, ")
    monkeypatch.undo()
    assert call("erase", "--label", "user=ann", *store).code == 0


def test_a_misspelt_id(call: Run, path: Path) -> None:
    store = f"sqlite:///{path}"
    done = call("erase", "ann-1", "nobody", "--yes", "--store", store)
    assert (done.code, done.err) == (1, "")
    assert "nobody: there never was such a thread" in done.out
    assert "Not everything that was named was found." in done.out
    assert threads(path) == {"ann-2", "bob-1"}


@pytest.mark.parametrize(
    ("label", "gone"),
    [
        ("user=17", {"number", "text"}),
        ('user="17"', {"text"}),
        ("user=true", {"truth", "true"}),
        ("user=0017", set()),
        ("user=99999999999999999999", {"long"}),
    ],
)
def test_texts_that_look_like_numbers(
    call: Run, tmp_path: Path, label: str, gone: set[str]
) -> None:
    values = {"number": 17, "text": "17", "truth": True, "true": "true", "one": 1}
    with LocalMemory({"path": str(tmp_path / "own.db")}) as store:
        for name, value in {**values, "long": "9" * 20}.items():
            fill(store, name, user=value)
    options = ("--yes", "--store", f"sqlite:///{tmp_path}/own.db", "--json")
    done = call("erase", "--label", label, *options)
    assert {t["thread_id"] for t in json.loads(done.out)["threads"]} == gone
    assert threads(tmp_path / "own.db") == {*values, "long"} - gone
    assert done.code == (0 if gone else 1)


def test_what_was_looked_for(call: Run, path: Path) -> None:
    with LocalMemory({"path": str(path)}) as store:
        fill(store, "seventeen", user=17)
    done = call("erase", "--label", "user=17", "--yes", "--store", f"sqlite:///{path}")
    assert 'looked for by user="17" or 17' in done.out


def test_nothing_is_found(call: Run, terminal: Run, path: Path) -> None:
    options = ("erase", "--label", "user=carl", "--store", f"sqlite:///{path}")
    done = call(*options, "--yes", "--json")
    report = json.loads(done.out)
    assert (done.code, report["confirmed"], report["found"], report["done"]) == (
        1,
        True,
        False,
        False,
    )
    done = call(*options, "--yes")
    assert (done.code, done.err) == (1, "")
    assert "Nothing was found: no checkpoint there has such metadata." in done.out
    asked = terminal(*options)
    assert asked.code == 1
    assert "Nothing was found" in asked.out
    assert "Nothing is deleted, " in asked.out
    assert "[y/N]" not in asked.out
    assert len(threads(path)) == 3


@pytest.mark.parametrize(("answer", "left"), [("y\n", {"bob-1"}), ("n\n", None)])
def test_asked(terminal: Run, path: Path, answer: str, left: set[str] | None) -> None:
    had = threads(path)
    done = terminal("erase", "--label", "user=ann", "--store", f"sqlite:///{path}", input=answer)
    assert "Erase 2 threads (" in done.out
    assert "ann-1" in done.out
    assert done.code == (1 if left is None else 0)
    assert threads(path) == (left or had)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--yes",), "name the threads to erase"),
        (("ann-1",), "--yes"),
        (("--label", "user", "--yes"), "not of the form NAME=VALUE"),
        (("--label", "user=ann", "--label", "user=bob", "--yes"), "'user' is named twice"),
        (("--label", "step=1", "--yes"), "no thread can be found by 'step'"),
    ],
)
def test_bad_use(call: Run, path: Path, arguments: tuple[str, ...], told: str) -> None:
    done = call("erase", *arguments, "--store", f"sqlite:///{path}")
    assert (done.code, done.out) == (2, "")
    assert told in done.err
    assert len(threads(path)) == 3


def test_a_replica(call: Run, path: Path, tmp_path: Path) -> None:
    """What only this device has goes, and what only the store behind has."""
    device = tmp_path / "device.db"
    url = f"sqlite:///{path}"
    with open_store(url, replica=str(device)) as store:
        fill(store, "ann-3")
    options = ("--store", url, "--replica", str(device), "--json")
    report = call("erase", "--label", "user=ann", "--yes", *options).json
    assert report["done"]
    assert len(report["threads"]) == 3
    assert [(p["gone"], p["overwritten"]) for p in report["places"]] == [(True, True)] * 2
    assert b"said a secret" in path.read_bytes()
    for file in (path, device):
        assert b"ann-3 said" not in file.read_bytes()
        assert b"ann-1 said" not in file.read_bytes()


def cut(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let nobody reach a file any more."""

    def away(*_: Any, **__: Any) -> Any:
        raise BackendUnavailable("the line is cut")

    for verb in ("delete", "write", "threads", "scan", "pull"):
        real = getattr(SqliteBackend, verb)

        def gone(self: SqliteBackend, *a: Any, real: Any = real, **k: Any) -> Any:
            return (away if self.path == path else real)(self, *a, **k)

        monkeypatch.setattr(SqliteBackend, verb, gone)


@pytest.fixture
def away(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Options that name a replica with a thread of Ann's own, and nobody reaches what is behind."""
    device = tmp_path / "device.db"
    with open_store(f"sqlite:///{path}", replica=str(device)) as store:
        fill(store, "ann-3")
    cut(monkeypatch, path)
    return ("--store", f"sqlite:///{path}", "--replica", str(device), "--timeout", "0.1")


def test_asked_while_a_place_is_away(
    path: Path, away: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `--yes`: what can be found goes, and the receipt tells of the rest."""
    store = open_store(away[1], replica=away[3])
    assert isinstance(store, CheckpointStore)
    asked: list[str] = []

    def yes(question: str, *, what: str) -> bool:
        asked.append(question)
        return True

    monkeypatch.setattr(command, "ask", yes)
    with store:
        report = command.erase(store, (), ["user=carl"], 0.1, confirmed=False)
        assert not asked
        assert (report["found"], report["threads"]) == (False, [])
        assert [(p["name"], p["error"]) for p in report["places"]] == [
            (f"sqlite:{path}", "the line is cut")
        ]
        report = command.erase(store, (), ["user=ann"], 0.1, confirmed=False)
    assert f"Not all can be told of sqlite:{path}: the line is cut." in asked[0]
    assert [t["thread_id"] for t in report["threads"]] == ["ann-3"]
    assert [p["gone"] for p in report["places"]] == [True, False]


def test_not_done_says_so(
    call: Run, path: Path, away: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = away
    done = call("erase", "ann-3", "--yes", *options, "--json")
    assert done.code == 1
    report = json.loads(done.out)
    assert not report["done"]
    assert [p["gone"] for p in report["places"]] == [True, False]
    assert "the line is cut" in report["places"][1]["error"]
    told = call("erase", "ann-3", "--yes", *options)
    assert "It is not done yet." in told.out
    monkeypatch.undo()
    again = call("erase", "ann-3", "--yes", *options[:4], "--json").json
    assert again["done"]
    assert b"ann-3 said" not in path.read_bytes()
