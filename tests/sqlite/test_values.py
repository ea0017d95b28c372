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
from charm_checkpoint.errors import BackendCorrupt
from charm_checkpoint.sqlite import SqliteBackend

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


def test_a_growing_list_costs_what_was_added(chat: Chat) -> None:
    rng = random.Random(1)
    messages: list[str] = []
    for _ in range(200):
        messages = [*messages, text(rng)]
        chat.put(messages)
    stored = sum(size for _, _, size in blobs(chat.path))
    said = 200 * 300
    assert stored < 5 * said, f"{stored} bytes stored for {said} said; whole values would be 100 ×"
    assert max(depth for _, depth, _ in blobs(chat.path)) <= 64
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
