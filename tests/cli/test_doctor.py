from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint

from charm_checkpoint import open_store
from charm_checkpoint.cli import reports
from charm_checkpoint.sqlite import LocalMemory

Run = Callable[..., Any]


def status(report: Any, name: str) -> tuple[str, str]:
    (found,) = (check for check in report["checks"] if check["name"] == name)
    return found["status"], found["detail"]


def test_healthy(run: Run, url: str, conforms: Callable[[Any, Any], bool]) -> None:
    report = run("doctor", "--store", url, "--json").json
    assert conforms(report, reports.Diagnosis)
    assert report["ok"]
    found = {check["name"]: check["status"] for check in report["checks"]}
    expected = {
        "checkpoint ids",
        "clock",
        "device",
        "file mode",
        "free space",
        "integrity",
        "journal",
    }
    assert expected | {"langgraph-checkpoint", "python", "sqlite", "store", "writable"} <= set(
        found
    )
    found.pop("charm-checkpoint")  # not installed where the tests run from a bare checkout
    assert set(found.values()) == {"ok"}


def test_text(run: Run, url: str, plain: Callable[[str], bool]) -> None:
    done = run("doctor", "--store", url)
    assert done.code == 0
    assert plain(done.out)
    assert any(
        line.split() == ["ok", "journal", "write-ahead", "log"] for line in done.out.splitlines()
    )


def test_things_to_look_at(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "own.db"
    ticks = int((time.time() + 7200) * 10_000_000) + 0x01B21DD213814000
    digits = f"{ticks:015x}"
    ahead = {
        **empty_checkpoint(),
        "id": f"{digits[:8]}-{digits[8:12]}-6{digits[12:]}-8000-000000000000",
    }
    with LocalMemory({"path": str(path), "device": "phone"}) as store:
        config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        store.get_langgraph_checkpointer().put(config, ahead, {"source": "input", "step": -1}, {})
    path.chmod(0o644)
    done = run("doctor", "--store", f"sqlite:///{path}", "--json", LANGGRAPH_STRICT_MSGPACK="true")
    report = done.json
    assert report["ok"]
    verdict, detail = status(report, "clock")
    assert verdict == "warn"
    assert "written by phone, is 2 hours ahead" in detail
    if os.name == "posix":
        verdict, detail = status(report, "file mode")
        assert verdict == "warn"
        assert "own.db is 0644" in detail
    assert "other savers, too" in status(report, "strict types")[1]


def test_damaged_pages(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "own.db"
    with LocalMemory({"path": str(path)}) as store:
        for i in range(40):
            store.save_messages(f"t{i}", [{"role": "user", "content": "x" * 3000}])
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size - 3 * 4096)
        file.write(os.urandom(2 * 4096))
    done = run("doctor", "--store", f"sqlite:///{path}", "--json")
    assert done.code == 1
    assert '"ok": false' in done.out
    assert done.err == ""


def test_no_database_at_all(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "own.db"
    path.write_text("These are my notes, not a database. " * 100)
    done = run("doctor", "--store", f"sqlite:///{path}")
    assert done.code == 1
    line = next(line for line in done.out.splitlines() if line.startswith("fail"))
    assert "not a SQLite database" in line
    assert path.read_text().startswith("These are my notes")


def test_store_that_is_still_to_be_made(run: Run, tmp_path: Path) -> None:
    report = run("doctor", "--json").json
    assert report["ok"]
    assert "does not exist" in status(report, "store")[1]
    assert list(tmp_path.iterdir()) == []


def test_a_uuid6_that_does_not_follow_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from langgraph.checkpoint.base import id as ids

    from charm_checkpoint import clock
    from charm_checkpoint.cli.doctor import _order

    monkeypatch.setattr(ids, "_last_v6_timestamp", ids._last_v6_timestamp)  # put back afterwards
    monkeypatch.setattr(clock, "observe", lambda id: None)
    assert [check["status"] for check in _order()] == ["fail"]


def test_a_langgraph_that_does_not_tell_its_types_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from langgraph._internal import _serde

    from charm_checkpoint import graph_types
    from charm_checkpoint.cli.doctor import _strictness

    assert _strictness()[0] == "ok"
    monkeypatch.setattr(graph_types, "announce_graph_types", lambda: None)
    monkeypatch.setattr(_serde, "STRICT_MSGPACK_ENABLED", False)
    assert _strictness()[0] == "warn"


# -- a replica ---------------------------------------------------------------------------------------------------------


def test_replica(call: Run, tmp_path: Path, conforms: Callable[[Any, Any], bool]) -> None:
    url, own = f"sqlite:///{tmp_path}/remote.db", str(tmp_path / "own.db")
    with open_store(url, replica=own) as store:
        store.save_messages("t", [{"role": "user", "content": "hi"}])
    report = call("doctor", "--store", url, "--replica", own, "--json").json
    assert conforms(report, reports.Diagnosis)
    assert report["ok"]
    expected = ("replica", "sender's lock", "to be sent", "conflicts", "store behind", "integrity")
    assert {status(report, name)[0] for name in expected} == {"ok"}
    assert own in status(report, "replica")[1]
    assert status(report, "store behind")[1] == f"sqlite:{tmp_path}/remote.db answers"
    # Without its replica it is the store behind that is looked at.
    report = call("doctor", "--store", url, "--json").json
    assert {"replica", "store behind"}.isdisjoint(check["name"] for check in report["checks"])


def test_replica_of_a_store_that_is_away(call: Run, tmp_path: Path) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"postgresql://me:hunter2@127.0.0.1:{taken.getsockname()[1]}/threads"
        own = str(tmp_path / "own.db")
        with open_store(url, replica=own) as store:
            store.save_messages("t", [{"role": "user", "content": "hi"}])
        done = call("doctor", "--store", url, "--replica", own, "--json")
    report = done.json
    assert report["ok"]
    assert status(report, "store behind")[0] == status(report, "to be sent")[0] == "warn"
    assert "1 entry of 1 thread" in status(report, "to be sent")[1]
    assert "1 thread" in status(report, "store")[1]
    assert "hunter2" not in done.out


@pytest.mark.skipif(os.name != "posix", reason="flock")
def test_locks_that_do_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    from charm_checkpoint.cli.doctor import _lock

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    path = tmp_path / "own.db"
    assert _lock(path)[0] == "ok"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(fcntl, "flock", refuse)
    assert _lock(path) == (
        "fail",
        f"files in {tmp_path} cannot be locked, so nothing is sent: use a local disk",
    )
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, operation: None)
    assert "locks do not hold" in _lock(path)[1]
    assert "cannot be written" in _lock(tmp_path / "nowhere" / "own.db")[1]
