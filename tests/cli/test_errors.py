"""Bad use and bad luck: one line on standard error, the right exit code, no secrets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["threads", "--colour"], "No such option: --colour"),
        (["thread"], "No such command 'thread'"),
        (["show"], "Missing argument 'THREAD'"),
        (["threads", "--limit", "many"], "--limit"),
        (["threads", "--limit", "-1"], "--limit"),
        (["show", "nobody"], "there is no thread 'nobody'"),
        (["show", ""], "thread id is empty"),
        (
            ["threads", "--status", "waiting"],
            "idle, interrupted or failed",
        ),
        (["threads", "--label", "ann"], "NAME=VALUE"),
        (
            ["threads", "--label", "step=1"],
            "no thread can be found by 'step'",
        ),
        (["threads", "--store", "no such thing"], "neither a provider's name nor a URL"),
        (["threads", "--store", "nosuch://me:hunter2@host/db"], "pip install charm-memory-nosuch"),
        (["threads", "--store", "sqlite:///typo.db"], "typo.db does not exist"),
        (["threads", "--store", "sqlite:///${NOT_SET_ANYWHERE}"], "NOT_SET_ANYWHERE"),
    ],
)
def test_bad_use(call: Run, tmp_path: Path, arguments: list[str], told: str) -> None:
    done = call(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("charm-checkpoint: ")
    assert done.err.count("\n") == 1
    assert told in done.err
    assert "hunter2" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_no_command(call: Run) -> None:
    done = call()
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: charm-checkpoint")


@pytest.mark.parametrize("arguments", [["threads"], ["show", "t", "--json"]])
def test_database_that_fails(call: Run, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "t.db").write_text("no database " * 100)
    done = call(*arguments, "--store", "sqlite:///t.db")
    assert (done.code, done.out) == (1, "")
    assert "not a SQLite database" in done.err
    assert done.err.count("\n") == 1


def test_charm_yaml_is_used_and_its_secrets_stay_secret(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "charm.yaml"
    config.write_text(
        "runtime: {memory: {provider: local, config: {path: ./a.db, pasword: hunter2}}}"
    )
    done = run("threads")
    assert (done.code, done.out) == (2, "")
    assert "does not know pasword" in done.err
    assert "hunter2" not in done.err
    config.write_text("runtime: {memory: {provider: local, config: {path: ./a.db}}}")
    assert "a.db" in run("threads").out


def test_provider_that_is_not_installed_is_warned_of(run: Run, tmp_path: Path) -> None:
    (tmp_path / "charm.yaml").write_text("runtime: {memory: {provider: nosuch}}")
    done = run("threads")
    assert done.code == 0
    assert done.err.startswith(
        "charm-checkpoint: warning: memory provider 'nosuch' is not installed"
    )
    assert done.err.count("\n") == 1


def test_reader_that_leaves_early(environment: dict[str, str], url: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "charm_checkpoint.cli", "history", "forked", "--store", url],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_output_that_knows_no_unicode(run: Run, url: str) -> None:
    done = run("history", "forked", "--store", url, PYTHONIOENCODING="ascii")
    assert (done.code, done.err) == (0, "")
    assert "\\u25cf" in done.out


def test_version_and_help_import_nothing_heavy(environment: dict[str, str]) -> None:
    code = (
        "import sys; from charm_checkpoint.cli import main; main(['--version']); main(['threads', '--help']); "
        "print([m for m in ('langgraph', 'langchain_core', 'sqlite3', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("charm-checkpoint ")
    assert done.stdout.splitlines()[-1] == "[]"
