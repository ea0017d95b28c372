"""What `replica` in a config opens, and which files it takes for a replica's."""

from __future__ import annotations

import logging
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from charm_checkpoint import StorageManager, open_store
from charm_checkpoint.errors import BackendCorrupt, BackendError, BackendReadOnly, ConfigError
from charm_checkpoint.replica import ReplicaBackend, ReplicaOptions, ReplicaStore
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.sqlite import LocalMemory, SqliteBackend
from charm_checkpoint.store import BaseMemoryStore
from tests.core.support import WAIT, latest, place, put
from tests.replica.conftest import MakeDevice

TURN = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with nothing in it; all stores are closed at the end."""
    for name in ("CHARM_MEMORY_PROVIDER", "CHARM_WORKSPACE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    StorageManager.close_all()
    yield tmp_path
    StorageManager.close_all()


def replica(store: BaseMemoryStore) -> ReplicaStore:
    assert isinstance(store, ReplicaStore)
    return store


def backend_of(store: BaseMemoryStore) -> ReplicaBackend:
    found: Any = replica(store).get_langgraph_checkpointer().engine.backend
    return found


# -- configuration -----------------------------------------------------------------------------------------------------


def test_a_replica_of_a_url(folder: Path) -> None:
    store = replica(open_store("sqlite:///remote.db", replica=True))
    store.save_messages("t", TURN)
    assert store.flush(WAIT)
    status = store.sync_status()
    assert Path(status.path).parent == folder / "workspace" / ".charm" / "memory" / "replicas"
    assert status.remote == f"sqlite:{folder / 'remote.db'}"
    assert open_store("sqlite:///remote.db", replica=True) is store
    plain = open_store("sqlite:///remote.db")
    assert type(plain) is LocalMemory
    assert plain.load_messages("t") == TURN
    other = replica(open_store("sqlite:///other.db", replica=True))
    assert other.sync_status().path != status.path


@pytest.mark.parametrize("path", ["own.db", "sub/own.db", "~/own.db"])
def test_a_path(path: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder / "home"))
    store = replica(open_store("sqlite:///remote.db", replica=path))
    store.save_messages("t", TURN)
    expected = folder / path.replace("~", "home")
    assert store.sync_status().path == str(expected)
    assert expected.exists()


@pytest.mark.parametrize("written", ["true", "'${ON_THIS_DEVICE}'", "here.db"])
def test_charm_yaml(written: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ON_THIS_DEVICE", "true")
    monkeypatch.setenv("PATIENCE", "0.5")
    Path("charm.yaml").write_text(
        f"""
        runtime:
          memory:
            provider: sqlite
            config:
              path: remote.db
              replica: {written}
              wake_timeout: ${{PATIENCE}}
              max_outbox: 1000000
              on_offline: raise
              on_conflict: branch
              device: laptop
        """
    )
    store = replica(StorageManager.get_provider("local", {}))
    assert backend_of(store).options == ReplicaOptions(
        wake_timeout=0.5, max_outbox=1_000_000, on_offline="raise"
    )
    assert store.get_langgraph_checkpointer().device == "laptop"
    store.save_messages("t", TURN)
    assert store.flush(WAIT)
    assert store.thread("t").device == "laptop"
    assert Path("here.db").exists() == (written == "here.db")
    with LocalMemory({"path": "remote.db"}) as behind:
        assert behind.load_messages("t") == TURN


def test_no_replica(folder: Path) -> None:
    for value in (False, "false", None, ""):
        store = open_store("sqlite:///remote.db", replica=value)
        assert type(store) is LocalMemory
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"replica": 1}, "replica"),
        ({"replica": True, "wake_timeout": -1}, "wake_timeout"),
        ({"replica": True, "wake_timeout": "soon"}, "wake_timeout"),
        ({"replica": True, "max_staleness": float("nan")}, "max_staleness"),
        ({"replica": True, "max_outbox": True}, "max_outbox"),
        ({"replica": True, "flush_timeout": []}, "flush_timeout"),
        ({"replica": True, "on_offline": "wait"}, "on_offline"),
        ({"replica": True, "on_conflict": "merge"}, "on_conflict"),
        ({"replica": True, "wake_timout": 1}, "wake_timout"),
        ({"wake_timeout": 1}, "wake_timeout"),
        ({"replica": False, "on_offline": "raise"}, "on_offline"),
    ],
)
def test_what_is_not_valid(config: dict[str, Any], told: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        open_store("sqlite:///remote.db", **config)
    assert list(folder.iterdir()) == []


def test_a_provider_that_is_not_installed() -> None:
    """Local files stand in for it, and they need no replica."""
    with pytest.warns(RuntimeWarning, match="not installed"):
        store = open_store("mongo", url="mongo://h", replica=True)
    assert type(store) is LocalMemory


def test_no_secret_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """The server is not there."""
    url = "postgresql://ann:s3cret@127.0.0.1:1/db?password=s3cret"
    store = replica(open_store(url, replica=True))
    with caplog.at_level(logging.DEBUG):
        store.save_messages("t", TURN)
        status = store.sync_status()
    assert status.last_error is not None
    assert "s3cret" not in f"{status} {caplog.text} {backend_of(store).name}"
    store.close()
    assert "s3cret" not in caplog.text
    assert not list(Path().rglob("*s3cret*"))


# -- files -------------------------------------------------------------------------------------------------------------


def test_the_file_is_nobody_elses(device: MakeDevice, folder: Path) -> None:
    laptop = device("laptop")
    laptop.away()
    laptop.turn("one")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.glob("laptop.db*")}
    assert {"laptop.db", "laptop.db-wal", "laptop.db-shm"} <= modes.keys()
    assert set(modes.values()) == {0o600}


def test_a_replicas_file_is_no_store_of_its_own(device: MakeDevice, folder: Path) -> None:
    """Nothing of it would be sent."""
    laptop = device("laptop")
    laptop.turn("one")
    laptop.close()
    plain = SqliteBackend(folder / "laptop.db")
    with pytest.raises(BackendCorrupt, match=r"laptop\.db"):
        plain.setup()
    plain.close()
    assert device("laptop").said() == ["one"]


def test_a_store_of_its_own_is_no_replica(device: MakeDevice, folder: Path) -> None:
    saver = CheckpointSaver(SqliteBackend(folder / "laptop.db"))
    put(saver, place("t"), text="mine")
    saver.close()
    with pytest.raises(BackendCorrupt, match=r"laptop\.db"):
        device("laptop").turn("one")
    saver = CheckpointSaver(SqliteBackend(folder / "laptop.db"))
    assert latest(saver, "t") == {"text": "mine"}
    saver.close()


def test_the_file_of_another_remotes_replica(device: MakeDevice, folder: Path) -> None:
    laptop = device("laptop")
    laptop.turn("one")
    laptop.close()
    other = device("laptop", remote=SqliteBackend(folder / "other.db"))
    with pytest.raises(
        ConfigError, match=r"laptop\.db is the replica of .*remote\.db, not of .*other\.db"
    ):
        other.turn("two")
    assert not (folder / "other.db").exists()
    assert device("laptop").said() == ["one"]


def test_a_replica_of_itself(folder: Path) -> None:
    store = open_store("sqlite:///one.db", replica="one.db")
    with pytest.raises((BackendCorrupt, ConfigError)):
        store.save_messages("t", TURN)


def test_a_folder_that_cannot_be_written(folder: Path) -> None:
    (folder / "file").write_text("")
    store = open_store("sqlite:///remote.db", replica=str(folder / "file" / "replica.db"))
    with pytest.raises(BackendReadOnly, match="cannot be made or written"):
        store.save_messages("t", TURN)


# -- closing -----------------------------------------------------------------------------------------------------------


def test_closed_with_what_is_behind(folder: Path) -> None:
    store = replica(open_store("sqlite:///remote.db", replica="own.db"))
    store.save_messages("t", TURN)
    store.close()
    store.close()
    assert sorted(p.name for p in folder.iterdir()) == ["own.db", "own.db-shipper", "remote.db"]
    with pytest.raises(BackendError, match="was closed"):
        store.save_messages("t", TURN)
    again = open_store("sqlite:///remote.db", replica="own.db")
    assert again is not store
    assert again.load_messages("t") == TURN
