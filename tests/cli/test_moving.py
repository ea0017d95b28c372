"""`copy`, `export`, `import` and `fork`: as a person uses them, and by their JSON."""

from __future__ import annotations

import gzip
import json
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.sqlite import SqliteSaver

from charm_checkpoint import open_store
from charm_checkpoint.cli import reports
from tests.moving.support import at, messages

from .conftest import COMMAND

Run = Callable[..., Any]
Conforms = Callable[[Any, Any], bool]

TARGET = "sqlite:///target.db"


def threads(call: Run, store: str) -> dict[str, Any]:
    listed = call("threads", "--store", store, "--json").json["threads"]
    return {thread["thread_id"]: thread for thread in listed}


# -- copy --------------------------------------------------------------------------------------------------------------


def test_copy(call: Run, url: str, conforms: Conforms, tmp_path: Path) -> None:
    planned = call("copy", url, TARGET, "--dry-run", "--json").json
    assert planned["dry_run"]
    assert not planned["verified"]
    assert not (tmp_path / "target.db").exists()
    report = call("copy", url, TARGET, "--json").json
    for each in (planned, report):
        assert conforms(each, reports.Copy)
        assert {t["outcome"] for t in each["threads"]} == {"copied"}
        assert each["checkpoints"] == sum(t["checkpoints"] for t in each["threads"])
    assert report["verified"]
    assert (tmp_path / "target.db").stat().st_mode & 0o777 == 0o600
    assert threads(call, TARGET) == threads(call, url)
    again = call("copy", url, TARGET, "--json").json
    assert {t["outcome"] for t in again["threads"]} == {"same"}
    assert again["checkpoints"] == 0


def test_copy_tells_what_it_did(
    call: Run, url: str, plain: Callable[[str], bool], odd: str
) -> None:
    told = call("copy", url, TARGET, "--thread", "trip", "--dry-run").out
    assert told.startswith("1 thread would be copied to sqlite:")
    assert "compared" not in told
    told = call("copy", url, TARGET, "--thread", "trip", "--thread", odd).out
    assert told.startswith("2 threads copied to sqlite:")
    assert told.endswith("Every checkpoint was read back and compared.\n")
    assert call("copy", url, TARGET, "--thread", odd).out.startswith("1 thread is there already.")
    open_store(f"sqlite:///{Path('target.db').absolute()}").append_messages(
        odd, [{"role": "user", "content": "x"}]
    )
    done = call("copy", url, TARGET, "--on-existing", "skip")
    assert done.code == 1
    assert plain(done.out)
    assert "was left as it is: its checkpoint" in done.out
    done = call("copy", url, TARGET)
    assert (done.code, done.out) == (1, "")
    assert "in another state" in done.err


def test_copy_brings_up_to_date(call: Run, tmp_path: Path) -> None:
    with open_store(f"sqlite:///{tmp_path}/a.db") as store:
        store.append_messages("t", [{"role": "user", "content": "one"}])
        call("copy", "sqlite:///a.db", TARGET)
    with open_store(f"sqlite:///{tmp_path}/a.db") as store:
        store.append_messages("t", [{"role": "user", "content": "two"}])
    assert call("copy", "sqlite:///a.db", TARGET).out.startswith("1 thread brought up to date.")
    with open_store(f"sqlite:///{tmp_path}/target.db") as store:
        assert [m["content"] for m in store.load_messages("t")] == ["one", "two"]


def test_copy_from_langgraphs_sqlite_saver(call: Run, tmp_path: Path) -> None:
    with SqliteSaver.from_conn_string(str(tmp_path / "theirs.db")) as saver:
        messages(saver).invoke({"messages": [("user", "hi")]}, at("t"))
    before = (tmp_path / "theirs.db").read_bytes()
    report = call("copy", "sqlite:///theirs.db", TARGET, "--json").json
    assert report["source"].startswith("SqliteSaver's ")
    assert (tmp_path / "theirs.db").read_bytes() == before
    assert call("show", "t", "--store", TARGET, "--json").json["message_count"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["missing.db", TARGET], 2, "neither a provider's name nor a URL"),
        (["sqlite:///missing.db", TARGET], 2, "missing.db does not exist"),
        (["URL", "URL"], 2, "are both"),
        (["URL", TARGET, "--thread", "nowhere"], 2, "there is no thread 'nowhere'"),
        (["URL", TARGET, "--on-existing", "merge"], 2, "is not one of fail, skip"),
        (["URL", "nosuchprovider"], 2, "not installed"),
        (["URL"], 2, "TO"),
    ],
)
def test_bad_use_of_copy(call: Run, url: str, arguments: list[str], code: int, why: str) -> None:
    done = call("copy", *(url if argument == "URL" else argument for argument in arguments))
    assert (done.code, done.out) == (code, "")
    assert why in done.err
    assert not Path("missing.db").exists()


def test_a_bar_on_a_terminal(terminal: Run, run: Run, url: str) -> None:
    done = terminal("copy", url, TARGET)
    assert done.code == 0
    assert "Copying" in done.out
    assert done.out.splitlines()[-1].endswith("compared.")
    piped = run("copy", url, "sqlite:///other.db")
    assert (piped.code, piped.err) == (0, "")


# -- export and import -------------------------------------------------------------------------------------------------


def test_export_and_import(call: Run, url: str, conforms: Conforms, tmp_path: Path) -> None:
    report = call("export", "-o", "all.gz", "--store", url, "--json").json
    assert conforms(report, reports.Export)
    assert set(report["threads"]) == set(threads(call, url))
    assert report["bytes"] == (tmp_path / "all.gz").stat().st_size
    assert (tmp_path / "all.gz").stat().st_mode & 0o777 == 0o600
    planned = call("import", "all.gz", "--store", TARGET, "--dry-run", "--json").json
    assert not (tmp_path / "target.db").exists()
    done = call("import", "all.gz", "--store", TARGET, "--json").json
    for each in (planned, done):
        assert conforms(each, reports.Copy)
        assert each["checkpoints"] == report["checkpoints"]
    assert threads(call, TARGET) == threads(call, url)
    assert call("import", "all.gz", "--store", TARGET).out.startswith(
        "5 threads are there already."
    )


def test_export_chooses(call: Run, url: str) -> None:
    def exported(*arguments: str) -> list[str]:
        Path("x.gz").unlink(missing_ok=True)
        found = call("export", "-o", "x.gz", "--store", url, "--json", *arguments).json["threads"]
        assert isinstance(found, list)
        return found

    assert exported("talk", "trip") == ["talk", "trip"]
    assert exported("--status", "failed") == ["broken"]
    assert exported("--label", "user=ann", "--label", "seat=5") == ["trip"]
    assert exported("--label", "user=bob") == []
    told = call("export", "-o", "y.gz", "talk", "--store", url).out
    assert told.startswith("Wrote 1 thread (")


def test_through_a_pipe(run: Run, url: str, tmp_path: Path, environment: dict[str, str]) -> None:
    exporting = [*COMMAND, "export", "talk", "-o", "-", "--store", url]
    importing = [*COMMAND, "import", "-", "--store", TARGET, "--json"]
    options: Any = {"cwd": tmp_path, "env": environment, "check": True, "stdout": subprocess.PIPE}
    file = subprocess.run(exporting, **options).stdout
    assert json.loads(gzip.decompress(file).splitlines()[0])["version"] == 1
    done = json.loads(subprocess.run(importing, input=file, **options).stdout)
    assert [(t["thread_id"], t["outcome"]) for t in done["threads"]] == [("talk", "copied")]
    assert done["source"] == "standard input"


def test_nothing_is_written_over(call: Run, url: str) -> None:
    Path("there.gz").write_text("mine")
    done = call("export", "-o", "there.gz", "--store", url)
    assert (done.code, done.out) == (2, "")
    assert "is there already" in done.err
    assert Path("there.gz").read_text() == "mine"
    # What could not be completed is not there, nor is anything else left behind.
    assert call("export", "nowhere", "-o", "x.gz", "--store", url).code == 2
    assert [path.name for path in Path().iterdir()] == ["there.gz"]


def test_an_export_that_fails_leaves_nothing(call: Run, tmp_path: Path) -> None:
    with open_store(f"sqlite:///{tmp_path}/a.db") as store:
        store.append_messages("t", [{"role": "user", "content": "x" * 5000}])
        store.append_messages("t", [{"role": "user", "content": "y" * 5000}])
    with closing(sqlite3.connect(tmp_path / "a.db")) as db:
        db.execute("UPDATE checkpoints SET versions = '{'")
        db.commit()
    done = call("export", "-o", "x.gz", "--store", "sqlite:///a.db")
    assert (done.code, done.out) == (1, "")
    assert "damaged" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["a.db"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["export", "-o", "no/such/folder/x.gz"], "cannot be written (No such file or directory)"),
        (["export"], "--output"),
        (["export", "-o", "-", "--json"], "without --json"),
        (["export", "talk", "--status", "idle", "-o", "x.gz"], "not both"),
        (["export", "--label", "user", "-o", "x.gz"], "NAME=VALUE"),
        (["export", "--status", "odd", "-o", "x.gz"], "never 'odd'"),
        (["import", "nowhere.gz"], "nowhere.gz cannot be read (No such file or directory)"),
    ],
)
def test_bad_use_of_files(call: Run, url: str, arguments: list[str], why: str) -> None:
    done = call(*arguments, "--store", url)
    assert (done.code, done.out) == (2, "")
    assert why in done.err


def test_a_file_is_no_text_for_a_terminal(terminal: Run, url: str) -> None:
    done = terminal("export", "-o", "-", "--store", url)
    assert done.code == 2
    assert "send it to a file or a pipe" in " ".join(done.out.split())


def test_a_damaged_file(call: Run, url: str) -> None:
    call("export", "-o", "all.gz", "--store", url)
    Path("all.gz").write_bytes(Path("all.gz").read_bytes()[:-20])
    done = call("import", "all.gz", "--store", TARGET)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("charm-checkpoint: all.gz is cut short; nothing was read from it")
    assert len(done.err.splitlines()) == 1


# -- fork --------------------------------------------------------------------------------------------------------------


def test_fork(call: Run, url: str, conforms: Conforms) -> None:
    call("copy", url, TARGET)
    steps = call("history", "talk", "--store", TARGET, "--json").json["checkpoints"]
    report = call("fork", "talk", "new", "--store", TARGET, "--json").json
    assert conforms(report, reports.Fork)
    assert report["checkpoint_id"] == steps[0]["checkpoint_id"]
    asked = threads(call, TARGET)["forked"]
    history = call("history", "forked", "--store", TARGET, "--json").json["checkpoints"]
    question = next(step for step in history if step["step"] == 1)
    told = call(
        "fork", "forked", "again", "--at", question["checkpoint_id"][:23], "--store", TARGET
    )
    assert (
        told.out == f"Thread again goes on from checkpoint {question['checkpoint_id']} of forked.\n"
    )
    assert asked["status"] == "idle"
    assert threads(call, TARGET)["again"]["status"] == "interrupted"
    shown = call("show", "again", "--store", TARGET, "--json").json
    assert [i["value"] for i in shown["interrupts"]] == [{"question": "Book it?", "euros": 31}]


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["nowhere", "new"], 2, "there is no thread 'nowhere'"),
        (["talk", "trip"], 1, "already has checkpoints"),
        (["talk", "new", "--at", "zz"], 2, "no checkpoint whose id begins with 'zz'"),
        (["talk", ""], 2, "is empty"),
    ],
)
def test_bad_use_of_fork(call: Run, url: str, arguments: list[str], code: int, why: str) -> None:
    done = call("fork", *arguments, "--store", url)
    assert (done.code, done.out) == (code, "")
    assert why in done.err
