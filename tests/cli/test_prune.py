from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from charm_checkpoint.cli import reports
from charm_checkpoint.sqlite import LocalMemory

Run = Callable[..., Any]


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A store of the test's own: `talk` has 12 checkpoints, `kept` is not to be pruned."""
    path = tmp_path / "own.db"
    with LocalMemory({"path": str(path)}) as store:
        for turn in range(12):
            text = f"{turn} " + "words " * 300
            store.append_messages("talk", [{"role": "user", "content": text}])
        saver = store.get_langgraph_checkpointer()
        found = saver.get_tuple({"configurable": {"thread_id": "talk"}})
        assert found is not None
        metadata: Any = {"retention": "keep", "source": "input"}
        place: Any = {"configurable": {"thread_id": "kept", "checkpoint_ns": ""}}
        saver.put(place, found.checkpoint, metadata, {})
    return f"sqlite:///{path}"


def count(url: str, thread_id: str = "talk") -> int:
    with LocalMemory({"path": url.removeprefix("sqlite:///")}) as store:
        return len(list(store.history(thread_id)))


def test_a_dry_run_and_a_real_one(
    call: Run, own: str, conforms: Callable[[Any, Any], bool]
) -> None:
    limits = ("prune", "--keep-last", "5", "--store", own)
    tried = call(*limits, "--dry-run", "--json").json
    assert conforms(tried, reports.Pruning)
    assert count(own) == 12
    done = call(*limits, "--json").json
    assert conforms(done, reports.Pruning)
    assert (tried["dry_run"], done["dry_run"]) == (True, False)
    assert tried["checkpoints"] == done["checkpoints"] == 7
    assert done["bytes"] > 0
    assert done["looked_at"] == 2
    assert {t["thread_id"]: t["kept"] for t in done["threads"]} == {
        "talk": None,
        "kept": "its metadata says retention: keep",
    }
    assert count(own) == 5


def test_what_a_person_reads(terminal: Run, call: Run, own: str) -> None:
    tried = terminal("prune", "--keep-last", "5", "--dry-run", "--store", own)
    assert tried.code == 0
    assert "7 checkpoints of 1 thread" in tried.out
    assert "or so would go" in " ".join(tried.out.split())
    done = call("prune", "--keep-last", "5", "--store", own)
    assert (done.code, done.err) == (0, "")
    assert "Thread kept stays as it is: its metadata says retention: keep." in done.out
    assert "went; looked at 2 threads" in done.out


def test_limits(call: Run, own: str) -> None:
    assert call("prune", "--max-age", "1d", "--store", own, "--json").json["checkpoints"] == 0
    assert call("prune", "--idle", "30d", "--store", own, "--json").json["checkpoints"] == 0
    assert call("prune", "--max-bytes", "1GB", "--store", own, "--json").json["checkpoints"] == 0
    one = call("prune", "--keep-last", "4", "--thread", "kept", "--store", own, "--json").json
    assert one["looked_at"] == 1
    assert call("prune", "--max-age", "0", "--store", own, "--json").json["checkpoints"] == 11
    gone = call("prune", "--idle", "0s", "--store", own, "--json").json
    assert [t["deleted"] for t in gone["threads"] if t["thread_id"] == "talk"] == [True]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "nothing says what to keep"),
        (("--max-age", "soon"), "max_age='soon' is not a duration"),
        (("--keep-last", "0"), "retention.keep_last=0 is no number from 1 on"),
        (("--keep-last", "1", "--thread", "nowhere"), "there is no thread 'nowhere'"),
    ],
)
def test_bad_use(call: Run, own: str, arguments: tuple[str, ...], told: str) -> None:
    done = call("prune", *arguments, "--store", own)
    assert (done.code, done.out) == (2, "")
    assert told in done.err
    assert count(own) == 12


def test_the_configured_limits(call: Run, own: str, tmp_path: Path) -> None:
    (tmp_path / "charm.yaml").write_text(
        "runtime:\n  memory:\n    provider: local\n    config:\n"
        f"      path: {own.removeprefix('sqlite:///')}\n      retention: {{keep_last: 3, idle_ttl: 30d}}\n"
    )
    assert call("prune", "--json").json["checkpoints"] == 9
    assert count(own) == 3


def test_compact(call: Run, own: str, conforms: Callable[[Any, Any], bool]) -> None:
    call("delete", "talk", "--yes", "--store", own)
    report = call("compact", "--store", own, "--json").json
    assert conforms(report, reports.Compaction)
    assert report["complete"]
    assert report["after"] <= report["before"]
    assert report["after"] == Path(own.removeprefix("sqlite:///")).stat().st_size
    again = call("compact", "--store", own)
    assert "there was nothing to give back" in again.out


def test_no_file_to_compact(call: Run, tmp_path: Path) -> None:
    missing = call("compact", "--store", f"sqlite:///{tmp_path}/none.db")
    assert missing.code == 2
    assert not (tmp_path / "none.db").exists()
