from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from charm_checkpoint.cli import reports
from charm_checkpoint.replica import ReplicaStore
from charm_checkpoint.sqlite import LocalMemory

Run = Callable[..., Any]


def test_json(call: Run, url: str, odd: str, conforms: Callable[[Any, Any], bool]) -> None:
    report = call("threads", "--store", url, "--json").json
    assert conforms(report, reports.Threads)
    statuses = {thread["thread_id"]: thread["status"] for thread in report["threads"]}
    assert list(statuses) == ["trip", "forked", "broken", "talk", odd]  # the one written last first
    assert list(statuses.values()) == ["interrupted", "idle", "failed", "idle", "idle"]
    assert {thread["device"] for thread in report["threads"]} == {"laptop"}
    assert report["threads"][0]["updated_at"].endswith("+00:00")
    assert not report["more"]


def test_limit(call: Run, url: str) -> None:
    report = call("threads", "--store", url, "--json", "--limit", "2").json
    assert [thread["thread_id"] for thread in report["threads"]] == ["trip", "forked"]
    assert report["more"]
    everything = call("threads", "--store", url, "--json", "--limit", "0").json
    assert (len(everything["threads"]), everything["more"]) == (5, False)


def test_status_and_labels(call: Run, run: Run, url: str) -> None:
    def found(*options: str) -> list[str]:
        report = call("threads", "--store", url, "--json", *options).json
        assert report["filtered"]
        return [thread["thread_id"] for thread in report["threads"]]

    assert found("--status", "interrupted") == ["trip"]
    assert found("--status", "idle", "--limit", "1") == ["forked"]
    assert found("--label", "user=ann", "--label", "seat=5") == ["trip"]
    assert found("--label", 'room="5"') == ["trip"]
    assert found("--label", "room=5") == found("--label", "user=ben") == []
    assert (
        "No such threads in"
        in run("threads", "--store", url, "--status", "idle", "--label", "user=ann").out
    )
    [trip] = call("threads", "--store", url, "--json", "--status", "interrupted").json["threads"]
    assert trip["labels"] == {"user": "ann", "seat": 5, "room": "5"}


def test_piped_text_is_whole_and_plain(run: Run, url: str, plain: Callable[[str], bool]) -> None:
    done = run("threads", "--store", url)
    assert (done.code, done.err) == (0, "")
    assert plain(done.out)
    head, first, *_ = done.out.splitlines()
    assert head.split()[:4] == ["Thread", "Status", "Updated", "Device"]
    assert first.startswith("trip ")
    assert "laptop" in first
    assert " IST " in first  # the zone of whoever looks
    assert r"odd [red]\x1b[31m\n\u202eid" in done.out


def test_terminal_of_80_columns(terminal: Run, url: str) -> None:
    done = terminal("threads", "--store", url)
    assert done.code == 0
    assert "\x1b[33m" in done.out  # interrupted threads stand out
    assert "trip" in done.out
    uncoloured = terminal("threads", "--store", url, NO_COLOR="1").out
    assert "\x1b" not in uncoloured
    lines = uncoloured.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) == 6  # none was folded


def test_wide_terminal_shows_more(terminal: Run, url: str) -> None:
    head = terminal("threads", "--store", url, columns=160, NO_COLOR="1").out.splitlines()[0]
    assert "Newest checkpoint" in head


def test_workspace_without_threads_is_left_as_it_is(run: Run, tmp_path: Path) -> None:
    report = run("threads", "--json").json
    assert report["threads"] == []
    assert report["store"] == f"sqlite:{tmp_path}/workspace/.charm/memory/threads.db"
    assert list(tmp_path.iterdir()) == []


def test_device_and_time(call: Run, tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    url = f"sqlite:///{path}"
    said = [{"role": "user", "content": "hi"}]
    for number in range(6):
        with LocalMemory({"path": str(path), "device": f"device {number % 2}"}) as store:
            store.save_messages(f"t{number}", said)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE heads SET moved_at = moved_at - 86400 * 3 WHERE thread_id < 't3'")

    def found(*options: str) -> tuple[list[str], bool]:
        report = call("threads", "--store", url, "--json", *options).json
        assert report["filtered"]
        return [thread["thread_id"] for thread in report["threads"]], report["more"]

    assert found("--device", "device 1") == (["t5", "t3", "t1"], False)
    assert found("--device", "device 1", "--limit", "2") == (["t5", "t3"], True)
    assert found("--device", "device 1", "--limit", "3") == (["t5", "t3", "t1"], False)
    assert found("--device", "device") == ([], False)
    assert found("--since", "2d") == (["t5", "t4", "t3"], False)
    assert found("--since", "5d", "--device", "device 0", "--limit", "1") == (["t4"], True)
    assert found("--since", "2000-01-31")[0] == ["t5", "t4", "t3", "t2", "t1", "t0"]
    assert found("--since", "2999-01-31T12:00:00Z") == ([], False)
    for bad in ("", "yesterday", "9999999d", "-1d", "2026-13-01", "1w"):
        done = call("threads", "--store", url, "--since", bad)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "--since" in done.err


def test_threads_that_diverged(call: Run, run: Run, terminal: Run, tmp_path: Path) -> None:
    remote, own = tmp_path / "remote.db", tmp_path / "own.db"
    url, said = f"sqlite:///{remote}", [{"role": "user", "content": "hi"}]
    with LocalMemory({"path": str(remote), "device": "phone"}) as there:
        for thread in ("a", "b"):
            there.save_messages(thread, said)
        config = {"replica": str(own), "device": "laptop"}
        with ReplicaStore(LocalMemory({"path": str(remote)}), config) as here:
            assert here.load_messages("a")
            backend = here.get_langgraph_checkpointer().engine.backend
            wake = backend._waker.wake  # type: ignore[attr-defined]
            backend._waker.wake = lambda *_, **__: None  # type: ignore[attr-defined]
            there.append_messages("a", said)
            here.append_messages("a", said)
            assert here.flush(60)
            backend._waker.wake = wake  # type: ignore[attr-defined]
            assert here.conflicts("a")
    replica = ["--store", url, "--replica", str(own)]
    report = call("threads", *replica, "--json").json
    assert {t["thread_id"]: t["diverged"] for t in report["threads"]} == {"a": True, "b": False}
    [found] = call("threads", *replica, "--status", "diverged", "--json").json["threads"]
    assert (found["thread_id"], found["status"]) == ("a", "idle")
    assert call("threads", *replica, "--status", "diverged", "--label", "x=1").out.startswith(
        "No such"
    )
    shown = terminal("threads", *replica, NO_COLOR="1").out.splitlines()
    assert "idle, diverged" in shown[1]
    assert max(map(len, shown)) <= 80
    # Who is no replica cannot tell.
    done = call("threads", "--store", url, "--status", "diverged")
    assert (done.code, "only known to a replica" in done.err) == (2, True)
    assert not call("threads", "--store", url, "--json").json["threads"][0]["diverged"]
