"""Encryption at rest: what the database holds tells nothing, and only what was stored in a place is read from it."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.serde.base import CipherProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from charm_checkpoint import CheckpointSaver, Encryption, open_store, store_from_saver
from charm_checkpoint.backend import Backend, Outcome, Scan, ThreadQuery, Unit
from charm_checkpoint.config import mask
from charm_checkpoint.errors import (
    BackendUnavailable,
    ConfigError,
    DeserializationError,
    ThreadDeletedError,
    ThreadExistsError,
)
from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.serializer import StrictSerializer
from charm_checkpoint.sqlite import SqliteBackend
from charm_checkpoint.store import CheckpointStore
from charm_checkpoint.testing import (
    DeltaContract,
    PullContract,
    ReadContract,
    ThreadContract,
    WriteContract,
)
from charm_checkpoint.testing.rows import AT, blob, contents, head, pending, put, store, write
from tests.core.support import Through, id_of, latest, opened, place
from tests.core.support import put as put_values
from tests.replica.support import Device
from tests.replica.test_delta import Device as DeltaDevice
from tests.replica.test_delta import Gate

KEY, OTHER = base64.b64encode(bytes(range(32))).decode(), base64.b64encode(b"o" * 32).decode()
SECRET = "the mole is in the embassy"


class Trip(MessagesState):
    note: str


def ask(state: Trip) -> dict[str, Any]:
    return {"messages": [("ai", f"{SECRET}: {interrupt(f'{SECRET}?')}")]}


def trip(saver: CheckpointSaver) -> Any:
    builder = StateGraph(Trip).add_node("ask", ask).add_edge(START, "ask")
    return builder.compile(checkpointer=saver)


# -- a store with a key is a store -------------------------------------------------------------------------------------


class TestDoor(WriteContract, ReadContract, PullContract, ThreadContract, DeltaContract):
    """The contract of a backend holds through the door, but for when a copy counts as made."""

    @pytest.fixture
    def backend(self) -> Backend:
        return Encryption(KEY).over(MemoryBackend())

    def reopen(self, backend: Any) -> Backend:
        return Encryption(KEY).over(backend._backend)

    def test_copy_copies_everything(self, ready: Backend) -> None:
        store(ready, put("1", None, blob("a"), format=3), put("2", "1", versions={"a": "1"}))
        store(ready, put("3", "1", fenced=True, on_conflict="branch"), put("9", namespace="sub:1"))
        store(ready, pending("1"), pending("2", write(idx=-1)))
        ready.copy("thread", "copy", at=AT + 1000)
        assert contents(ready, "copy") == contents(ready, "thread")
        assert (head(ready, "copy"), head(ready, "copy", "sub:1")) == ("2", "9")
        [row] = ready.threads(ThreadQuery(limit=1, thread_id="copy"))
        assert (row.created_at, row.updated_at) == (AT, AT)


def test_no_file_of_a_replica_holds_what_was_said(tmp_path: Path) -> None:
    remote = tmp_path / "remote.db"
    options = {"replica": str(tmp_path / "here.db"), "encryption": {"key": KEY}}
    with open_store(f"sqlite:///{remote}", **options) as opened_:
        graph = trip(opened_.get_langgraph_checkpointer())  # type: ignore[arg-type]
        graph.invoke({"messages": [("user", SECRET)], "note": SECRET * 100}, place("t"))
        graph.invoke(Command(resume=SECRET), place("t"))
        graph.invoke({"messages": [("user", SECRET)]}, place("t"))
        assert opened_.flush(60)  # type: ignore[attr-defined]
        assert len(opened_.load_messages("t")) == 3
    words = [w.encode() for w in ("mole", "embassy")]
    files = [f.read_bytes() for f in tmp_path.iterdir()]
    assert len(files) >= 2
    assert not [w for data in files for w in words if w in data]
    with open_store(f"sqlite:///{remote}", encryption={"key": KEY}) as there:
        assert there.load_messages("t")[0]["content"] == SECRET
        there.get_langgraph_checkpointer().delete_thread("t")  # type: ignore[union-attr]
        assert not list(there.threads())  # type: ignore[attr-defined]


def test_no_deltas_are_looked_for(tmp_path: Path) -> None:
    """Two ciphertexts have nothing in common: a repeated value is stored whole again, and no byte too many."""
    with opened(tmp_path / "t.db", encryption=Encryption(KEY)) as saver:
        config = place("t")
        for _ in range(10):
            config = put_values(saver, config, text="x" * 100_000)
        assert latest(saver, "t") == {"text": "x" * 100_000}
        values = saver.engine.backend._values  # type: ignore[attr-defined]
        assert not values._recent
    assert (tmp_path / "t.db").stat().st_size > 10 * 100_000


def test_the_stored_form_stays(tmp_path: Path) -> None:
    """What an earlier release wrote is read: format 1, byte for byte."""
    encryption, backend = Encryption(KEY), MemoryBackend()
    store(encryption.over(backend), put("1", None, blob("a", "1", b"value", "bytes")), pending("1"))
    found = backend.read("thread", "", None)
    assert (found.blobs[0].type, found.writes[0].type) == ("bytes+aesgcm", "bytes+aesgcm")
    assert found.blobs[0].data.hex() == GOLDEN_BLOB
    assert found.writes[0].data.hex() == GOLDEN_WRITE


GOLDEN_BLOB = "01749d0703067f6cc0eab7406524047e55da1c81606575dcbce974e313dbddc4aa130c7cdb93"
GOLDEN_WRITE = "01749d0703c8a235d3c18f6e9a4017bcd75f468dcf8b6155849e4962f5d4676539e940b226de8e9a"


# -- bound to its place ------------------------------------------------------------------------------------------------

Move = Callable[[MemoryBackend], None]


def _value(backend: MemoryBackend, thread: str = "thread", **change: Any) -> None:
    values = backend._threads[thread].namespaces[""].blobs
    values["a", "1"] = values["a", "1"]._replace(**change)


def _written(backend: MemoryBackend, **change: Any) -> None:
    rows = backend._threads["thread"].namespaces[""].writes["1"]
    rows["task", 0] = rows["task", 0]._replace(**change)


def _blob(backend: MemoryBackend, channel: str, version: str, thread: str = "thread") -> Any:
    return backend._threads[thread].namespaces[""].blobs[channel, version]


def _row(backend: MemoryBackend, task: str, checkpoint_id: str = "1", idx: int = 0) -> Any:
    return backend._threads["thread"].namespaces[""].writes[checkpoint_id][task, idx]


HARM: dict[str, Move] = {
    "another channel's value": lambda b: _value(b, data=_blob(b, "b", "1").data),
    "an earlier version": lambda b: _value(b, data=_blob(b, "a", "0").data),
    "another thread's value": lambda b: _value(b, data=_blob(b, "a", "1", "other").data),
    "a subgraph's value": lambda b: _value(
        b, data=b._threads["thread"].namespaces["sub"].blobs["a", "1"].data
    ),
    "another type": lambda b: _value(b, type="msgpack+aesgcm"),
    "a write for a value": lambda b: _value(b, data=_row(b, "task").data),
    "another task's write": lambda b: _written(b, data=_row(b, "task2").data),
    "another number's write": lambda b: _written(b, data=_row(b, "task", idx=1).data),
    "another checkpoint's write": lambda b: _written(b, data=_row(b, "task", "2").data),
    "a write to another channel": lambda b: _written(b, channel="b"),
    "a write from another place of the graph": lambda b: _written(b, task_path="x"),
    "plain text": lambda b: _value(b, type="bytes", data=b"value"),
    "a plain write": lambda b: _written(b, type="bytes", data=b"written"),
    "nothing": lambda b: _value(b, data=b""),
    "cut short": lambda b: _value(b, data=_blob(b, "a", "1").data[:-1]),
}


@pytest.mark.parametrize("harm", HARM)
def test_what_was_not_stored_there_is_not_read(harm: str) -> None:
    backend = MemoryBackend()
    door = Encryption(KEY).over(backend)
    for thread in ("thread", "other"):
        store(door, put("0", None, blob("a", "0"), thread=thread))
        store(door, put("1", "0", blob("a", "1"), blob("b", "1"), thread=thread))
    store(door, put("2", "1"), put("1", None, blob("a", "1"), namespace="sub"))
    store(door, pending("1", write(), write("task2"), write(idx=1)), pending("2"))
    HARM[harm](backend)
    with pytest.raises(DeserializationError, match="thread 'thread': the stored value of channel"):
        door.read("thread", "", "1")
    with pytest.raises(DeserializationError):
        door.scan(Scan(thread_id="thread"))
    assert door.read("thread", "", "0").blobs  # the others are there


@pytest.mark.parametrize("at", range(0, 40, 3))
def test_no_byte_can_be_altered(at: int) -> None:
    backend = MemoryBackend()
    door = Encryption(KEY).over(backend)
    store(door, put("1", None, blob("a", "1")))
    data = bytearray(_blob(backend, "a", "1").data)
    data[at % len(data)] ^= 1
    _value(backend, data=bytes(data))
    with pytest.raises(DeserializationError, match=r"altered|there is only|does not know"):
        door.read("thread", "", "1")


def test_ids_that_run_together_are_told_apart() -> None:
    backend = MemoryBackend()
    door = Encryption(KEY).over(backend)
    store(
        door,
        put("1", None, blob("bc", "1"), thread="a"),
        put("1", None, blob("c", "1"), thread="ab"),
    )
    names = backend._threads
    names["ab"].namespaces[""].blobs["c", "1"] = _blob(backend, "bc", "1", "a")._replace(
        channel="c"
    )
    with pytest.raises(DeserializationError):
        door.read("ab", "", None)


# -- repeated writes ---------------------------------------------------------------------------------------------------


class LosesAnswers(Through):
    """Stores everything, and loses every other answer."""

    lost = False

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        answer = self.inner.write(units)
        self.lost = not self.lost
        if self.lost:
            raise BackendUnavailable("the answer was lost")
        return answer


def test_a_lost_answer_is_no_conflict() -> None:
    """A write that is repeated gives the same bytes, which fenced writes are compared by."""
    line = LosesAnswers(MemoryBackend())
    with opened(line, encryption=Encryption(KEY)) as saver:  # type: ignore[arg-type]
        config = put_values(saver, place("t"), text="a")
        fenced = pending(id_of(config), thread="t")._replace(fenced=True)
        assert saver.engine.write(fenced).status == "stored"
        assert saver.engine.write(fenced).status == "stored"
        other = fenced._replace(rows=(write(data=b"something else"),))
        assert saver.engine.write(other).status == "conflict"


def test_equal_values_do_not_look_equal() -> None:
    backend = MemoryBackend()
    door = Encryption(KEY).over(backend)
    store(door, put("1", None, blob("a", "1"), blob("b", "1"), blob("a2", "1")))
    store(door, put("1", None, blob("a", "1"), thread="other"))
    values = [_blob(backend, c, "1").data for c in ("a", "b", "a2")]
    values.append(_blob(backend, "a", "1", "other").data)
    assert len({v[5:17] for v in values}) == len({v[17:] for v in values}) == 4


# -- keys --------------------------------------------------------------------------------------------------------------


def test_rotation() -> None:
    backend = MemoryBackend()
    old, new = Encryption(KEY), Encryption([OTHER, KEY])
    store(old.over(backend), put("1", None, blob("a", "1")))
    store(new.over(backend), put("2", "1", blob("a", "2")))
    assert new.over(backend).read("thread", "", "1").blobs[0].data == b"value"
    assert Encryption(OTHER).over(backend).read("thread", "", "2").blobs[0].data == b"value"
    with pytest.raises(DeserializationError) as caught:
        old.over(backend).read("thread", "", "2")
    assert f"with key {new.key_ids[0]}, and there is only {old.key_ids[0]}" in str(caught.value)
    # A copy is written with the first key.
    new.over(backend).copy("thread", "copy", at=AT)
    only = Encryption(OTHER).over(backend)
    assert contents(only, "copy") == contents(new.over(backend), "thread")


@pytest.mark.parametrize(
    "key", ["", "hunter2", KEY[:-5], KEY + KEY, [], [KEY, "x"], b"short", "é" * 32, [None]]
)
def test_bad_keys_are_refused_and_not_shown(key: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Encryption(key)
    assert "hunter2" not in str(caught.value)
    assert KEY[:-5] not in str(caught.value)


@pytest.mark.parametrize(
    "setting", ["", KEY, {}, {"keys": [KEY]}, {"key": KEY, "x": 1}, {"key": 7}]
)
def test_bad_settings_are_refused_and_not_shown(setting: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store("local", path=str(tmp_path / "t.db"), encryption=setting)
    assert KEY not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_forms_of_a_key() -> None:
    raw = bytes(range(220, 252))
    text = base64.b64encode(raw).decode()
    forms = [raw, text, text.rstrip("="), base64.urlsafe_b64encode(raw).decode(), f" {text}\n"]
    assert len({Encryption(form).key_ids for form in forms}) == 1
    assert Encryption.of({"key": text}).key_ids == Encryption.of(Encryption(raw)).key_ids


def test_a_key_is_never_shown(tmp_path: Path) -> None:
    config = {"encryption": {"key": [KEY, OTHER], "accept_plaintext": True}}
    assert KEY not in str(mask(config))
    assert OTHER not in str(mask(config))
    assert mask(f"it was {OTHER} after all", config) == "it was *** after all"
    assert KEY not in repr(Encryption(KEY))


def test_of_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARM_ENCRYPTION_KEY", KEY)
    monkeypatch.setenv("MIGRATING", "true")
    setting = {"key": "${CHARM_ENCRYPTION_KEY}", "accept_plaintext": "${MIGRATING}"}
    path = str(tmp_path / "t.db")
    with open_store("local", path=path) as plain:
        plain.save_messages("old", [{"role": "user", "content": "hi"}])
    with open_store("local", path=path, encryption=setting) as migrating:
        assert migrating.load_messages("old")
        migrating.save_messages("new", [{"role": "user", "content": "hi"}])
        assert isinstance(migrating, CheckpointStore)
        migrating.get_langgraph_checkpointer().copy_thread("old", "moved")
    with open_store("local", path=path, encryption={"key": KEY}) as strict:
        assert strict.load_messages("new") == strict.load_messages("moved")
        with pytest.raises(DeserializationError, match=r"'old': .* is plain text"):
            strict.load_messages("old")
    with open_store("local", path=path) as keyless:
        assert keyless.load_messages("old")
        with pytest.raises(DeserializationError, match=r"'new'.* encrypted.* without a key"):
            keyless.load_messages("new")


def test_local_files_in_the_place_of_a_provider_are_encrypted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHARM_WORKSPACE_DIR", str(tmp_path))
    with pytest.warns(RuntimeWarning, match="not installed"):
        standing_in = open_store("no-such-provider", encryption={"key": KEY})
    with standing_in as opened_:
        opened_.save_messages("t", [{"role": "user", "content": SECRET}])
    [file] = list(tmp_path.rglob("threads.db"))
    assert b"embassy" not in file.read_bytes()


def test_the_package_is_needed_with_a_key_only() -> None:
    program = (
        "import sys; sys.modules['cryptography'] = None\n"
        "import charm_checkpoint as c, charm_checkpoint.sqlite\n"
        "c.CheckpointSaver(charm_checkpoint.sqlite.SqliteBackend('x.db')).close()\n"
        "try: c.Encryption(b'k' * 32)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ran.stdout.startswith("ConfigError encryption needs the package cryptography"), ran
    assert "charm-checkpoint[encryption]" in ran.stdout


# -- copies and replicas -----------------------------------------------------------------------------------------------


class Breaks(Through):
    """Fails at the write that is asked for."""

    left = 1

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        self.left -= 1
        if not self.left:
            raise BackendUnavailable("gone")
        return self.inner.write(units)


def chat_of(backend: Backend) -> Backend:
    """A thread whose copy takes three requests."""
    door = Encryption(KEY).over(backend)
    store(door, put("1", None, blob("a", "1")), put("2", "1", blob("a", "2")), pending("2"))
    return door


def test_a_copy_that_broke_off_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charm_checkpoint.moving.copying._BATCH_UNITS", 1)
    backend = MemoryBackend()
    door = chat_of(backend)
    for broken_at in (2, 1):
        breaks = Breaks(backend)
        breaks.left = broken_at
        with pytest.raises(BackendUnavailable):
            Encryption(KEY).over(breaks).copy("thread", "copy", at=AT)  # type: ignore[arg-type]
        assert not door.threads(ThreadQuery(thread_id="copy"))
        assert door.read("copy", "", None).checkpoint is None
    door.copy("thread", "copy", at=AT)
    assert contents(door, "copy") == contents(door, "thread")


class Loses(Breaks):
    """Does the write that is asked for, and loses the answer."""

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        done = self.inner.write(units)
        self.left -= 1
        if not self.left:
            raise BackendUnavailable("the answer was lost")
        return done


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_copy_whose_answer_was_lost_can_be_repeated(
    lost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charm_checkpoint.moving.copying._BATCH_UNITS", 1)
    backend = MemoryBackend()
    door, loses = chat_of(backend), Loses(backend)
    loses.left = lost
    broken = Encryption(KEY).over(loses)  # type: ignore[arg-type]
    with pytest.raises(BackendUnavailable):
        broken.copy("thread", "copy", at=AT)
    broken.copy("thread", "copy", at=AT)
    assert contents(door, "copy") == contents(door, "thread")
    broken.copy("thread", "copy", at=AT)
    for changed in ("copy", "thread"):
        store(door, put(f"3-{changed}", "2", thread=changed))
        with pytest.raises(ThreadExistsError):
            door.copy("thread", "copy", at=AT)


def test_a_copy_does_not_take_up_another_that_broke_off() -> None:
    door = Encryption(KEY).over(MemoryBackend())
    store(door, put("1"), put("7", thread="copy", on_conflict="beside"))
    with pytest.raises(ThreadExistsError):
        door.copy("thread", "copy", at=AT)


def test_a_copy_that_was_deleted_cannot_be_made_again_under_its_id() -> None:
    door = Encryption(KEY).over(MemoryBackend())
    store(door, put("1"))
    door.copy("thread", "copy", at=AT)
    door.delete("copy", at=AT)
    with pytest.raises(ThreadDeletedError):
        door.copy("thread", "copy", at=AT)


def test_two_devices_and_a_third_without_the_key(tmp_path: Path) -> None:
    remote = MemoryBackend()
    options = {"encryption": {"key": KEY}}
    laptop = Device("laptop", tmp_path / "laptop.db", remote, **options)
    phone = Device("phone", tmp_path / "phone.db", remote, **options)
    stranger = Device("stranger", tmp_path / "stranger.db", remote)
    laptop.turn("one")
    laptop.sync()
    assert phone.said() == ["one"]
    laptop.away()
    laptop.turn("offline")
    phone.turn("two")
    phone.sync()
    laptop.back()
    assert laptop.said() == ["one", "two"]
    laptop.promote(laptop.conflict())
    assert phone.said() == ["one", "offline"]
    with pytest.raises(DeserializationError, match="without a key"):
        stranger.said()
    for device in (laptop, phone, stranger):
        device.close()


class Encrypted(DeltaDevice):
    """A device whose DeltaChannel is encrypted."""

    def __init__(self, name: str, folder: Path, remote: MemoryBackend) -> None:
        super().__init__(name, folder, remote)
        self.saver.close()
        self.gate = Gate(remote)
        replica = type(self.backend)(folder / f"{name}.db", self.gate)
        self.saver = CheckpointSaver(replica, device=name, encryption=Encryption(KEY))
        self.graph = self.graph.copy(update={"checkpointer": self.saver})


def test_a_losing_branch_of_a_delta_channel_is_readable(tmp_path: Path) -> None:
    """Its writes were moved to a copy of the checkpoint that both devices went on from."""
    remote = MemoryBackend()
    laptop, phone = Encrypted("laptop", tmp_path, remote), Encrypted("phone", tmp_path, remote)
    replicas: list[Any] = [device.saver.engine.backend for device in (laptop, phone)]
    laptop.say("ask")
    assert replicas[0].flush(60)
    assert phone.items() == laptop.items()
    laptop.gate.open = phone.gate.open = False
    won, lost = laptop.answer("yes"), phone.answer("no")
    for device, replica in zip((laptop, phone), replicas, strict=True):
        device.gate.open = True
        assert replica.flush(60)
    assert laptop.items() == phone.items() == won
    [conflict] = replicas[1].conflicts()
    for device in (laptop, phone):
        branch = device.graph.get_state(place("thread", conflict.tip_id))
        assert branch.values["items"] == lost
    for device in (laptop, phone):
        device.saver.close()


# -- beside LangGraph's own --------------------------------------------------------------------------------------------


class Rot(CipherProtocol):
    """Stands for a cipher of somebody else."""

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "rot", bytes(b ^ 0x55 for b in plaintext)

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        assert ciphername == "rot"
        return bytes(b ^ 0x55 for b in ciphertext)


def test_what_langgraphs_serializer_encrypted_moves_over(tmp_path: Path) -> None:
    """It can be this saver's serializer; a thread is then read with it, and written with the key."""
    theirs = EncryptedSerializer(Rot(), StrictSerializer())
    backend = SqliteBackend(tmp_path / "t.db")
    before = store_from_saver(CheckpointSaver(backend, serde=theirs))
    before.save_messages("t", [{"role": "user", "content": "hi"}])
    assert backend.read("t", "", None).blobs[0].type == "msgpack+rot"
    both = CheckpointSaver(backend, serde=theirs, encryption=Encryption(KEY, accept_plaintext=True))
    both.copy_thread("t", "moved")
    assert backend.read("moved", "", None).blobs[0].type == "msgpack+rot+aesgcm"
    assert store_from_saver(both).load_messages("moved") == [{"role": "user", "content": "hi"}]
    both.close()


def test_what_langgraphs_serializer_lets_through() -> None:
    """Plain text in the place of a ciphertext, and one thread's value in another (langgraph#8938, #9004)."""
    theirs = EncryptedSerializer(Rot(), StrictSerializer())
    assert theirs.loads_typed(StrictSerializer().dumps_typed("forged")) == "forged"
    backend = MemoryBackend()
    ours = Encryption(KEY).over(backend)
    store(ours, put("1", None, blob("a")))
    for forged in (("bytes", b"forged"), (lambda v: (v.type, v.data))(_blob(backend, "a", "1"))):
        store_there = put("1", None, blob("a", "1", forged[1], forged[0]), thread="mallory")
        store(backend, store_there)
        with pytest.raises(DeserializationError):
            ours.read("mallory", "", None)
        backend.delete("mallory", at=AT)
        backend._tombstones.clear()
