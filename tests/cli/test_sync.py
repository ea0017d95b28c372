"""`sync`: what a replica has not sent yet, and sending and bringing it now."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from charm_checkpoint import open_store
from charm_checkpoint.backend import ThreadQuery
from charm_checkpoint.cli import reports
from charm_checkpoint.replica import ReplicaStore
from charm_checkpoint.replica.front import Front

from .conftest import COMMAND

Run = Callable[..., Any]
Conforms = Callable[[Any, Any], bool]


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    """A port at which nobody listens."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken


@pytest.fixture
def away(taken: socket.socket) -> str:
    """A database that is not there."""
    return f"postgresql://me:hunter2@127.0.0.1:{taken.getsockname()[1]}/threads"


@pytest.fixture
def offline(away: str, tmp_path: Path) -> list[str]:
    """Options for a replica on which something was done while its store was away."""
    path = tmp_path / "own.db"
    with open_store(away, replica=str(path), device="laptop") as store:
        store.append_messages("trip", say("hi"))
        store.append_messages("trip", say("again"))
        store.append_messages("talk", say("x" * 3000))
    return ["--store", away, "--replica", str(path)]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """A database that answers and takes nothing."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """A store that other devices use, too."""
    path = tmp_path / "remote.db"
    with open_store(f"sqlite:///{path}", device="phone") as store:
        for thread in ("a", "b", "c"):
            store.append_messages(thread, say(f"from the phone: {thread}"))
    return path


def behind(remote: Path) -> list[str]:
    return ["--store", f"sqlite:///{remote}", "--replica", str(remote.with_name("own.db"))]


# -- status ------------------------------------------------------------------------------------------------------------


def test_status(call: Run, offline: list[str], conforms: Conforms) -> None:
    report = call("sync", "status", *offline, "--json").json
    assert conforms(report, reports.SyncStatus)
    assert [(t["thread_id"], t["entries"]) for t in report["threads"]] == [("trip", 2), ("talk", 1)]
    assert (report["entries"], report["thread_count"]) == (3, 2)
    assert report["bytes"] == sum(thread["bytes"] for thread in report["threads"]) > 3000
    assert report["since"] == report["threads"][0]["since"] <= report["threads"][1]["since"]
    assert report["offline_since"]
    assert "refused" in report["last_error"]
    assert (report["last_success"], report["conflicts"]) == (None, 0)
    assert "hunter2" not in json.dumps(report)
    assert report["path"].endswith("own.db")

    one = call("sync", "status", *offline, "--json", "--limit", "1").json
    assert [thread["thread_id"] for thread in one["threads"]] == ["trip"]
    assert one["thread_count"] == 2


def test_looking_asks_nobody(call: Run, taken: socket.socket, offline: list[str]) -> None:
    taken.listen()
    taken.setblocking(False)
    assert call("sync", "status", *offline, "--json").json["entries"]
    assert call("conflicts", *offline, "--json").json
    with pytest.raises(BlockingIOError):
        taken.accept()


def test_status_in_a_pipe(run: Run, offline: list[str], plain: Callable[[str], bool]) -> None:
    done = run("sync", "status", *offline)
    assert (done.code, done.err) == (0, "")
    assert plain(done.out)
    assert "3 entries of 2 threads, " in done.out
    assert " IST" in done.out
    assert any(line.split()[:2] == ["trip", "2"] for line in done.out.splitlines())
    assert "… and 1 more" in run("sync", "status", *offline, "--limit", "1").out


def test_status_on_a_terminal_of_80_columns(terminal: Run, offline: list[str]) -> None:
    done = terminal("sync", "status", *offline, NO_COLOR="1")
    assert done.code == 0
    assert "\x1b" not in done.out
    assert max(map(len, done.out.splitlines())) <= 80


def test_status_when_all_is_sent(call: Run, remote: Path) -> None:
    with open_store(f"sqlite:///{remote}", replica=str(remote.with_name("own.db"))) as store:
        store.append_messages("a", say("hi"))
    report = call("sync", "status", *behind(remote), "--json").json
    assert (report["entries"], report["threads"], report["offline_since"]) == (0, [], None)
    assert report["last_success"]
    assert "everything is at the store behind" in call("sync", "status", *behind(remote)).out


def test_the_configured_replica(run: Run, remote: Path, tmp_path: Path) -> None:
    (tmp_path / "charm.yaml").write_text(
        "runtime: {memory: {provider: local, config: {path: ./remote.db, replica: ./own.db}}}"
    )
    assert "does not exist" in run("sync", "status").err
    assert run("sync", "pull", "--json").json["threads"] == ["c", "b", "a"]
    assert run("sync", "status", "--json").json["path"] == str(tmp_path / "own.db")


# -- watch -------------------------------------------------------------------------------------------------------------


def watching(options: list[str], environment: dict[str, str], **streams: Any) -> Any:
    command = [*COMMAND, "sync", "watch", "--interval", "0.1", *options]
    return subprocess.Popen(command, env=environment, **streams)


def test_watch_prints_a_line_when_something_changed(
    remote: Path, environment: dict[str, str], conforms: Conforms
) -> None:
    path = str(remote.with_name("own.db"))
    config = {"replica": path, "busy_timeout": 0.05, "flush_timeout": 0}
    with open_store(f"sqlite:///{remote}", **config) as store:
        store.append_messages("a", say("hi"))
        assert store.flush()
        with watching(
            [*behind(remote), "--json"],
            environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            first = json.loads(process.stdout.readline())
            assert conforms(first, reports.SyncStatus)
            assert first["entries"] == 0
            with locked(remote):
                store.append_messages("a", say("again"))
                assert json.loads(process.stdout.readline())["entries"]
            assert store.flush()
            while json.loads(process.stdout.readline())["entries"]:
                pass
            process.send_signal(signal.SIGINT)
            assert (process.wait(), process.stderr.read()) == (0, "")


def test_watch_is_quiet_while_nothing_changes(
    call: Run, offline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("charm_checkpoint.cli.sync.time.sleep", sleep)
    done = call("sync", "watch", *offline)
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    assert "; 3 entries of 2 threads, " in done.out
    assert " to be sent; offline since " in done.out


def test_watch_in_place(offline: list[str], environment: dict[str, str]) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    variables = environment | {"TERM": "xterm-256color", "COLUMNS": "80"}
    with watching(
        offline, variables, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE
    ) as process:
        os.close(theirs)
        shown = b""
        while b"talk" not in shown:
            shown += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        assert (process.wait(), process.stderr.read()) == (0, b"")
    os.close(ours)


# -- push --------------------------------------------------------------------------------------------------------------


def test_push(call: Run, remote: Path, conforms: Conforms) -> None:
    config = {"replica": str(remote.with_name("own.db")), "busy_timeout": 0.05, "flush_timeout": 0}
    with locked(remote), open_store(f"sqlite:///{remote}", **config) as store:
        store.append_messages("a", say("from the laptop"))
        assert not store.flush(0.2)
    assert call("sync", "status", *behind(remote), "--json").json["offline_since"]
    report = call("sync", "push", *behind(remote), "--json").json
    assert conforms(report, reports.Push)
    assert (report["ok"], report["sent"], report["left"], report["error"]) == (True, 1, 0, None)
    with open_store(f"sqlite:///{remote}") as store:
        assert [m["content"] for m in store.load_messages("a")][1:] == ["from the laptop"]
    # What the other process had noted is over.
    assert call("sync", "status", *behind(remote), "--json").json["offline_since"] is None
    assert call("sync", "push", *behind(remote)).out == f"Everything is at sqlite:{remote}.\n"


def test_push_while_the_store_behind_is_away(
    call: Run, run: Run, offline: list[str], conforms: Conforms
) -> None:
    done = run("sync", "push", *offline, "--timeout", "0.5")
    assert (done.code, done.err) == (1, "")
    assert "On this device only: 3 entries of 2 threads. postgresql://" in done.out
    assert "refused" in done.out
    assert "hunter2" not in done.out
    failed = call("sync", "push", *offline, "--timeout", "0", "--json")
    report = json.loads(failed.out)
    assert conforms(report, reports.Push)
    assert (failed.code, report["ok"], report["left"]) == (1, False, 3)
    assert call("sync", "status", *offline, "--json").json["entries"] == 3


def test_push_shows_its_progress_on_a_terminal_only(terminal: Run, offline: list[str]) -> None:
    done = terminal("sync", "push", *offline, "--timeout", "0.5")
    assert done.code == 1
    assert "Sending" in done.out
    assert "0/3" in done.out


# -- pull --------------------------------------------------------------------------------------------------------------


def here(remote: Path) -> set[str]:
    """The threads that this device can go on with when nobody answers."""
    with closing(Front(remote.with_name("own.db"))) as front:
        return {row.thread_id for row in front.threads(ThreadQuery(limit=100))}


def test_pull(call: Run, remote: Path, conforms: Conforms) -> None:
    report = call("sync", "pull", *behind(remote), "--limit", "2", "--json").json
    assert conforms(report, reports.Pull)
    assert report["threads"] == ["c", "b"]
    assert here(remote) == {"b", "c"}
    assert call("sync", "pull", *behind(remote), "a").out.startswith("1 thread of sqlite:")
    assert here(remote) == {"a", "b", "c"}

    missing = call("sync", "pull", *behind(remote), "b", "nobody", "--json")
    assert (missing.code, json.loads(missing.out)["missing"]) == (2, ["nobody"])
    assert "There is no thread nobody." in call("sync", "pull", *behind(remote), "nobody").out


def test_pull_brings_what_is_new(call: Run, remote: Path) -> None:
    call("sync", "pull", *behind(remote))
    with open_store(f"sqlite:///{remote}", device="phone") as store:
        store.append_messages("a", say("news"))
    call("sync", "pull", *behind(remote), "a")
    with (
        closing(Front(remote.with_name("own.db"))) as front,
        open_store(f"sqlite:///{remote}") as store,
    ):
        (row,) = front.threads(ThreadQuery(limit=1, thread_id="a"))
        info = store.thread("a")  # type: ignore[attr-defined]
        assert row.heads[0].checkpoint_id == info.checkpoint_id


def test_pull_while_the_store_behind_is_away(call: Run, offline: list[str]) -> None:
    done = call("sync", "pull", *offline, "trip", "--json")
    report = json.loads(done.out)
    assert (done.code, done.err, report["ok"], report["threads"]) == (1, "", False, [])
    assert "refused" in report["error"]
    assert "hunter2" not in done.out


# -- other commands ----------------------------------------------------------------------------------------------------


def test_other_commands_go_on_with_what_is_here_and_say_so(
    run: Run, offline: list[str], tmp_path: Path
) -> None:
    url, path = offline[1::2]
    config = f"{{url: '{url}', replica: '{path}'}}"
    (tmp_path / "charm.yaml").write_text(
        f"runtime: {{memory: {{provider: postgres, config: {config}}}}}"
    )
    done = run("threads", "--json")
    assert done.code == 0
    assert {t["thread_id"] for t in json.loads(done.out)["threads"]} == {"trip", "talk"}
    away, left = done.err.splitlines()
    assert away.startswith("charm-checkpoint: warning: postgresql://")
    assert "going on with what is on this device" in away
    assert "3 entries of 2 threads are on this device only" in left
    assert "hunter2" not in done.err


# -- bad use -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sync"], "Missing command"),
        (["sync", "status"], "put replica: true into its config"),
        (["conflicts"], "put replica: true into its config"),
        (["sync", "status", "--replica", "own.db"], "--store, which is missing"),
        (["sync", "status", "--store", "sqlite:///remote.db"], "nothing on this device has used"),
        (["sync", "push", "--store", "sqlite:///typo.db"], "typo.db does not exist"),
        (["sync", "pull", "--store", "sqlite:///typo.db"], "typo.db does not exist"),
        (["sync", "pull", "", "--store", "sqlite:///remote.db"], "thread id is empty"),
        (["sync", "watch", "--interval", "0"], "--interval"),
        (["doctor", "--replica", "own.db"], "--store, which is missing"),
    ],
)
def test_bad_use(call: Run, remote: Path, tmp_path: Path, arguments: list[str], told: str) -> None:
    before = sorted(tmp_path.iterdir())
    done = call(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert told in done.err
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_that_is_no_replica_of_it(call: Run, remote: Path, tmp_path: Path) -> None:
    with open_store(f"sqlite:///{tmp_path}/other.db", replica=str(tmp_path / "own.db")) as store:
        assert isinstance(store, ReplicaStore)
        store.sync_status()
    done = call("sync", "status", *behind(remote))
    assert done.code == 2
    assert "own.db is the replica of sqlite:" in done.err
    own = ["--store", f"sqlite:///{remote}", "--replica", str(remote)]
    done = call("sync", "status", *own)
    assert done.code == 1
    assert done.err.count("\n") == 1
