"""Erasing: nothing is left in any place, not even as bytes, and the receipt says so only where it is so."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from charm_checkpoint.erasure import Erased
from charm_checkpoint.errors import (
    BackendFull,
    BackendUnavailable,
    ConfigError,
    DeserializationError,
    InvalidIdError,
)
from charm_checkpoint.moving.copying import Copier
from charm_checkpoint.sqlite import LocalMemory
from charm_checkpoint.store import CheckpointStore
from tests.core.support import WAIT, place
from tests.replica.support import Device
from tests.retention.agents import agent
from tests.retention.conftest import MakeStore

SECRET = "Ann lives at 7 Hill Road"


def tell(store: CheckpointStore, thread_id: str, text: str, **metadata: Any) -> Any:
    graph = agent(store.get_langgraph_checkpointer())
    thread = place(thread_id)
    thread["metadata"] = metadata
    for turn in range(4):
        graph.invoke({"said": [f"{turn} {text} " + "and so on " * 150]}, thread)
    return graph


def holds(folder: Path, text: str) -> list[str]:
    """The files that have a text somewhere in their bytes."""
    return sorted(f.name for f in folder.iterdir() if text.encode() in f.read_bytes())


def test_no_byte_is_left(store: CheckpointStore, tmp_path: Path) -> None:
    for n in range(4):
        tell(store, f"ann-{n}", SECRET, user="ann")
        tell(store, f"bob-{n}", "Bob knows nothing", user="bob")
    assert holds(tmp_path, SECRET), "it would be found"
    receipt = store.erase(labels={"user": "ann"})
    assert receipt.done
    assert {t.thread_id for t in receipt.threads} == {f"ann-{n}" for n in range(4)}
    assert all(t.checkpoints > 20 for t in receipt.threads)
    assert [(p.gone, p.overwritten, p.error) for p in receipt.places] == [(True, True, None)]
    assert holds(tmp_path, SECRET) == []
    assert holds(tmp_path, "Bob knows nothing")
    assert {info.thread_id for info in store.threads()} == {f"bob-{n}" for n in range(4)}
    again = store.erase(labels={"user": "ann"})
    assert (again.threads, again.found, again.done) == ((), False, False)
    again = store.erase("ann-0")
    assert (again.threads, again.done) == ((Erased("ann-0", 0, True),), True)
    unknown = store.erase("ann-0", "nobody")
    assert (unknown.threads[1], unknown.done) == (Erased("nobody", 0, False), False)


def test_all_that_ever_was_of_a_subject(store: CheckpointStore, tmp_path: Path) -> None:
    """Threads that have another label by now, branches, and what a copy that broke off has left."""
    graph = tell(store, "given-away", SECRET, user="ann")
    past = next(graph.get_state_history(place("given-away"))).config
    tell(store, "given-away", "Bob has it now", user="bob")
    tell(store, "on-a-branch", "Bob", user="bob")
    states = list(graph.get_state_history(place("on-a-branch")))
    past = {**states[-1].config, "metadata": {"user": "ann"}}
    branch = graph.invoke({"said": [SECRET]}, past)
    assert branch
    graph.invoke({"said": ["Bob again"]}, {**states[0].config, "metadata": {"user": "bob"}})
    tell(store, "bobs", "Bob knows nothing", user="bob")

    with LocalMemory({"path": str(tmp_path / "other.db")}) as other:
        tell(other, "half", SECRET, user="ann")

        class Dies(Exception):
            pass

        def die(*_: object) -> Any:
            raise Dies

        copier = Copier(other.source(), store.get_langgraph_checkpointer().engine)
        copier._set_heads = die  # type: ignore[method-assign]
        with pytest.raises(Dies):
            copier.copy("half")
        assert other.erase("half").done
    assert {info.thread_id for info in store.threads()} == {"given-away", "on-a-branch", "bobs"}
    assert list(store.threads(labels={"user": "ann"})) == []
    counts: list[int] = []
    found = store.threads_of({"user": "ann"}, on_looked=counts.append)
    assert sorted(found) == ["given-away", "half", "on-a-branch"]
    receipt = store.erase(labels={"user": "ann"})
    assert receipt.done
    assert sorted(t.thread_id for t in receipt.threads) == sorted(found)
    assert holds(tmp_path, SECRET) == []
    assert [info.thread_id for info in store.threads()] == ["bobs"]


def test_labels(store: CheckpointStore) -> None:
    for name, user in (("number", 17), ("text", "17"), ("truth", True)):
        tell(store, name, SECRET, user=user, tenant="a")
    tell(store, "elsewhere", SECRET, user=17, tenant="b")
    tell(store, "turns", SECRET, user=17, tenant="b")
    tell(store, "turns", SECRET, user=18, tenant="a")
    assert sorted(store.threads_of({"user": 17})) == ["elsewhere", "number", "turns"]
    assert store.threads_of({"user": 1}) == []
    assert sorted(store.threads_of({"user": (17, "17"), "tenant": "a"})) == ["number", "text"]
    for bad in ({}, {"user": ()}, {"user": 1.5}, {"step": 1}):
        with pytest.raises(ConfigError):
            store.threads_of(bad)  # type: ignore[arg-type]


def test_deleted_and_looked_for(store: CheckpointStore, tmp_path: Path) -> None:
    tell(store, "t", SECRET)
    receipt = store.delete("t")
    assert receipt.done
    assert [t.checkpoints > 20 for t in receipt.threads] == [True]
    assert [(p.gone, p.overwritten, p.error) for p in receipt.places] == [(True, None, None)]
    assert store.delete("t").done
    assert not store.delete("nobody").done


def test_a_reader_keeps_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "threads.db"
    with LocalMemory({"path": str(path), "busy_timeout": 0.1}) as store:
        tell(store, "t", SECRET)
        reader = sqlite3.connect(path)
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM checkpoints").fetchone()[0]
        receipt = store.erase("t")
        assert not receipt.done
        [there] = receipt.places
        assert (there.gone, there.overwritten) == (True, False)
        assert "another program reads the file" in str(there.error)
        reader.close()
        assert store.erase("t").done
        assert holds(tmp_path, SECRET) == []


def test_what_charmos_left(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(f'[{{"role": "user", "content": "{SECRET}"}}]')
    with LocalMemory({"path": str(tmp_path / "threads.db")}) as store:
        assert store.erase("t").done
    assert holds(tmp_path, SECRET) == []


def test_what_charmos_left_and_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.json").write_text("[]")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with LocalMemory({"path": str(tmp_path / "threads.db")}) as store:
        tell(store, "other", SECRET)
        monkeypatch.setattr(Path, "unlink", refuse)
        receipt = store.erase("t", "other")
        monkeypatch.undo()
        assert not receipt.done
        kept, gone = receipt.threads
        assert re.search(r"charmos left in .* \(Permission denied\)", str(kept.error))
        assert gone.error is None
        assert store.thread("other") is None
        assert store.erase("t").done


def damage(path: Path, thread_id: str, metadata: bytes = b"{{") -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE checkpoints SET metadata = ? WHERE thread_id = ?", (metadata, thread_id))
    db.close()


@pytest.mark.parametrize("metadata", [b"{{", b"[]"])
def test_beside_damaged_metadata(tmp_path: Path, metadata: bytes) -> None:
    """Whose it is nobody can tell. What can be told goes, and the receipt names the rest."""
    path = tmp_path / "threads.db"
    with LocalMemory({"path": str(path)}) as store:
        tell(store, "anns", SECRET, user="ann")
        tell(store, "whose", "Bob", user="bob")
        damage(path, "whose", metadata)
        with pytest.raises(DeserializationError, match=r"metadata .* of 'whose' is damaged"):
            store.threads_of({"user": "ann"})
        receipt = store.erase(labels={"user": "ann"})
        assert [t.thread_id for t in receipt.threads] == ["anns"]
        assert not receipt.done
        [there] = receipt.places
        assert there.gone
        assert "of 'whose' is damaged" in str(there.error)
        assert holds(tmp_path, SECRET) == []
        assert holds(tmp_path, "3 Bob")
        assert store.erase("whose").done
        assert holds(tmp_path, "3 Bob") == []


def test_one_of_several_fails(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go, and the receipt is given."""
    for name in "abc":
        tell(store, name, SECRET, user="ann")
    remove = LocalMemory._remove

    def no_room(self: LocalMemory, thread_id: str) -> bool:
        if thread_id == "b":
            raise BackendFull("no room at sqlite://me:secret@host/")
        return remove(self, thread_id)

    monkeypatch.setattr(LocalMemory, "_remove", no_room)
    receipt = store.erase(labels={"user": "ann"})
    assert not receipt.done
    assert receipt.found
    errors = {t.thread_id: t.error for t in receipt.threads}
    assert errors == {"a": None, "b": "no room at sqlite://***@host/", "c": None}
    assert [info.thread_id for info in store.threads()] == ["b"]
    assert "'b'" in str(receipt.places[0].error)


def test_a_database_that_goes_away(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every thread waits for it anew."""
    for name in "abc":
        tell(store, name, SECRET)
    asked: list[str] = []

    def away(self: LocalMemory, thread_id: str) -> bool:
        asked.append(thread_id)
        raise BackendUnavailable("not reached")

    monkeypatch.setattr(LocalMemory, "_remove", away)
    receipt = store.erase("a", "b", "c")
    assert asked == ["a"]
    assert [t.error for t in receipt.threads] == ["not reached"] * 3
    assert not receipt.done


def test_late_writes_do_not_bring_it_back(store: CheckpointStore, tmp_path: Path) -> None:
    graph = tell(store, "t", SECRET)
    state = graph.get_state(place("t"))
    assert store.erase("t").done
    with pytest.raises(Exception, match="was deleted"):
        graph.update_state(state.config, {"said": [SECRET]}, as_node="ask")
    assert holds(tmp_path, SECRET) == []


def test_begun_anew_is_not_done(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    tell(store, "t", SECRET)
    remove = LocalMemory._remove

    def and_begin_anew(self: LocalMemory, thread_id: str) -> bool:
        removed = remove(self, thread_id)
        self.save_messages(thread_id, [{"role": "user", "content": "here I am"}])
        return removed

    monkeypatch.setattr(LocalMemory, "_remove", and_begin_anew)
    for receipt in (store.erase("t"), store.delete("t")):
        assert not receipt.done
        assert "'t'" in str(receipt.places[0].error)


def test_what_came_meanwhile_is_not_done(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(store, "t", SECRET, user="ann")
    remove = LocalMemory._remove

    def and_begin_another(self: LocalMemory, thread_id: str) -> bool:
        removed = remove(self, thread_id)
        if thread_id == "t":
            tell(self, "t2", SECRET, user="ann")
        return removed

    monkeypatch.setattr(LocalMemory, "_remove", and_begin_another)
    receipt = store.erase(labels={"user": "ann"})
    assert not receipt.done
    assert "'t2'" in str(receipt.places[0].error)
    assert store.erase(labels={"user": "ann"}).done


def test_bad_input(store: CheckpointStore) -> None:
    with pytest.raises(ConfigError, match="name the threads"):
        store.erase()
    with pytest.raises(InvalidIdError):
        store.erase("")
    with pytest.raises(ConfigError, match="no thread can be found"):
        store.erase(labels={"user": 1.5})  # type: ignore[dict-item]


# -- replicas ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def device(make_store: MakeStore) -> Device:
    store = make_store("replica")
    assert isinstance(store, Device)
    return store


def test_here_and_there(device: Device, tmp_path: Path) -> None:
    tell(device, "sent", SECRET, user="ann")
    device.sync()
    tell(device, "other", "Bob", user="bob")
    receipt = device.erase(labels={"user": "ann"})
    assert receipt.done, receipt
    assert [t.thread_id for t in receipt.threads] == ["sent"]
    assert [Path(p.name.removeprefix("sqlite:")).name for p in receipt.places] == [
        "laptop.db",
        "remote.db",
    ]
    assert holds(tmp_path, SECRET) == []
    assert device.thread("other")


def test_only_in_the_outbox(device: Device, tmp_path: Path) -> None:
    device.away()
    tell(device, "t", SECRET, user="ann")
    receipt = device.erase("t", timeout=0.1)
    assert not receipt.done
    here, there = receipt.places
    assert here.done
    assert there.error
    assert holds(tmp_path, SECRET) == []
    device.line.cut = False
    assert device.erase("t").done
    assert holds(tmp_path, SECRET) == []


def test_only_behind(device: Device, tmp_path: Path) -> None:
    """What another device sent, and this one never saw."""
    with LocalMemory({"path": str(tmp_path / "remote.db")}) as elsewhere:
        tell(elsewhere, "t", SECRET, user="ann")
    assert holds(tmp_path, SECRET) == ["remote.db"]
    receipt = device.erase(labels={"user": "ann"})
    assert receipt.done
    assert receipt.threads[0].checkpoints > 20
    assert holds(tmp_path, SECRET) == []


def test_not_done_before_it_is_sent(device: Device, tmp_path: Path) -> None:
    tell(device, "t", SECRET)
    device.sync()

    def refuse(verb: str, args: tuple[Any, ...]) -> None:
        if verb == "delete":
            raise ConfigError("not this one")

    device.line.before = refuse
    receipt = device.erase("t", timeout=0.5)
    assert not receipt.done
    assert holds(tmp_path, SECRET) == ["remote.db"]
    device.line.before = None


def test_by_label_until_it_is_done(device: Device, tmp_path: Path) -> None:
    """Repeated as it was, it still knows whose threads these are: the store behind has them."""
    tell(device, "t", SECRET, user="ann")
    device.sync()
    device.away()
    receipt = device.erase(labels={"user": "ann"}, timeout=0.1)
    assert [t.thread_id for t in receipt.threads] == ["t"]
    assert [p.done for p in receipt.places] == [True, False]
    assert holds(tmp_path, SECRET) == ["remote.db"]
    with pytest.raises(BackendUnavailable):
        device.threads_of({"user": "ann"})
    device.line.cut = False
    receipt = device.erase(labels={"user": "ann"})
    assert receipt.done, receipt
    assert holds(tmp_path, SECRET) == []


def test_a_deletion_does_not_wait(device: Device, tmp_path: Path) -> None:
    tell(device, "t", SECRET)
    device.sync()
    device.away()
    made = len(device.line.made)
    receipt = device.delete("t")
    here, there = receipt.places
    assert here.done
    assert not there.done
    assert "in the background" in str(there.error)
    assert device.thread("t") is None
    device.line.cut = False
    receipt = device.delete("t", timeout=WAIT)
    assert receipt.done
    assert len(device.line.made) > made
