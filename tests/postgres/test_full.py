"""A disk that is really full: nothing of a step is stored, and the store goes on when there is room again."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from charm_checkpoint.errors import BackendFull
from charm_checkpoint.testing.colours import place
from charm_checkpoint.testing.scenarios import chat, turn
from charm_memory_postgres import PostgresMemory
from tests.postgres.server import Server, _unprivileged

SIZE = "64m"


@pytest.fixture
def small_disk(server: Server) -> Iterator[Path]:
    """A file system of its own, which the server may write to."""
    if sys.platform != "linux" or os.getuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root can mount the small disk that this needs")
    folder = server.folder / "small"
    folder.mkdir()
    options = f"size={SIZE}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"the small disk that this needs cannot be mounted: {mounted.stderr.strip()}")
    try:
        space = folder / "space"
        space.mkdir()
        shutil.chown(space, _unprivileged())
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def url(server: Server, small_disk: Path) -> Iterator[str]:
    """A database on the small disk."""
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute(f"CREATE TABLESPACE small LOCATION '{small_disk / 'space'}'".encode())
        admin.execute("CREATE DATABASE charm_small TABLESPACE small")
        yield server.url("charm_small")
        admin.execute("DROP DATABASE charm_small WITH (FORCE)")
        admin.execute("DROP TABLESPACE small")


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            return


def test_a_full_disk(url: str, small_disk: Path) -> None:
    filler = small_disk / "filler"
    large = random.Random(3).randbytes(1_000_000).hex()
    with PostgresMemory({"url": url}) as store:
        graph = chat(store.get_langgraph_checkpointer())
        graph.invoke(turn("before"), place())
        store.save_messages("talk", [{"role": "user", "content": "before"}])
        before = list(graph.get_state_history(place()))
        _fill(filler)
        for _ in range(2):
            with pytest.raises(BackendFull, match="no room left") as refused:
                graph.invoke(turn(large), place())
            assert isinstance(refused.value.__cause__, psycopg.errors.DiskFull)
            with pytest.raises(BackendFull):
                store.append_messages("talk", [{"role": "user", "content": large}])
        assert list(graph.get_state_history(place())) == before
        assert [m["content"] for m in store.load_messages("talk")] == ["before"]
        filler.unlink()
        assert graph.invoke(turn(large), place())["items"][2] == large
        store.append_messages("talk", [{"role": "user", "content": large}])
    with PostgresMemory({"url": url}) as store:
        assert [m["content"] for m in store.load_messages("talk")] == ["before", large]
        graph = chat(store.get_langgraph_checkpointer())
        items = graph.get_state(place()).values["items"]
        assert items == ["before", "said before", large, f"said {large}"]
