"""How the SQLite backend stores channel values: costs what changed, comes back whole."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base.id import uuid6

from charm_checkpoint import CheckpointSaver
from charm_checkpoint.backend import BlobRow, PutCheckpoint, PutWrites
from charm_checkpoint.errors import BackendCorrupt, BackendUnavailable
from charm_checkpoint.sqlite import SqliteBackend
from charm_checkpoint.store import CheckpointStore, store_from_saver
from charm_checkpoint.testing import rows

PLACE = {"thread_id": "t", "checkpoint_ns": ""}


class Chat:
    """Puts a growing or changing list, checkpoint after checkpoint, and remembers what each should hold."""

    def __init__(self, path: Path, thread_id: str = "t") -> None:
        self.path = path
        self.saver = CheckpointSaver(SqliteBackend(path))
        self.thread_id = thread_id
        self.version: str | None = None
        self.config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
        self.expected: dict[str, Any] = {}

    def put(self, value: Any) -> str:
        self.version = self.saver.get_next_version(self.version, None)
        checkpoint: Any = {
            "v": 4,
            "id": str(uuid6()),
            "ts": "",
            "channel_values": {"messages": value},
            "channel_versions": {"messages": self.version},
            "versions_seen": {},
        }
        self.config = self.saver.put(self.config, checkpoint, {}, {"messages": self.version})
        self.expected[checkpoint["id"]] = value
        return str(checkpoint["id"])

    def check(self, saver: CheckpointSaver, thread_id: str | None = None) -> None:
        listed = saver.list({"configurable": {"thread_id": thread_id or self.thread_id}})
        found = {t.checkpoint["id"]: t.checkpoint["channel_values"]["messages"] for t in listed}
        assert found == self.expected


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[Chat]:
    chat = Chat(tmp_path / "threads.db")
    yield chat
    chat.saver.close()


def text(rng: random.Random, size: int = 300) -> str:
    return "".join(rng.choices("abcdefghij ", k=size))


def blobs(path: Path) -> list[tuple[str | None, int, int]]:
    with sqlite3.connect(path) as db:
        rows = db.execute("SELECT base, depth, length(data) FROM blobs ORDER BY version").fetchall()
    db.close()
    return rows


def series(path: Path) -> list[tuple[int, int]]:
    """How many rows each value is rebuilt from, and how many bytes these are."""
    with sqlite3.connect(path) as db:
        rows = db.execute("SELECT version, base, length(data) FROM blobs ORDER BY version")
        stored = {version: (base, size) for version, base, size in rows}
    db.close()
    found = []
    for version in stored:
        steps = read = 0
        at: str | None = version
        while at is not None:
            at, size = stored[at]
            steps, read = steps + 1, read + size
        found.append((steps, read))
    return found


@pytest.mark.parametrize("turns", [100, 400])
def test_a_growing_list_costs_what_was_added(chat: Chat, turns: int) -> None:
    rng = random.Random(1)
    messages: list[str] = []
    for _ in range(turns):
        messages = [*messages, text(rng)]
        chat.put(messages)
    stored = sum(size for _, _, size in blobs(chat.path))
    said = turns * 300
    assert stored < 4 * said, "whole values would be many times that, and grow with the square"
    steps = [steps for steps, _ in series(chat.path)]
    assert max(steps) <= 20, "a value is rebuilt from too many rows"
    assert series(chat.path)[-1][1] < 1.2 * said, "too much is read for the newest value"
    chat.check(chat.saver)


def test_values_that_change_here_and_there_are_deltas_too(chat: Chat) -> None:
    rng = random.Random(8)
    messages = [text(rng) for _ in range(60)]
    for _ in range(150):
        at = rng.randrange(len(messages))
        messages = [*messages[:at], text(rng, 40), *messages[at + 1 :]]
        chat.put(messages)
    whole = [size for base, _, size in blobs(chat.path) if base is None]
    assert len(whole) <= 150 // 32 + 4
    assert max(steps for steps, _ in series(chat.path)) <= 32 + 1
    chat.check(CheckpointSaver(SqliteBackend(chat.path)))


def test_a_value_that_shrinks_is_not_read_from_a_large_one(chat: Chat) -> None:
    rng = random.Random(9)
    messages = [text(rng) for _ in range(100)]
    chat.put(messages)
    chat.put(messages[:5])
    assert [base for base, _, _ in blobs(chat.path)] == [None, None]
    chat.check(chat.saver)


def test_a_fresh_process_rebuilds_every_version(chat: Chat) -> None:
    rng = random.Random(2)
    messages = [text(rng) for _ in range(30)]
    for _ in range(150):
        edit = rng.randrange(4)
        if edit == 0:
            messages = [*messages, text(rng)]
        elif edit == 1:
            at = rng.randrange(len(messages))
            messages = [*messages[:at], text(rng, 40), *messages[at + 1 :]]
        elif edit == 2 and len(messages) > 20:
            messages = messages[rng.randrange(3) :]
        else:
            messages = [text(rng), *messages]
        chat.put(messages)
    assert any(base for base, _, _ in blobs(chat.path)), "no delta was stored"
    with_nothing_in_memory = CheckpointSaver(SqliteBackend(chat.path))
    chat.check(with_nothing_in_memory)
    with_nothing_in_memory.close()


def test_writers_taking_turns_build_on_each_others_values(chat: Chat) -> None:
    rng = random.Random(3)
    others = [Chat(chat.path), Chat(chat.path)]
    messages = [text(rng) for _ in range(20)]
    for turn in range(60):
        messages = [*messages, text(rng)]
        writer = [chat, *others][turn % 3]
        read = writer.saver.get_tuple({"configurable": PLACE})  # type: ignore[typeddict-item]
        if read is not None:
            assert read.checkpoint["channel_values"]["messages"] == messages[:-1]
            writer.config, writer.version = (
                read.config,
                read.checkpoint["channel_versions"]["messages"],
            )  # type: ignore[assignment]
        writer.expected = chat.expected
        writer.put(messages)
    chat.check(chat.saver)
    assert sum(base is not None for base, _, _ in blobs(chat.path)) > 50
    for other in others:
        other.saver.close()


def test_pruning_makes_whole_what_it_takes_the_base_from(chat: Chat) -> None:
    rng = random.Random(4)
    messages = [text(rng) for _ in range(20)]
    for _ in range(20):
        messages = [*messages, text(rng)]
        chat.put(messages)
    chat.saver.prune(["t"])
    assert blobs(chat.path) == [(None, 0, blobs(chat.path)[0][2])]
    chat.expected = dict(list(chat.expected.items())[-1:])
    fresh = CheckpointSaver(SqliteBackend(chat.path))
    chat.check(fresh)
    fresh.close()
    # The pruned base is what this process remembers: it must not be built on.
    chat.put([*messages, text(rng)])
    chat.check(chat.saver)


def test_pruning_keeps_deltas(chat: Chat) -> None:
    rng = random.Random(10)
    messages = [text(rng) for _ in range(20)]
    for _ in range(80):
        messages = [*messages, text(rng)]
        chat.put(messages)
    with store_from_saver(chat.saver) as store:
        assert isinstance(store, CheckpointStore)
        store.prune({"keep_last": 30})
        whole = [base is None for base, _, _ in blobs(chat.path)]
        assert (len(whole), whole[0]) == (30, True)
        assert sum(whole) <= 2, "one more where the list has grown to twice its length"
        chat.expected = dict(list(chat.expected.items())[-30:])
        chat.put([*messages, text(rng)])
        fresh = CheckpointSaver(SqliteBackend(chat.path))
        chat.check(fresh)
        fresh.close()


# -- compact -----------------------------------------------------------------------------------------------------------


def without_reading(chat: Chat, rng: random.Random, puts: int) -> None:
    """Put a growing list by processes that never read what was there, so that nothing is a delta."""
    messages = [text(rng) for _ in range(10)]
    for _ in range(puts):
        messages = [*messages, text(rng)]
        chat.put(messages)
        chat.saver.close()
        chat.saver = CheckpointSaver(SqliteBackend(chat.path))


def test_compact_packs_what_is_whole(chat: Chat) -> None:
    rng = random.Random(11)
    without_reading(chat, rng, 40)
    chat.put(text(rng, 3000))  # has nothing in common with the others
    assert sum(base is None for base, _, _ in blobs(chat.path)) == 41
    backend = SqliteBackend(chat.path)
    backend.setup()
    done = backend.compact()
    assert done.complete
    assert done.after < done.before / 2
    assert done.after == sum(
        f.stat().st_size for f in chat.path.parent.glob("threads.db*") if "shm" not in f.name
    )
    assert [base is None for base, _, _ in blobs(chat.path)] == [True] + [False] * 39 + [True]
    assert max(steps for steps, _ in series(chat.path)) <= 16
    chat.check(CheckpointSaver(SqliteBackend(chat.path)))
    again = backend.compact()
    assert again.after == again.before == done.after
    backend.close()
    # What this process remembers is stored otherwise by now.
    chat.put(text(rng, 3000) + "!")
    chat.check(chat.saver)


def test_compact_gives_back_what_was_deleted(chat: Chat) -> None:
    rng = random.Random(12)
    chat.put([text(rng) for _ in range(3000)])
    chat.saver.delete_thread("t")
    chat.saver.close()
    had = chat.path.stat().st_size
    backend = SqliteBackend(chat.path)
    backend.setup()
    assert backend.compact().after < 100_000 < had
    backend.close()


def test_compact_says_that_another_process_is_in_the_way(chat: Chat) -> None:
    chat.put(["x"])
    backend = SqliteBackend(chat.path, busy_timeout=0.1)
    backend.setup()
    other = sqlite3.connect(chat.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BackendUnavailable, match="locked by another process"):
        backend.compact()
    other.execute("ROLLBACK")
    other.close()
    assert backend.compact().complete
    backend.close()


def test_a_file_of_an_earlier_release_with_whole_values_in_between(chat: Chat) -> None:
    """Its series had a whole value every 64 versions, and weights that did not count it."""
    rng = random.Random(13)
    messages = [text(rng) for _ in range(10)]
    for _ in range(40):
        messages = [*messages, text(rng)]
        chat.put(messages)
    with sqlite3.connect(chat.path) as db:
        db.execute("UPDATE blobs SET weight = weight - 3000 WHERE base IS NOT NULL")
    db.close()
    chat.saver.close()
    chat.saver = CheckpointSaver(SqliteBackend(chat.path))
    read = chat.saver.get_tuple({"configurable": PLACE})  # type: ignore[typeddict-item]
    assert read is not None
    for _ in range(80):
        messages = [*messages, text(rng)]
        chat.put(messages)
    chat.check(chat.saver)


def test_dropping_a_run_in_the_middle_keeps_the_rest(chat: Chat) -> None:
    rng = random.Random(5)
    messages = [text(rng) for _ in range(20)]
    for turn in range(12):
        messages = [*messages, text(rng)]
        chat.config["metadata"] = {"run_id": f"run-{turn // 4}"}
        made = chat.put(messages)
        if turn // 4 == 1:
            del chat.expected[made]
    chat.saver.delete_for_runs(["run-1"])
    fresh = CheckpointSaver(SqliteBackend(chat.path))
    chat.check(fresh)
    fresh.close()


def test_a_copied_thread_stands_on_its_own(chat: Chat) -> None:
    rng = random.Random(6)
    messages = [text(rng) for _ in range(20)]
    for _ in range(10):
        messages = [*messages, text(rng)]
        chat.put(messages)
    chat.saver.copy_thread("t", "copy")
    chat.saver.delete_thread("t")
    chat.check(chat.saver, "copy")


def test_a_deleted_base_is_not_built_on(chat: Chat) -> None:
    rng = random.Random(7)
    messages = [text(rng) for _ in range(20)]
    chat.put(messages)
    elsewhere = CheckpointSaver(SqliteBackend(chat.path))
    elsewhere.delete_thread("t")
    elsewhere.close()
    chat.expected.clear()
    chat.config = {"configurable": dict(PLACE)}
    chat.put([*messages, text(rng)])
    assert [base for base, _, _ in blobs(chat.path)] == [None]
    chat.check(chat.saver)


@pytest.mark.parametrize("version", ["1", 1, 1.5])
def test_versions_that_may_come_again_are_never_a_base(tmp_path: Path, version: Any) -> None:
    chat = Chat(tmp_path / "threads.db")
    chat.saver.get_next_version = lambda current, channel: version  # type: ignore[method-assign]
    chat.put(["x" * 3000])
    chat.saver.delete_thread("t")
    chat.expected.clear()
    chat.config = {"configurable": dict(PLACE)}
    chat.put(["x" * 3000, "y"])
    assert [base for base, _, _ in blobs(chat.path)] == [None]
    chat.check(chat.saver)
    chat.saver.close()


def unit(version: str, data: bytes, parent: str | None = None) -> PutCheckpoint:
    name = version.partition(".")[0]
    row = rows.put(name, parent, thread="t").row._replace(versions={"a": version})
    return PutCheckpoint("t", "", row, (BlobRow("a", version, "t", data),), False, "raise")


VERSIONS = [f"{n}.{n:032}" for n in range(1, 4)]
FIRST, OTHER = b"first " * 500, b"other " * 500


def read(backend: SqliteBackend, version: str) -> bytes:
    [found] = backend.read("t", "", version.partition(".")[0]).blobs
    return found.data


def test_what_was_there_with_other_bytes_is_not_built_on(tmp_path: Path) -> None:
    one, two = (SqliteBackend(tmp_path / "t.db") for _ in range(2))
    one.setup()
    one.write([unit(VERSIONS[0], FIRST)])
    # The same version from somebody who serialized it in another way, with another checkpoint.
    row = unit("9" + VERSIONS[0][1:], OTHER)
    other = unit(VERSIONS[0], OTHER)
    two.write([row._replace(row=row.row._replace(versions={"a": VERSIONS[0]}), blobs=other.blobs)])
    two.write([unit(VERSIONS[1], OTHER + b"more", "9")])
    assert [read(one, version) for version in VERSIONS[:2]] == [FIRST, OTHER + b"more"]
    one.close()
    two.close()


def test_what_was_rolled_back_is_not_built_on(tmp_path: Path) -> None:
    backend, other = (SqliteBackend(tmp_path / "t.db") for _ in range(2))
    backend.setup()
    broken: Any = PutWrites("t", "", "2", (object(),))  # type: ignore[arg-type]
    with pytest.raises(Exception, match="object"):
        backend.write([unit(VERSIONS[0], OTHER), broken])
    other.write([unit(VERSIONS[0], FIRST)])
    backend.write([unit(VERSIONS[1], OTHER + b"more", "1")])
    assert [read(other, version) for version in VERSIONS[:2]] == [FIRST, OTHER + b"more"]
    backend.close()
    other.close()


def test_a_missing_base_is_an_error_that_names_it(chat: Chat) -> None:
    chat.put(["x" * 3000])
    chat.put(["x" * 3000, "y"])
    with sqlite3.connect(chat.path) as db:
        db.execute("DELETE FROM blobs WHERE base IS NULL")
    db.close()
    fresh = CheckpointSaver(SqliteBackend(chat.path))
    with pytest.raises(BackendCorrupt, match=r"'messages'.*which is missing"):
        fresh.get_tuple({"configurable": PLACE})  # type: ignore[typeddict-item]
    fresh.close()


def test_an_unchanged_value_is_stored_once(chat: Chat) -> None:
    chat.put(["x" * 1_000_000])
    for _ in range(50):
        saved = chat.saver.get_tuple({"configurable": PLACE})  # type: ignore[typeddict-item]
        assert saved is not None
        checkpoint: Any = {**saved.checkpoint, "id": str(uuid6())}
        chat.config = chat.saver.put(saved.config, checkpoint, {}, {})
    chat.saver.close()
    assert (chat.path.stat().st_size - 1_000_000) / 50 < 4096
