"""Files of every format that this project has written, made by the releases of their time (`make.py`): all are read."""

from __future__ import annotations

import gzip
import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from langgraph.types import Command

from charm_checkpoint import import_threads, open_store
from charm_checkpoint.errors import BackendCorrupt
from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.moving import copy_threads
from charm_checkpoint.replica import ReplicaBackend, ReplicaStore
from charm_checkpoint.replica.schema import REPLICA
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.sqlite import SqliteBackend
from charm_checkpoint.sqlite.schema import FORMAT, THREADS
from charm_checkpoint.store import CheckpointStore, store_from_saver
from tests.golden.make import REMOTE, ask, at, talk, told
from tests.moving.support import held, names

HERE = Path(__file__).parent
FILES = sorted(path.name.removesuffix(".db.gz") for path in HERE.glob("*.db.gz"))


def expected(name: str) -> Any:
    return json.loads(gzip.decompress((HERE / f"{name}.json.gz").read_bytes()))


def unpacked(name: str, folder: Path) -> Path:
    path = folder / f"{name}.db"
    path.write_bytes(gzip.decompress((HERE / f"{name}.db.gz").read_bytes()))
    path.chmod(0o600)
    return path


def opened(name: str, path: Path) -> CheckpointStore:
    if name.startswith("replica"):
        store = open_store(REMOTE, replica=str(path), device="golden")
    else:
        store = open_store(f"sqlite:///{path}", device="golden")
    assert isinstance(store, CheckpointStore)
    return store


def goes_on(store: CheckpointStore) -> None:
    """Questions that wait are answered, chats go on, what was deleted stays so."""
    saver = store.get_langgraph_checkpointer()
    asking, chat = ask(saver), talk(saver)
    waiting = {info.thread_id: info.status for info in store.threads()}
    assert waiting["waiting"] == waiting["half"] == "interrupted"
    assert waiting["answered"] == "idle"
    assert "gone" not in waiting
    for thread, answers in (("waiting", ("one", "two")), ("half", ("two",))):
        for answer in answers:
            assert asking.get_state(at(thread)).next == ("inner",)
            done = asking.invoke(Command(resume=answer), at(thread))
        assert done["items"][-2:] == ["one", "two"]
    state = chat.get_state(at("forked")).values["items"]
    assert [item for item in state if len(item) < 10] == ["a", "right"]
    told = chat.invoke({"items": ["more"]}, at("chat"))
    assert len(told["items"]) == 8
    assert told["note"] == "8"
    assert store.load_messages("messages") == [{"role": "user", "content": "hi"}]
    store.append_messages("messages", [{"role": "user", "content": "still here"}])
    assert len(store.load_messages("messages")) == 2
    store.fork("chat", "new")
    store.delete("chat")
    assert len(chat.invoke({"items": ["more"]}, at("new"))["items"]) == 10


def test_every_format_has_a_file() -> None:
    made = {tuple(name.split("-")[:2]) for name in FILES}
    assert made == {(k, str(n)) for k in ("threads", "replica") for n in range(1, FORMAT + 1)}
    for name in FILES:
        data = gzip.decompress((HERE / f"{name}.db.gz").read_bytes())
        kind = REPLICA if name.startswith("replica") else THREADS
        assert int.from_bytes(data[60:64], "big") == int(name.split("-")[1])
        assert int.from_bytes(data[68:72], "big") == kind.application_id


@pytest.mark.parametrize("name", FILES)
def test_all_of_it_is_read(name: str, tmp_path: Path) -> None:
    with opened(name, unpacked(name, tmp_path)) as store:
        found = told(store)
        assert found == expected(name)
        assert len(found["chat"]) == 12
        goes_on(store)


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("replica")])
def test_what_a_replica_had_to_send_is_sent(name: str, tmp_path: Path) -> None:
    class Remote(SqliteBackend):
        """What the file is the replica of, there at last."""

        @property
        def name(self) -> str:
            return "postgresql://127.0.0.1:1/threads"

    path = unpacked(name, tmp_path)
    with opened(name, path) as store:
        assert isinstance(store, ReplicaStore)
        waiting = store.sync_status()
        assert waiting.waiting.entries == 86
        assert waiting.remote == Remote(tmp_path / "x").name
    remote = Remote(tmp_path / "remote.db")
    replica = ReplicaBackend(path, remote)
    replica.setup()
    assert replica.flush(20)
    assert names(remote) == expected(name).keys()
    for thread in names(remote):
        assert held(remote, thread) == held(replica, thread)
    replica.close()


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("threads")])
def test_it_can_be_copied(name: str, tmp_path: Path) -> None:
    target = CheckpointSaver(MemoryBackend())
    with opened(name, unpacked(name, tmp_path)) as store:
        copy_threads(store, target)
    store = store_from_saver(target)  # type: ignore[assignment]
    assert told(store) == expected(name)


def test_an_exported_file() -> None:
    saver = CheckpointSaver(MemoryBackend(), device="golden")
    import_threads(io.BytesIO((HERE / "export-1.gz").read_bytes()), saver)
    store = store_from_saver(saver)
    assert isinstance(store, CheckpointStore)
    assert told(store) == expected("export-1")
    goes_on(store)


@pytest.mark.parametrize("name", FILES)
def test_a_newer_format_is_left_as_it_is(name: str, tmp_path: Path) -> None:
    path = unpacked(name, tmp_path)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {FORMAT + 1}")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = path.read_bytes()
    with (
        opened(name, path) as store,
        pytest.raises(
            BackendCorrupt, match=rf"format {FORMAT + 1}, this release knows {FORMAT}; .* Upgrade"
        ),
    ):
        list(store.threads())
    assert path.read_bytes() == before
