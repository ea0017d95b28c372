"""`conflicts`, `promote` and `dismiss`: deciding between two ways on."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from charm_checkpoint import open_store
from charm_checkpoint.cli import reports

Run = Callable[..., Any]
Conforms = Callable[[Any, Any], bool]


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def disagree(remote: Path, *, thread: str = "trip") -> None:
    """The laptop adds to a thread while nothing can be sent; the phone adds to it, too."""
    url, own = f"sqlite:///{remote}", str(remote.with_name("own.db"))
    with open_store(url, device="phone") as phone:
        phone.append_messages(thread, say("We leave on Friday."))
    config = {"replica": own, "device": "laptop", "busy_timeout": 0.05}
    with closing(sqlite3.connect(remote, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        with open_store(url, **config) as laptop:
            laptop.append_messages(thread, say("On Saturday!"))
    with open_store(url, device="phone") as phone:
        phone.append_messages(thread, say("By train."))
    with open_store(url, **(config | {"busy_timeout": 10})) as laptop:
        assert laptop.flush(60)  # type: ignore[attr-defined]


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    path = tmp_path / "remote.db"
    disagree(path)
    return path


@pytest.fixture
def options(remote: Path) -> list[str]:
    return ["--store", f"sqlite:///{remote}", "--replica", str(remote.with_name("own.db"))]


def messages(remote: Path) -> list[str]:
    with open_store(f"sqlite:///{remote}") as store:
        return [message["content"] for message in store.load_messages("trip")]


def test_list(call: Run, options: list[str], conforms: Conforms) -> None:
    report = call("conflicts", *options, "--json").json
    assert conforms(report, reports.Conflicts)
    (found,) = report["conflicts"]
    assert (found["thread_id"], found["namespace"], found["head_device"]) == ("trip", "", "phone")
    assert found["branch"] == found["first"] != found["head"]
    assert call("conflicts", "trip", *options, "--json").json == report
    assert call("conflicts", "talk", *options, "--json").json["conflicts"] == []
    assert call("conflicts", "talk", *options).out.startswith("No conflicts in ")
    assert call("sync", "status", *options, "--json").json["conflicts"] == 1


def test_list_on_a_terminal_of_80_columns(terminal: Run, options: list[str]) -> None:
    done = terminal("conflicts", *options, NO_COLOR="1")
    assert (done.code, "\x1b" in done.out) == (0, False)
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("trip")
    assert "phone" in lines[1]


def test_promote(call: Run, remote: Path, options: list[str], conforms: Conforms) -> None:
    assert messages(remote)[-1] == "By train."
    report = call("promote", "trip", "--yes", *options, "--json").json
    assert conforms(report, reports.Promotion)
    assert report["promoted"]
    assert (report["branch"]["device"], report["branch"]["message"]) == ("laptop", "On Saturday!")
    assert (report["head"]["device"], report["head"]["message"]) == ("phone", "By train.")
    assert messages(remote)[-1] == "On Saturday!"
    assert call("conflicts", *options, "--json").json["conflicts"] == []
    # What the thread went on from is a branch now.
    steps = call("history", "trip", "--store", options[1], "--json").json["checkpoints"]
    marks = {step["checkpoint_id"]: (step["is_head"], step["is_branch"]) for step in steps}
    assert marks[report["branch"]["checkpoint_id"]] == (True, False)
    assert marks[report["head"]["checkpoint_id"]] == (False, True)


@pytest.mark.parametrize(("answer", "last"), [("y\n", "On Saturday!"), ("n\n", "By train.")])
def test_promote_shows_both_and_asks(
    terminal: Run, remote: Path, options: list[str], answer: str, last: str
) -> None:
    done = terminal("promote", "trip", *options, input=answer)
    for told in ("by laptop", "On Saturday!", "by phone", "By train."):
        assert told in done.out
    assert done.code == (0 if last == "On Saturday!" else 1)
    assert messages(remote)[-1] == last


def test_nobody_to_ask(call: Run, remote: Path, options: list[str]) -> None:
    done = call("promote", "trip", *options)
    assert (done.code, done.out) == (2, "")
    assert "--yes" in done.err
    assert messages(remote)[-1] == "By train."


def test_several_branches(call: Run, remote: Path, options: list[str]) -> None:
    disagree(remote)
    first, second = call("conflicts", *options, "--json").json["conflicts"]
    done = call("promote", "trip", "--yes", *options)
    assert (done.code, done.out) == (2, "")
    assert "has 2 branches to choose from" in done.err
    assert first["branch"][:18] in done.err
    assert call("promote", "trip", "no such id", "--yes", *options).code == 2

    named = call("promote", "trip", first["branch"][:18], "--yes", *options, "--json").json
    assert named["branch"]["checkpoint_id"] == first["branch"]
    assert call("conflicts", *options, "--json").json["conflicts"] == [second]


def test_dismiss(call: Run, remote: Path, options: list[str], conforms: Conforms) -> None:
    disagree(remote)
    first, second = call("conflicts", *options, "--json").json["conflicts"]
    report = call("dismiss", "trip", second["branch"][:18], *options, "--json").json
    assert conforms(report, reports.Dismissal)
    assert report["dismissed"] == [second]
    assert call("conflicts", *options, "--json").json["conflicts"] == [first]
    disagree(remote)
    assert call("dismiss", "trip", *options).out.startswith("2 conflicts of thread trip off")
    assert call("conflicts", *options, "--json").json["conflicts"] == []
    again = call("dismiss", "trip", *options)
    assert (again.code, again.out) == (2, "")
    assert "has no conflict" in again.err
    assert messages(remote)[-1] == "By train."


def test_the_thread_was_deleted_meanwhile(call: Run, remote: Path, options: list[str]) -> None:
    with open_store(f"sqlite:///{remote}", device="phone") as phone:
        phone.delete("trip")  # type: ignore[attr-defined]
    done = call("promote", "trip", "--yes", *options)
    assert (done.code, done.out) == (2, "")
    assert "'trip' was deleted on another device" in done.err
    assert call("conflicts", *options, "--json").json["conflicts"] == []


def test_odd_ids_are_no_trouble(call: Run, remote: Path, odd: str, plain: Any) -> None:
    disagree(remote, thread=odd)
    options = ["--store", f"sqlite:///{remote}", "--replica", str(remote.with_name("own.db"))]
    done = call("conflicts", *options)
    assert plain(done.out)
    assert r"odd [red]\x1b[31m\n\u202eid" in done.out
    assert json.loads(call("promote", odd, "--yes", *options, "--json").out)["promoted"]
