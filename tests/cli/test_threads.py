from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from charm_checkpoint.cli import reports

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
