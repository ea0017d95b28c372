"""The files on the disk: who may read them, which journal they have, how they are shared, what they hold."""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from charm_checkpoint.backend import Scan
from charm_checkpoint.engine import RetryPolicy
from charm_checkpoint.errors import BackendError, BackendUnavailable
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.sqlite import SqliteBackend
from tests.core.support import (
    Process,
    aput,
    chat_graph,
    checkpoint_of,
    id_of,
    latest,
    opened,
    place,
    put,
    run,
)


def mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


@pytest.mark.skipif(os.name != "posix", reason="has other permissions")
class TestPrivacy:
    @pytest.fixture(autouse=True, params=[0o000, 0o022, 0o077], ids=oct)
    def _umask(self, request: pytest.FixtureRequest) -> object:
        before = os.umask(request.param)
        yield
        os.umask(before)

    def test_files_are_the_owners_only(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "deep" / "threads.db"
        with opened(path) as saver:
            put(saver, place("t"), n=1)
            files = {p.name: mode(p) for p in path.parent.iterdir()}
            assert files == dict.fromkeys(
                ["threads.db", "threads.db-wal", "threads.db-shm"], "0o600"
            )
            assert mode(path.parent) == "0o700"
        assert {p.name: mode(p) for p in path.parent.iterdir()} == {"threads.db": "0o600"}

    def test_the_rollback_journal_too(self, path: Path) -> None:
        with opened(SqliteBackend(path, vfs="unix-dotfile")) as saver:
            first = put(saver, place("t"), n=1)
            backend = saver.engine.backend
            assert isinstance(backend, SqliteBackend)
            with backend._db.writing() as db:
                db.execute("UPDATE threads SET created_at = 0")
                assert mode(path.with_name("threads.db-journal")) == "0o600"
            put(saver, first, n=2)

    def test_a_folder_that_is_there_keeps_its_mode(self, tmp_path: Path) -> None:
        folder = tmp_path / "shared"
        folder.mkdir()
        folder.chmod(0o755)
        with opened(folder / "threads.db") as saver:
            put(saver, place("t"), n=1)
        assert mode(folder) == "0o755"


class TestJournal:
    def test_is_write_ahead_and_full(self, path: Path) -> None:
        backend = SqliteBackend(path)
        assert backend.journal_mode == ""
        with opened(backend) as saver:
            put(saver, place("t"), n=1)
            assert backend.journal_mode == "wal"
            with backend._db.writing() as db:
                assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
                assert db.execute("PRAGMA synchronous").fetchone() == (2,)
            assert path.with_name("threads.db-wal").exists()
        assert not path.with_name("threads.db-wal").exists(), "close leaves one file"

    def test_falls_back_where_it_cannot_and_says_so(
        self, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        backend = SqliteBackend(path, vfs="unix-dotfile")
        with caplog.at_level(logging.WARNING), opened(backend) as saver:
            graph = chat_graph(saver)
            for turn in range(3):
                graph.invoke({"turns": [str(turn)]}, place("t"))
            assert len(latest(saver, "t")["turns"]) == 6
        assert backend.journal_mode == "delete"
        (record,) = caplog.records
        assert record.name == "charm_checkpoint.sqlite"
        assert "write-ahead log" in record.getMessage()
        assert str(path) in record.getMessage()
        with opened(path) as saver:
            assert len(latest(saver, "t")["turns"]) == 6

    def test_says_nothing_where_it_can(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING), opened(path) as saver:
            put(saver, place("t"), n=1)
        assert caplog.records == []

    def test_readers_do_not_wait_for_a_writer(self, path: Path) -> None:
        with opened(path) as saver, opened(SqliteBackend(path, busy_timeout=0)) as other:
            put(saver, place("t"), n=1)
            assert latest(other, "t") == {"n": 1}
            backend = saver.engine.backend
            assert isinstance(backend, SqliteBackend)
            with backend._db.writing() as db:
                db.execute("DELETE FROM checkpoints")
                assert latest(other, "t") == {"n": 1}
                db.execute("ROLLBACK")
                db.execute("BEGIN")

    def test_a_killed_writers_journal_is_taken_up(self, path: Path, tmp_path: Path) -> None:
        """The file without its WAL is the older one: that is why a copy has to be made by SQLite."""
        with opened(path) as saver:
            put(saver, place("t"), n=1)
            copy = tmp_path / "copy.db"
            for suffix in ("", "-wal"):
                path.with_name(path.name + suffix).rename(copy.with_name(copy.name + suffix))
            with opened(copy) as after:
                assert latest(after, "t") == {"n": 1}


class TestSharing:
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
    @pytest.mark.parametrize("vfs", ["", "unix-dotfile"])
    def test_16_processes_open_a_new_file_at_once(self, tmp_path: Path, vfs: str) -> None:
        path = tmp_path / "new" / "threads.db"
        run("opener", path, vfs, 16)
        with opened(path) as saver:
            assert {latest(saver, n)["n"] for n in range(16)} == set(range(16))
        assert list(path.parent.iterdir()) == [path]

    def test_16_threads_open_a_new_file_at_once(self, path: Path) -> None:
        together = threading.Barrier(16)

        def open_it(n: int) -> None:
            with opened(path) as saver:
                together.wait()
                put(saver, place(n), n=n)

        with ThreadPoolExecutor(16) as pool:
            for each in [pool.submit(open_it, n) for n in range(16)]:
                each.result()
        with opened(path) as saver:
            assert {latest(saver, n)["n"] for n in range(16)} == set(range(16))

    def test_a_second_store_of_a_process_costs_the_first_nothing(self, path: Path) -> None:
        """Closing a descriptor of a file drops the locks that the process has on it, SQLite's too.

        Then the next process that closes the file takes itself for the last one, and removes the log in use.
        """
        with opened(path) as first:
            put(first, place("first"), n=0)
            with opened(path) as second:
                put(second, place("second"), n=0)
                with Process("device", path, "other", 0) as other:
                    other.ask("turn", ["other", "hi", "sync"])
                for n in range(5):
                    put(first, place(f"first {n}"), n=n)
                    put(second, place(f"second {n}"), n=n)
                with Process("device", path, "other", 0) as other:
                    assert other.ask("latest", "other")[1] == ["hi", "re hi"]
                assert path.with_name("threads.db-wal").exists()
                for n in range(5):
                    assert latest(first, f"second {n}") == latest(second, f"first {n}") == {"n": n}
        with opened(path) as saver:
            assert len({t.config["configurable"]["thread_id"] for t in saver.list(None)}) == 13

    @pytest.mark.parametrize("vfs", [None, "unix-dotfile"])
    async def test_a_file_that_stays_locked_is_unavailable(
        self, path: Path, vfs: str | None
    ) -> None:
        with opened(SqliteBackend(path, vfs=vfs)) as saver:
            first = put(saver, place("t"), n=1)
        retry = RetryPolicy(budget=0.05, first_pause=0.01)
        with opened(SqliteBackend(path, busy_timeout=0.01, vfs=vfs), retry=retry) as saver:
            assert latest(saver, "t") == {"n": 1}
            other = sqlite3.connect(
                f"file:{path}" + (f"?vfs={vfs}" if vfs else ""), uri=True, isolation_level=None
            )
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(BackendUnavailable, match="locked by another process"):
                put(saver, first, n=2)
            with pytest.raises(BackendUnavailable, match="locked by another process"):
                await aput(saver, first, n=2)
            other.execute("ROLLBACK")
            other.close()
            put(saver, first, n=3)
            assert latest(saver, "t") == {"n": 3}

    def test_one_that_is_unlocked_in_time_is_no_trouble(self, path: Path) -> None:
        with opened(path) as saver:
            first = put(saver, place("t"), n=1)
        with opened(SqliteBackend(path, busy_timeout=0.001)) as saver:
            assert latest(saver, "t") == {"n": 1}
            other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            other.execute("BEGIN IMMEDIATE")
            attempted = threading.Event()
            backend = saver.engine.backend
            write = backend.write

            def tell_and_write(units: object) -> object:
                attempted.set()
                return write(units)  # type: ignore[arg-type]

            backend.write = tell_and_write  # type: ignore[method-assign, assignment]
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(put, saver, first, n=2)
                assert attempted.wait(60)
                other.execute("ROLLBACK")
                waiting.result()
            other.close()
            assert latest(saver, "t") == {"n": 2}

    def test_a_file_removed_after_the_last_use_is_not_made_anew_by_itself(self, path: Path) -> None:
        """A file that SQLite made on its own would be empty, and readable by others."""
        with opened(path) as saver:
            put(saver, place("t"), n=1)
            saver.engine.backend.close()
            path.unlink()
            with pytest.raises(BackendError):
                put(saver, place("t"), n=2)
            assert not path.exists()


def count(path: Path, what: str) -> int:
    db = sqlite3.connect(path)
    try:
        (found,) = db.execute(f"SELECT {what}").fetchone()
        return int(found)
    finally:
        db.close()


class TestSize:
    def test_a_value_that_does_not_change_is_stored_once(self, path: Path) -> None:
        large = random.Random(1).randbytes(1_000_000)
        with opened(path) as saver:
            checkpoint, versions = checkpoint_of(large=large, n=0)
            config = saver.put(place("t"), checkpoint, {"source": "loop", "step": 0}, versions)
            for n in range(1, 50):
                step, changed = checkpoint_of(n=n)
                step["channel_values"]["large"] = large
                step["channel_versions"]["large"] = versions["large"]
                config = saver.put(config, step, {"source": "loop", "step": n}, changed)
            assert latest(saver, "t") == {"large": large, "n": 49}
        assert count(path, "count(*) FROM blobs WHERE channel = 'large'") == 1
        assert count(path, "count(*) FROM blobs WHERE channel = 'n'") == 50
        assert path.stat().st_size < 1_200_000

    def test_so_it_is_for_a_graph(self, path: Path) -> None:
        with opened(path) as saver:
            graph = chat_graph(saver)
            for turn in range(5):
                graph.invoke({"turns": [str(turn)]}, place("t"))
            steps = len(list(saver.list(place("t"))))
        assert steps > 15
        # Once by the user and once by the answer a turn, though every step has it.
        assert count(path, "count(*) FROM blobs WHERE channel = 'turns'") == 10

    def test_a_deleted_text_is_not_left_in_the_file(self, path: Path) -> None:
        secret = "what was said in confidence"
        with opened(path) as saver:
            graph = chat_graph(saver)
            for turn in range(20):
                graph.invoke({"turns": [f"{secret} {turn}"]}, place("t"))
            put(saver, place("other"), n=1)
            saver.delete_thread("t")
            assert latest(saver, "other") == {"n": 1}
        for file in path.parent.iterdir():
            assert secret.encode() not in file.read_bytes()

    def test_copies_do_not_share_what_can_be_deleted(self, path: Path) -> None:
        with opened(path) as saver:
            graph = chat_graph(saver)
            for turn in range(5):
                graph.invoke({"turns": [f"turn {turn} " * 300]}, place("t"))
            before = latest(saver, "t")
            saver.copy_thread("t", "copy")
            saver.delete_thread("t")
            assert latest(saver, "copy") == before
            graph.invoke({"turns": ["on"]}, place("copy"))


def test_a_backend_closed_between_calls_opens_again(path: Path) -> None:
    backend = SqliteBackend(path)
    with opened(backend) as saver:
        config = place("t")
        for n in range(5):
            config = put(saver, config, n=n)
            backend.close()
            assert latest(saver, "t") == {"n": n}
            backend.close()
        assert [id_of(t.config) for t in saver.list(place("t"), limit=1)] == [id_of(config)]
        assert len(backend.scan(Scan(thread_id="t")).entries) == 5


def test_its_name_says_where_it_is(path: Path) -> None:
    assert CheckpointSaver(SqliteBackend(path)).engine.backend.name == f"sqlite:{path}"
    assert SqliteBackend("threads.db").path == Path.cwd() / "threads.db"


@pytest.mark.parametrize(
    "name", ["a?b.db", "a#b.db", "a%20b.db", "a b.db", "é☃.db", "file:x.db", ":memory:"]
)
def test_any_file_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with opened(path) as saver:
        put(saver, place("t"), n=1)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with opened(path) as saver:
        assert latest(saver, "t") == {"n": 1}
