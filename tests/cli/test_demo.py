from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from charm_checkpoint.cli import reports
from charm_checkpoint.cli.demo import play
from charm_checkpoint.cli.demo.device import NOTE, REQUEST
from charm_checkpoint.cli.demo.process import DeviceProcess, ended_by
from charm_checkpoint.cli.demo.proofs import Run as Played
from charm_checkpoint.cli.demo.proofs import prove
from charm_checkpoint.errors import CheckpointStoreError

Run = Callable[..., Any]


def test_json_with_its_file_kept(
    run: Run, tmp_path: Path, conforms: Callable[[Any, Any], bool]
) -> None:
    report = run("demo", "--json", "--keep", TMPDIR=str(tmp_path)).json
    assert conforms(report, reports.Demonstration)
    assert report["ok"]
    assert report["killed_by"] == "SIGKILL"
    assert len(set(report["processes"].values())) == 3
    assert len(report["proofs"]) == 9

    # What it said is what anyone can look up.
    (file,) = tmp_path.glob("*/threads.db")
    assert report["store"] == f"sqlite:{file}"
    looked_up = run("history", report["thread_id"], "--store", f"sqlite:///{file}", "--json").json
    assert looked_up["checkpoints"] == report["checkpoints"]


def test_on_a_terminal(terminal: Run, tmp_path: Path) -> None:
    # Neither the environment's own store nor its tracing have a part in it.
    elsewhere = {"CHARM_MEMORY_PROVIDER": "nosuch", "LANGSMITH_TRACING": "true"}
    done = terminal("demo", TMPDIR=str(tmp_path), NO_COLOR="1", **elsewhere)
    assert done.code == 0, done.out
    lines = done.out.splitlines()
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80
    for told in (REQUEST, "laptop is killed while it waits", "SIGKILL", NOTE, "All of it holds"):
        assert told in done.out
    assert list(tmp_path.iterdir()) == []  # nothing is left


def test_without_langgraph(environment: dict[str, str]) -> None:
    code = (
        "import sys; sys.modules['langgraph.graph'] = None; "
        "from charm_checkpoint.cli import main; sys.exit(main(['demo']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert 'pip install "charm-checkpoint[demo]"' in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_process_that_fails_is_told(tmp_path: Path) -> None:
    process = DeviceProcess("begin", "laptop", tmp_path, "sqlite://wrong", "t")
    with process, pytest.raises(CheckpointStoreError, match="three slashes") as told:
        process.tells()
    assert str(told.value).startswith("the demo's laptop failed (exit code 1): ")


def test_a_process_does_not_outlive_a_failure(tmp_path: Path) -> None:
    def fail(process: DeviceProcess) -> None:
        with process:
            process.tells()
            raise RuntimeError("a failure of the demo")

    process = DeviceProcess("begin", "laptop", tmp_path, "sqlite:///t.db", "t")
    with pytest.raises(RuntimeError, match="of the demo"):
        fail(process)
    assert ended_by(process.wait()) == "SIGKILL"


# -- the proofs: each fails when its claim does not hold ---------------------------------------------------------------


def played() -> Played:
    devices = ["laptop", "laptop", "laptop", "phone", "phone", "server"]
    ids = [f"id{i}" for i in range(6)]
    steps: list[Any] = [
        {
            "checkpoint_id": ids[i],
            "parent_id": ids[i - 1] if i else None,
            "step": i - 1,
            "source": "loop",
            "device": devices[i],
            "created_at": None,
            "is_head": i == 5,
            "is_branch": False,
        }
        for i in reversed(range(6))
    ]
    left = {
        "checkpoint_id": "id2",
        "step": 1,
        "next": ["approve"],
        "questions": ["Book it?"],
        "messages": [REQUEST, "Found."],
    }
    said = [REQUEST, "Found.", "yes", "Booked."]
    return Played(
        laptop={"pid": 11, "found": left},
        exit_code=-9 if os.name == "posix" else 1,
        phone={
            "pid": 12,
            "found": dict(left),
            "ran": ["search in process 11", "approve in process 12", "book in process 12"],
            "messages": said,
        },
        server={"pid": 13, "history": [{"content": text} for text in said], "graph_code": False},
        steps=steps,
        messages=[*said, NOTE],
    )


def test_all_proofs_hold_for_what_should_happen() -> None:
    assert [proof["claim"] for proof in prove(played()) if not proof["holds"]] == []


SPOILED: dict[str, Callable[[Played], Played]] = {
    "the laptop was killed while it waited": lambda run: run._replace(exit_code=0),
    "every device was a process of its own": lambda run: run._replace(
        server={**run.server, "pid": 12}
    ),
    "the phone found what the laptop had left": lambda run: run._replace(
        phone={**run.phone, "found": {**run.phone["found"], "step": 0}}
    ),
    "the phone went on from there": lambda run: run._replace(
        steps=[s if s["checkpoint_id"] != "id3" else {**s, "parent_id": "id1"} for s in run.steps]
    ),
    "no finished step ran again": lambda run: run._replace(
        phone={**run.phone, "ran": ["search in process 12", *run.phone["ran"]]}
    ),
    "no step is missing, no branch was left": lambda run: run._replace(
        steps=[s for s in run.steps if s["checkpoint_id"] != "id1"]
    ),
    "each step names the device that made it": lambda run: run._replace(
        steps=[{**s, "device": "laptop"} for s in run.steps]
    ),
    "an agent without a graph read it all": lambda run: run._replace(
        server={**run.server, "history": run.server["history"][1:]}
    ),
    "what it added is on the same thread": lambda run: run._replace(messages=run.messages[:-1]),
}


@pytest.mark.parametrize("claim", SPOILED)
def test_a_claim_that_does_not_hold_is_found_out(claim: str) -> None:
    assert claim in {p["claim"] for p in prove(SPOILED[claim](played())) if not p["holds"]}


def test_a_claim_that_does_not_hold_is_shouted(call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled = SPOILED["no finished step ran again"](played())
    monkeypatch.setattr(play, "_run", lambda path, screen: spoiled)
    done = call("demo")
    assert done.code == 1
    assert " NO  no finished step ran again" in done.out
    assert "1 of 9 claims do not hold" in done.out


def test_every_claim_can_fail() -> None:
    assert {proof["claim"] for proof in prove(played())} == set(SPOILED)
