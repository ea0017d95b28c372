"""Threads as one file: everything comes back, anybody can read it, and what is not whole is refused."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from charm_checkpoint import export_threads, import_threads
from charm_checkpoint.backend import BlobRow, CheckpointRow, Entry, HeadRow, Snapshot
from charm_checkpoint.errors import (
    BackendCorrupt,
    BackendError,
    BackendFull,
    ThreadExistsError,
    ThreadNotFoundError,
)
from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.moving import Thread
from charm_checkpoint.moving.threadfile import opened_file
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.sqlite import SqliteBackend
from charm_checkpoint.testing.scenarios import chat, turn
from tests.moving.support import at, entries, held, messages, names

DOCUMENT = Path(__file__).parents[2] / "docs" / "file-format.md"


@pytest.fixture(scope="module")
def exported(filled: Path) -> bytes:
    """A file with a thread of every kind."""
    backend = SqliteBackend(filled)
    file = io.BytesIO()
    export_threads(backend, file)
    backend.close()
    return file.getvalue()


def test_everything_comes_back(
    exported: bytes, origin: SqliteBackend, target: SqliteBackend
) -> None:
    report = import_threads(io.BytesIO(exported), target)
    assert {t.outcome for t in report.threads} == {"copied"}
    assert names(target) == names(origin)
    for thread in names(origin):
        assert held(target, thread) == held(origin, thread)
    again = import_threads(io.BytesIO(exported), target)
    assert {t.outcome for t in again.threads} == {"same"}
    # JSON's own text stays, too: the same store writes the same file.
    file = io.BytesIO()
    export_threads(target, file, [t.thread_id for t in report.threads])
    first, second = (gzip.decompress(f).split(b"\n")[1:-2] for f in (exported, file.getvalue()))
    assert first == second


def test_some_threads(exported: bytes, origin: SqliteBackend, target: SqliteBackend) -> None:
    file = io.BytesIO()
    report = export_threads(origin, file, ["goto", "chat"])
    assert report.threads == ("goto", "chat")
    assert report.bytes == len(file.getvalue())
    assert report.checkpoints == len(entries(origin, "goto")) + len(entries(origin, "chat"))
    import_threads(io.BytesIO(file.getvalue()), target, ["chat"])
    assert names(target) == {"chat"}
    with pytest.raises(ThreadNotFoundError, match="'messages' in the file"):
        import_threads(io.BytesIO(file.getvalue()), target, ["messages"])
    with pytest.raises(ThreadNotFoundError, match="'nowhere'"):
        export_threads(origin, io.BytesIO(), ["nowhere"])


def test_what_is_there_in_another_state_is_left(exported: bytes, target: SqliteBackend) -> None:
    chat(CheckpointSaver(target)).invoke(turn("other"), at("chat"))
    before = held(target, "chat")
    with pytest.raises(ThreadExistsError, match="'chat'"):
        import_threads(io.BytesIO(exported), target, ["chat"])
    report = import_threads(io.BytesIO(exported), target, on_existing="skip")
    assert [t.thread_id for t in report.left] == ["chat"]
    assert held(target, "chat") == before


def test_a_long_chat_is_small() -> None:
    """The file grows with what was said, not with its square."""
    saver = CheckpointSaver(MemoryBackend())
    graph = messages(saver)
    sizes = []
    for n in range(60):
        graph.invoke({"messages": [("user", f"{n} " * 200)]}, at("t"))
        if n in (29, 59):
            file = io.BytesIO()
            export_threads(saver, file)
            sizes.append(len(gzip.decompress(file.getvalue())))
    assert sizes[1] < 2.3 * sizes[0]
    target = MemoryBackend()
    import_threads(io.BytesIO(file.getvalue()), target)
    assert held(target, "t") == held(saver.engine.backend, "t")


class Many:
    """A source with one thread that comes back to old versions and to many namespaces."""

    name = "many"

    def threads(self) -> Any:
        return iter(["t"])

    def thread(self, thread_id: str) -> Thread:
        return Thread("t", 1.0, (HeadRow("", "0999", "d", 2.0),))

    def entries(self, thread_id: str) -> Any:
        for n in range(1000):
            namespace = f"call:{n % 70}" if n % 3 else ""
            version = str(n % 4)
            blob = BlobRow("c", version, "bytes", f"value {namespace} {version} ".encode() * 200)
            row = CheckpointRow(
                f"{n:04}",
                None,
                4,
                b"{}",
                {"c": version, "empty": "1"},
                b"{}",
                None,
                None,
                "d",
                float(n),
            )
            yield Entry("t", namespace, Snapshot(row, [blob], []))


def test_versions_that_come_again_and_many_namespaces() -> None:
    file = io.BytesIO()
    export_threads(Many(), file)
    assert gzip.decompress(file.getvalue()).count(b'{"forget":') > 100
    with opened_file(io.BytesIO(file.getvalue()), "x") as source:
        assert list(source.entries("t")) == list(Many().entries("t"))


# -- read by anybody ---------------------------------------------------------------------------------------------------


def reader() -> Callable[[BinaryIO], Any]:
    """The reader that the document shows: the standard library alone."""
    [code] = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[:1]
    used = set(re.findall(r"^(?:import|from) (\S+)", code, re.MULTILINE))
    assert used <= {"base64", "gzip", "hashlib", "json"}
    scope: dict[str, Any] = {}
    exec(compile(code, str(DOCUMENT), "exec"), scope)
    return scope["read_threads"]  # type: ignore[no-any-return]


def test_the_document_is_enough(exported: bytes, origin: SqliteBackend) -> None:
    threads = {thread["thread_id"]: thread for thread in reader()(io.BytesIO(exported))}
    assert threads.keys() == names(origin)
    for name, thread in threads.items():
        found = entries(origin, name)
        assert len(found) == len(thread["checkpoints"])
        by_key = {(c["namespace"], c["checkpoint_id"]): c for c in thread["checkpoints"]}
        for entry in found:
            row = entry.snapshot.checkpoint
            assert row is not None
            told = by_key[entry.namespace, row.checkpoint_id]
            assert told["values"] == {b.channel: (b.type, b.data) for b in entry.snapshot.blobs}
            assert json.loads(told["metadata"]) == json.loads(row.metadata)
            assert (told["parent_id"], told["device"]) == (row.parent_id, row.device)
            writes = [(w["channel"], base64.b64decode(w["data"])) for w in told["writes"]]
            assert writes == [(w.channel, w.data) for w in entry.snapshot.writes]
    texts = unpacked(threads["messages"]["checkpoints"][-1]["values"]["messages"][1])
    assert [kwargs["content"] for _, _, kwargs, *_ in texts][::2] == [f"turn {n}" for n in range(3)]


def unpacked(data: bytes) -> Any:
    """What MessagePack holds, as its specification has it; of extensions their content, unpacked likewise."""
    view, place = memoryview(data), 0

    def take(count: int) -> bytes:
        nonlocal place
        place += count
        return bytes(view[place - count : place])

    def number(count: int) -> int:
        return int.from_bytes(take(count), "big")

    def one() -> Any:
        kind = number(1)
        if kind < 0x80:
            return kind
        if kind < 0x90:
            return {one(): one() for _ in range(kind & 15)}
        if kind < 0xA0:
            return [one() for _ in range(kind & 15)]
        if kind < 0xC0:
            return take(kind & 31).decode()
        if kind in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[kind]
        if kind in (0xD9, 0xDA, 0xDB):
            return take(number(1 << (kind - 0xD9))).decode()
        if kind in (0xC7, 0xC8, 0xC9):
            size = number(1 << (kind - 0xC7))
            take(1)
            return unpacked(take(size))
        if kind in (0xDC, 0xDD):
            return [one() for _ in range(number(2 << (kind - 0xDC)))]
        raise AssertionError(f"{kind:#x} is not in these values")

    return one()


# -- what is not whole -------------------------------------------------------------------------------------------------


def rezipped(lines: list[bytes], *, sign: bool = True) -> bytes:
    """A file of other lines, with the right checksum if `sign`."""
    if sign:
        body = b"".join(line + b"\n" for line in lines[:-1])
        end = json.loads(lines[-1])
        end["end"]["sha256"] = hashlib.sha256(body).hexdigest()
        lines = [*lines[:-1], json.dumps(end).encode()]
    return gzip.compress(b"".join(line + b"\n" for line in lines))


def lines_of(file: bytes) -> list[bytes]:
    return gzip.decompress(file).splitlines()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_cut_short(exported: bytes, target: SqliteBackend, share: float) -> None:
    with pytest.raises(BackendCorrupt, match=r"cut short|no file that"):
        import_threads(io.BytesIO(exported[: int(len(exported) * share)]), target, name="x.gz")
    assert not names(target)


def test_cut_short_between_its_lines(exported: bytes, target: SqliteBackend) -> None:
    lines = lines_of(exported)
    with pytest.raises(BackendCorrupt, match=r"x\.gz is cut short"):
        import_threads(io.BytesIO(rezipped(lines[:-1], sign=False)), target, name="x.gz")
    with pytest.raises(BackendCorrupt, match="checksum"):
        import_threads(io.BytesIO(rezipped([*lines[:5], *lines[6:]], sign=False)), target)
    with pytest.raises(BackendCorrupt, match="behind its end"):
        import_threads(io.BytesIO(rezipped([*lines, lines[1]], sign=False)), target)
    assert not names(target)


def test_a_byte_that_changed(exported: bytes, target: SqliteBackend) -> None:
    for place in range(20, len(exported), len(exported) // 25):
        damaged = bytearray(exported)
        damaged[place] ^= 0x10
        with pytest.raises(BackendCorrupt):
            import_threads(io.BytesIO(bytes(damaged)), target)
    assert not names(target)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        gzip.compress(b"", mtime=0),
        gzip.compress(b"{}\n", mtime=0),
        gzip.compress(b"[1]\n", mtime=0),
        gzip.compress(b"\xff\n", mtime=0),
    ],
)
def test_other_files(content: bytes, target: SqliteBackend) -> None:
    with pytest.raises(BackendCorrupt, match=r"x\.gz is "):
        import_threads(io.BytesIO(content), target, name="x.gz")


def test_a_newer_file(exported: bytes, target: SqliteBackend) -> None:
    lines = lines_of(exported)
    head = {**json.loads(lines[0]), "version": 2}
    with pytest.raises(BackendCorrupt, match=r"version 2, this release knows 1; .* Upgrade"):
        import_threads(io.BytesIO(rezipped([json.dumps(head).encode(), *lines[1:]])), target)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"thread_id":"chat"', b'"thread_id":""'),
        (b'"thread_id":"chat"', b'"thread_id":"a\\u0000"'),
        (b'"thread_id":"chat"', b'"thread_id":"\\ud800"'),
        (b'"thread_id":"chat"', b'"thread_id":"goto"'),
        (b'"created_at":', b'"created_at":"x","y":'),
        (b'"heads":[', b'"heads":[7,'),
        (b'"data":"', b'"data":"!'),
        (b'"parts":[', b'"parts":[[0,999999],'),
        (b'"parts":[', b'"parts":[[-5,2],'),
        (b'"metadata":"{', b'"metadata":"[{'),
        (b'"body":"{', b'"body":"'),
        (b'"idx":', b'"idx":"x","i":'),
        (b'{"value":', b'{"values":'),
        (b'{"checkpoint":', b'{"checkpoint":7,"x":'),
        (b'"versions":{', b'"versions":{"a":7,'),
        (b'"version":1,', b'"version":"1",'),
        (b'"version":1,', b'"version":0,'),
        (b'"created_at":', b'"created_at":NaN,"y":'),
        (b'"created_at":', b'"created_at":1e999,"y":'),
        (b'"moved_at":', b'"moved_at":-Infinity,"y":'),
        (b',"format":', b',"format":2147483648,"y":'),
        (b',"format":', b',"format":1.5,"y":'),
        (b'"idx":', b'"idx":99999999999999999999,"i":'),
    ],
)
def test_forged_content(exported: bytes, old: bytes, new: bytes) -> None:
    """A checksum says that nothing changed on the way, not that the writer meant well."""
    body = gzip.decompress(exported).replace(old, new, 1)
    assert body != gzip.decompress(exported)
    target = MemoryBackend()
    with pytest.raises(BackendCorrupt, match=r"x\.gz is damaged"):
        import_threads(io.BytesIO(rezipped(body.splitlines())), target, name="x.gz")


def test_two_newest_checkpoints(exported: bytes, target: SqliteBackend) -> None:
    """Both are there, and nobody could tell from which one the thread goes on."""
    lines = lines_of(exported)
    [at_] = [n for n, line in enumerate(lines) if b'"thread_id":"chat"' in line[:40]]
    checkpoints = (json.loads(line).get("checkpoint") for line in lines[at_ + 1 :])
    first = next(told for told in checkpoints if told)
    told = json.loads(lines[at_])
    heads = told["thread"]["heads"]
    assert first["namespace"] == ""
    assert first["checkpoint_id"] != heads[0]["checkpoint_id"]
    heads.append({**heads[0], "checkpoint_id": first["checkpoint_id"]})
    lines[at_] = json.dumps(told).encode()
    with pytest.raises(BackendCorrupt, match=r"is damaged.* a namespace with two newest"):
        import_threads(io.BytesIO(rezipped(lines)), target)
    assert not names(target)


@pytest.mark.parametrize("verb", ["thread", "entries"])
def test_a_source_that_cannot_be_read(verb: str) -> None:
    """It is not the file's fault."""

    class Broken(Many):
        def thread(self, thread_id: str) -> Thread:
            if verb == "thread":
                raise OSError(5, "Input/output error")
            return super().thread(thread_id)

        def entries(self, thread_id: str) -> Any:
            yield next(super().entries(thread_id))
            raise OSError(5, "Input/output error")

    with pytest.raises(BackendError, match="many cannot be read: Input/output error"):
        export_threads(Broken(), io.BytesIO())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device without room")
def test_no_room(exported: bytes, origin: SqliteBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("wb") as full:
        with pytest.raises(BackendFull, match="the file cannot be written: there is no room left"):
            export_threads(origin, full)
        with suppress(OSError):
            full.close()

    def no_room(_: int) -> Any:
        return Path("/dev/full").open("r+b", buffering=0)

    monkeypatch.setattr("tempfile.SpooledTemporaryFile", no_room)
    target = MemoryBackend()
    with pytest.raises(BackendFull, match=r"x\.gz cannot be unpacked: there is no room left"):
        import_threads(io.BytesIO(exported), target, name="x.gz")
    with pytest.raises(BackendFull, match="there is no room left"):
        export_threads(origin, io.BytesIO())
    assert not names(target)
