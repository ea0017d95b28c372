"""Files that are not ours, are damaged, may not be written, or have no room: one typed error, and nothing is harmed."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from charm_checkpoint.errors import (
    BackendCorrupt,
    BackendError,
    BackendFull,
    BackendReadOnly,
    CheckpointStoreError,
)
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.sqlite import SqliteBackend
from tests.core.support import (
    aput,
    chat_graph,
    checkpoint_of,
    latest,
    opened,
    place,
    put,
    run,
)


def same_bytes(*paths: Path) -> Callable[[], bool]:
    """Asks whether files are still as they were."""
    before = {path: path.read_bytes() for path in paths}
    return lambda: all(path.read_bytes() == data for path, data in before.items())


def refuses(path: Path, error: type[BackendError], match: str) -> None:
    """Every use of a file gives the error, the second as the first."""
    with opened(path) as saver:
        for _ in range(2):
            with pytest.raises(error, match=match) as raised:
                put(saver, place("t"), n=1)
            assert path.name in str(raised.value)
            with pytest.raises(error, match=match):
                saver.get_tuple(place("t"))
            with pytest.raises(error, match=match):
                list(saver.list(None))
            with pytest.raises(error, match=match):
                saver.delete_thread("t")


class TestFiles:
    """Bytes are looked at before and after only: closing a file drops SQLite's locks on it."""

    @pytest.mark.parametrize("size", [2, 15, 100, 512, 5000, 100_000])
    def test_a_text_is_left_as_it_is(self, path: Path, size: int) -> None:
        path.write_bytes((b"not a database\n" * 10_000)[:size])
        unchanged = same_bytes(path)
        refuses(path, BackendCorrupt, "not a SQLite database")
        assert unchanged()
        assert list(path.parent.iterdir()) == [path]

    @pytest.mark.parametrize("journal", ["delete", "wal"])
    @pytest.mark.parametrize("application_id", [0, 12345])
    def test_a_database_of_another_program_is_left_as_it_is(
        self, path: Path, journal: str, application_id: int
    ) -> None:
        db = sqlite3.connect(path)
        db.execute(f"PRAGMA journal_mode = {journal}")
        db.execute(f"PRAGMA application_id = {application_id}")
        # Also one whose tables have the names of ours.
        db.execute("CREATE TABLE checkpoints (thread_id TEXT)")
        db.execute("INSERT INTO checkpoints VALUES ('theirs')")
        db.commit()
        db.close()
        unchanged = same_bytes(path)
        refuses(path, BackendCorrupt, "another program")
        assert unchanged()
        assert list(path.parent.iterdir()) == [path]

    def test_a_newer_format_is_left_as_it_is(self, path: Path) -> None:
        with opened(path) as saver:
            put(saver, place("t"), n=1)
        db = sqlite3.connect(path)
        (now,) = db.execute("PRAGMA user_version").fetchone()
        db.execute(f"PRAGMA user_version = {now + 1}")
        db.close()
        unchanged = same_bytes(path)
        refuses(path, BackendCorrupt, "Upgrade")
        assert unchanged()
        db = sqlite3.connect(path)
        db.execute(f"PRAGMA user_version = {now}")
        db.close()
        with opened(path) as saver:
            assert latest(saver, "t") == {"n": 1}

    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        folder = tmp_path / "threads.db"
        folder.mkdir()
        refuses(folder, BackendReadOnly, "choose another path")
        assert list(folder.iterdir()) == []

    def test_a_file_is_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("text")
        refuses(tmp_path / "file" / "threads.db", BackendReadOnly, "choose another path")
        assert (tmp_path / "file").read_text() == "text"

    def test_a_file_cut_short(self, path: Path) -> None:
        with opened(path) as saver:
            config = place("t")
            for n in range(30):
                config = put(saver, config, n=n, text=str(n) * 5000)
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
        with opened(path) as saver, pytest.raises(BackendCorrupt):
            list(saver.list(place("t")))

    @pytest.mark.parametrize("files", [150, pytest.param(5000, marks=pytest.mark.slow)])
    def test_a_damaged_file_raises_only_our_errors(self, path: Path, files: int) -> None:
        seed = random.randrange(10**6)
        print("seed", seed)
        rng = random.Random(seed)
        with opened(path) as saver:
            graph = chat_graph(saver)
            for n in range(6):
                graph.invoke({"turns": [f"turn {n} " * 100]}, place("t"))
        whole = path.read_bytes()
        raised = set()
        for number in range(files):
            damaged = bytearray(whole)
            for _ in range(rng.choice([1, 3, 30])):
                at = rng.randrange(len(whole))
                length = rng.choice([1, 1, 8, 200])
                damaged[at : at + length] = rng.randbytes(length)
            copy = path.with_name(f"{number}.db")
            copy.write_bytes(damaged)
            with opened(copy) as saver:
                uses: list[Callable[[], Any]] = [
                    lambda saver=saver: saver.get_tuple(place("t")),  # type: ignore[misc]
                    lambda saver=saver: list(saver.list(None)),  # type: ignore[misc]
                    lambda saver=saver: put(saver, place("t"), n=1),  # type: ignore[misc]
                    lambda saver=saver: saver.copy_thread("t", "copy"),  # type: ignore[misc]
                    lambda saver=saver: saver.delete_thread("t"),  # type: ignore[misc]
                ]
                for use in uses:
                    try:
                        use()
                    except CheckpointStoreError as error:
                        raised.add(type(error))
            copy.unlink()
        assert BackendCorrupt in raised


class TestFullDisk:
    """SQLite itself says that there is no room: its file may grow to so many pages only."""

    @pytest.fixture
    def saver(self, tmp_path: Path) -> Iterator[CheckpointSaver]:
        with opened(tmp_path / "threads.db") as saver:
            yield saver

    @staticmethod
    def allow_pages(saver: CheckpointSaver, more: int) -> None:
        backend = saver.engine.backend
        assert isinstance(backend, SqliteBackend)
        with backend._db.writing() as db:
            (pages,) = db.execute("PRAGMA page_count").fetchone()
        writer = backend._db._writer
        assert writer is not None
        writer.execute(f"PRAGMA max_page_count = {pages + more}")

    async def test_is_told(self, saver: CheckpointSaver) -> None:
        head = put(saver, place("t"), n=1, text="kept")
        saver.put_writes(head, [("n", 2)], "task")
        self.allow_pages(saver, 5)
        too_much = random.Random(1).randbytes(1_000_000)
        with pytest.raises(BackendFull, match="no room"):
            put(saver, head, n=2, text=too_much)
        with pytest.raises(BackendFull):
            await aput(saver, head, n=2, text=too_much)
        with pytest.raises(BackendFull):
            saver.put_writes(head, [("text", too_much)], "other task")
        found = saver.get_tuple(place("t"))
        assert found is not None
        assert found.checkpoint["channel_values"] == {"n": 1, "text": "kept"}
        assert found.pending_writes == [("task", "n", 2)]
        self.allow_pages(saver, 10_000)
        put(saver, head, n=2, text=too_much)
        assert latest(saver, "t") == {"n": 2, "text": too_much}

    def test_a_small_step_beside_a_large_one_is_stored(self, saver: CheckpointSaver) -> None:
        put(saver, place("t"), n=1)
        self.allow_pages(saver, 20)
        backend = saver.engine.backend
        units = [
            saver._unit(place(name), *unit_of(text=text))
            for name, text in (("small", "x"), ("large", "x" * 1_000_000), ("also small", "y"))
        ]
        with pytest.raises(BackendFull):
            backend.write(units)
        assert saver.get_tuple(place("small")) is None, "all of a batch or nothing"
        outcomes: list[str] = []
        for unit in units:
            try:
                outcomes.append(saver.engine.write(unit).status)
            except BackendFull:
                outcomes.append("full")
        assert outcomes == ["stored", "full", "stored"]

    def test_through_a_run(self, saver: CheckpointSaver) -> None:
        graph = chat_graph(saver)
        graph.invoke({"turns": ["hi"]}, place("t"))
        self.allow_pages(saver, 5)
        with pytest.raises(BackendFull):
            graph.invoke({"turns": ["x" * 1_000_000]}, place("t"))
        self.allow_pages(saver, 10_000)
        assert graph.get_state(place("t")).values["turns"] == ["hi", "re hi"]
        graph.invoke({"turns": ["again"]}, place("t"))
        assert latest(saver, "t")["turns"] == ["hi", "re hi", "again", "re again"]


def unit_of(**values: Any) -> tuple[Any, Any, Any]:
    """What a put takes beside the config."""
    checkpoint, versions = checkpoint_of(**values)
    return checkpoint, {"source": "loop", "step": 1}, versions


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="has other permissions")
class TestPermissions:
    """As an ordinary user: for root there is no read-only file."""

    @pytest.mark.parametrize("scenario", ["new_file", "old_file", "old_file_in_good_folder"])
    def test_a_read_only_place_is_told(self, scenario: str) -> None:
        run("read_only", scenario)
