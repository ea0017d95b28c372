"""Commands over encrypted stores: with the key all of them work, without it those that need no values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from charm_checkpoint import Encryption
from charm_checkpoint.cli import main
from charm_checkpoint.errors import DeserializationError
from charm_checkpoint.sqlite import LocalMemory
from tests.security.test_encryption import KEY, OTHER, SECRET, trip

Call = Callable[..., Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with a thread that waits, and one that was said goodbye in."""
    path = tmp_path / "t.db"
    with LocalMemory({"path": str(path), "encryption": {"key": KEY}}) as store:
        store.save_messages("talk", [{"role": "user", "content": SECRET}])
        store.append_messages("talk", [{"role": "assistant", "content": "Goodbye."}])
        graph = trip(store.get_langgraph_checkpointer())
        config: Any = {"configurable": {"thread_id": "trip"}, "metadata": {"user": "ann"}}
        graph.invoke({"messages": [("user", SECRET)]}, config)
    return path


@pytest.fixture
def call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Call:
    """Run a command with some key in the environment. Returns its JSON, or its error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, key: str | None = KEY, code: int = 0) -> Any:
        capsys.readouterr()
        monkeypatch.delenv("CHARM_ENCRYPTION_KEY", raising=False)
        if key is not None:
            monkeypatch.setenv("CHARM_ENCRYPTION_KEY", key)
        ended = main([*arguments, "--json"])
        out, err = capsys.readouterr()
        assert ended == code, (out, err)
        return json.loads(out) if not code else err

    return call


def url(path: Path) -> str:
    return f"sqlite:///{path}"


def test_looking(call: Call, path: Path) -> None:
    shown = call("show", "trip", "--store", url(path))
    assert [i["value"] for i in shown["interrupts"]] == [f"{SECRET}?"]
    assert [m["content"] for m in shown["messages"]] == [SECRET]
    [messages] = call("diff", "talk", "--store", url(path))["differences"]
    assert [p["after"]["content"] for p in messages["parts"]] == ["Goodbye."]


def test_without_the_key(call: Call, path: Path, tmp_path: Path) -> None:
    store = ["--store", url(path)]
    assert len(call("threads", *store, key=None)["threads"]) == 2
    [found] = call("threads", *store, "--label", "user=ann", key=None)["threads"]
    assert found["status"] == "interrupted"
    assert call("history", "trip", *store, key=None)["total"] == 2
    shown = call("show", "trip", *store, key=None)
    assert all("encrypted" in channel["error"] for channel in shown["channels"])
    assert "without a key" in shown["messages_error"]
    assert [i["value"] for i in shown["interrupts"]] == [None]
    told = call("show", "trip", *store, key=OTHER, code=1)
    assert "thread 'trip': the stored value of channel" in told
    assert f"there is only {Encryption(OTHER).key_ids[0]}" in told
    assert OTHER not in told
    call("copy", url(path), url(tmp_path / "copy.db"), key=None)
    call("prune", *store, "--keep-last", "1", key=None)
    call("delete", "talk", "--yes", *store, key=None)
    with LocalMemory({"path": str(tmp_path / "copy.db"), "encryption": {"key": KEY}}) as copy:
        assert copy.load_messages("talk")[0]["content"] == SECRET
    told = call("threads", *store, key="hunter2", code=2)
    assert "hunter2" not in told


def test_a_new_key_by_copying(call: Call, path: Path, tmp_path: Path) -> None:
    target = tmp_path / "new.db"
    report = call("copy", url(path), url(target), key=f"{OTHER},{KEY}")
    assert [t["outcome"] for t in report["threads"]] == ["copied", "copied"]
    again = call("copy", url(path), url(target), key=f"{OTHER},{KEY}")
    assert [t["outcome"] for t in again["threads"]] == ["same", "same"]
    with LocalMemory({"path": str(target), "encryption": {"key": OTHER}}) as store:
        assert store.load_messages("talk")[0]["content"] == SECRET
    old = LocalMemory({"path": str(target), "encryption": {"key": KEY}})
    with old, pytest.raises(DeserializationError, match="there is only"):
        old.load_messages("talk")


def test_encrypting_by_copying(call: Call, tmp_path: Path) -> None:
    plain, target = tmp_path / "plain.db", tmp_path / "new.db"
    with LocalMemory({"path": str(plain)}) as store:
        store.save_messages("talk", [{"role": "user", "content": SECRET}])
    call("copy", url(plain), url(target))
    assert b"embassy" in plain.read_bytes()
    assert b"embassy" not in target.read_bytes()
    with LocalMemory({"path": str(target), "encryption": {"key": KEY}}) as store:
        assert store.load_messages("talk")[0]["content"] == SECRET


def test_a_fork(call: Call, path: Path) -> None:
    call("fork", "talk", "other", "--store", url(path))
    told = call("fork", "talk", "third", "--store", url(path), key=None, code=1)
    assert "talk" in told
    with LocalMemory({"path": str(path), "encryption": {"key": KEY}}) as store:
        assert store.load_messages("other") == store.load_messages("talk")
        assert store.load_messages("third") == []


def test_a_file(call: Call, path: Path, tmp_path: Path) -> None:
    """What is exported with the key is plain, and becomes a ciphertext where it is imported."""
    call("export", "--output", "threads.gz", "--store", url(path))
    call("import", "threads.gz", "--store", url(tmp_path / "new.db"))
    assert b"embassy" not in (tmp_path / "new.db").read_bytes()
    other = LocalMemory({"path": str(tmp_path / "new.db"), "encryption": {"key": OTHER}})
    with other, pytest.raises(DeserializationError):
        other.load_messages("talk")
    call("import", "threads.gz", "--store", url(tmp_path / "plain.db"), key=None)
    assert b"embassy" in (tmp_path / "plain.db").read_bytes()


def test_erasing(call: Call, path: Path) -> None:
    before = path.read_bytes()
    receipt = call("erase", "--label", "user=ann", "--yes", "--store", url(path))
    assert receipt["done"]
    assert [t["thread_id"] for t in receipt["threads"]] == ["trip"]
    assert len(call("threads", "--store", url(path))["threads"]) == 1
    assert before != path.read_bytes()
    assert [place["overwritten"] for place in receipt["places"]] == [True]


def test_compacting(call: Call, path: Path) -> None:
    call("compact", "--store", url(path))
    with LocalMemory({"path": str(path), "encryption": {"key": KEY}}) as store:
        assert store.load_messages("talk")[0]["content"] == SECRET
