"""A remote that does not have any more what it had said was durable."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from charm_checkpoint import open_store
from charm_checkpoint.replica import ReplicaStore

Devices = tuple[ReplicaStore, ReplicaStore]


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    return tmp_path / "remote.db"


@contextmanager
def devices(remote: Path) -> Iterator[Devices]:
    with store(remote, "laptop") as laptop, store(remote, "phone") as phone:
        yield laptop, phone


def store(remote: Path, device: str) -> ReplicaStore:
    path = str(remote.with_name(f"{device}.db"))
    options = {"busy_timeout": 0.05, "flush_timeout": 0, "device": device}
    opened = open_store(f"sqlite:///{remote}", replica=path, **options)
    assert isinstance(opened, ReplicaStore)
    return opened


def say(store: ReplicaStore, text: str) -> None:
    store.append_messages("t", [{"role": "user", "content": text}])
    assert store.flush(60)


def said(store: ReplicaStore) -> list[str]:
    return [message["content"] for message in store.load_messages("t")]


def copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as ours, closing(sqlite3.connect(target)) as theirs:
        ours.backup(theirs)


def test_a_thread_that_was_lost_comes_back_with_the_next_step(remote: Path) -> None:
    with devices(remote) as (laptop, phone):
        say(laptop, "one")
        assert said(phone) == ["one"]
    for file in remote.parent.glob("remote.db*"):
        file.unlink()
    with devices(remote) as (laptop, phone):
        assert said(laptop) == said(phone) == ["one"]
        say(laptop, "two")
        assert said(laptop) == said(phone) == ["one", "two"]
        assert not laptop.conflicts()


def test_a_restored_backup_is_the_thread_and_what_waited_a_branch(remote: Path) -> None:
    backup = remote.with_name("backup.db")
    with devices(remote) as (laptop, phone):
        say(laptop, "one")
        copy(remote, backup)
        say(laptop, "two")
        with closing(sqlite3.connect(remote, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            laptop.append_messages("t", [{"role": "user", "content": "three"}])
        copy(backup, remote)
        assert laptop.flush(60)
        assert said(laptop) == said(phone) == ["one"]
        (conflict,) = laptop.conflicts()
        laptop.promote(conflict)
        assert said(laptop) == said(phone) == ["one", "two", "three"]
