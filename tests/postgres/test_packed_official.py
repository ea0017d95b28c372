"""LangGraph's own saver beside packed values: it finds the newest checkpoints as they were."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.graph import START, MessagesState, StateGraph
from psycopg.rows import dict_row

from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.testing.rows import (
    THREAD,
    blobs_of,
    move,
    read,
)
from charm_memory_postgres import PostgresBackend
from tests.core.support import WAIT, place
from tests.postgres.packed import Talk, version, whole


@pytest.fixture
def official(database: str) -> Iterator[PostgresSaver]:
    with psycopg.connect(
        database, autocommit=True, prepare_threshold=0, row_factory=dict_row
    ) as connection:
        yield PostgresSaver(connection)


def _talking(saver: Any) -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("answer", lambda state: {"messages": [AIMessage("answer " * 90)]})
    return builder.add_edge(START, "answer").compile(checkpointer=saver)


def test_the_official_saver_finds_the_newest(database: str, official: PostgresSaver) -> None:
    ours = CheckpointSaver(PostgresBackend(database, pack_after=9), device="laptop")
    for n in range(10):
        _talking(ours).invoke({"messages": [HumanMessage(f"turn {n} " * 90)]}, place("t"))
    before = list(official.list(place("t")))
    ours_before = list(ours.list(place("t")))
    ours.engine.call(lambda backend: backend.compact())  # type: ignore[attr-defined]
    after = list(official.list(place("t")))
    assert after[:9] == before[:9]
    assert official.get_tuple(place("t")) == before[0]
    for was, found in zip(before[9:], after[9:], strict=True):
        assert was.metadata == found.metadata
        kept = found.checkpoint["channel_values"]
        assert kept.items() <= was.checkpoint["channel_values"].items()
    assert any("messages" not in t.checkpoint["channel_values"] for t in after)
    assert list(ours.list(place("t"))) == ours_before

    told = _talking(official).invoke({"messages": [HumanMessage("theirs")]}, place("t"))
    assert len(told["messages"]) == 22
    assert _talking(ours).get_state(place("t")).values == told
    assert list(ours.list(place("t")))[3:] == ours_before
    ours.close()


def test_the_official_saver_goes_on_from_what_was_made_whole(
    database: str, official: PostgresSaver
) -> None:
    ours = CheckpointSaver(PostgresBackend(database, pack_after=1), device="laptop")
    for n in range(5):
        _talking(ours).invoke({"messages": [HumanMessage(f"turn {n} " * 90)]}, place("t"))
    ours.engine.call(lambda backend: backend.compact())  # type: ignore[attr-defined]
    old = [s for s in _talking(ours).get_state_history(place("t")) if not s.next][2]
    _talking(ours).update_state(
        old.config, {"messages": [HumanMessage("edited")]}, as_node="answer"
    )
    told = _talking(official).invoke({"messages": [HumanMessage("theirs")]}, place("t"))
    assert told["messages"][: len(old.values["messages"])] == old.values["messages"]
    ours.close()


def test_a_copy_beside_a_moved_head(database: str, official: PostgresSaver) -> None:
    """LangGraph gives a copy of a checkpoint the same parent, and that is the head here."""
    ours = CheckpointSaver(PostgresBackend(database, pack_after=1), device="laptop")
    for n in range(4):
        _talking(ours).invoke({"messages": [HumanMessage(f"turn {n} " * 90)]}, place("t"))
    newest, *_, copied = (s for s in _talking(ours).get_state_history(place("t")) if not s.next)
    assert copied.parent_config is not None
    target, over = (
        config["configurable"]["checkpoint_id"] for config in (copied.parent_config, newest.config)
    )
    ours.engine.call(lambda backend: backend.write([move(target, over, thread="t")]))
    ours.engine.call(lambda backend: backend.compact())  # type: ignore[attr-defined]
    _talking(ours).update_state(copied.config, None, as_node="__copy__")
    for saver in (ours, official):
        found = _talking(saver).get_state(place("t"))
        assert found.values == copied.values
        assert found.parent_config == copied.parent_config
    ours.close()


def test_a_foreign_step_on_what_is_packed(
    packer: PostgresBackend, official: PostgresSaver, shared_database: psycopg.Connection
) -> None:
    """Its values are whole again for the step's saver, whichever way it was written."""
    talk = Talk()
    talk.go_on(packer, 6)
    packer.compact()
    where: Any = place(THREAD, "0003")
    checkpoint = _foreign("0009", version(3))
    official.put(where, checkpoint, {}, {})
    assert version(3) in whole(shared_database)
    checkpoint["channel_versions"] = {"messages": version(4)}
    official.put(where, checkpoint, {}, {})
    assert version(4) in whole(shared_database)
    assert blobs_of(read(packer, "0009"))["messages"][2] == talk.values["0004"]


@pytest.mark.parametrize("how", ["delete_thread", "prune", "truncate", "ours", "one namespace"])
def test_what_is_removed_leaves_nothing_packed(
    how: str, packer: PostgresBackend, official: PostgresSaver, shared_database: psycopg.Connection
) -> None:
    talk, sub, other = Talk(), Talk(namespace="sub"), Talk("other")
    for each in (talk, sub, other):
        each.go_on(packer, 5)
    packer.compact()
    kept = {(THREAD, ""): 4, (THREAD, "sub"): 4, ("other", ""): 4}
    if how == "delete_thread":
        official.delete_thread(THREAD)
    elif how == "prune":
        official.prune([THREAD])
    elif how == "truncate":
        shared_database.execute("TRUNCATE checkpoints, checkpoint_blobs, checkpoint_writes")
        del kept["other", ""]
    elif how == "ours":
        assert packer.delete(THREAD, at=1.0)
    else:
        packer.prune(THREAD, [("sub", f"{n:04}") for n in range(1, 6)])
        del kept[THREAD, "sub"]
    if how != "one namespace":
        del kept[THREAD, ""], kept[THREAD, "sub"]
    found = shared_database.execute(
        "SELECT thread_id, checkpoint_ns, count(*) FROM charm_packed GROUP BY 1, 2"
    )
    assert {(t, ns): n for t, ns, n in found} == kept


@pytest.mark.parametrize("gone", [[5], [5, 4], [1, 2], [3, 5, 6]])
def test_what_stood_on_a_value_that_goes(
    gone: list[int], packer: PostgresBackend, shared_database: psycopg.Connection
) -> None:
    """It is put on another, and no byte is kept for it."""
    talk = Talk()
    talk.go_on(packer, 6)
    packer.compact()
    assert packer.prune(THREAD, [("", f"{n:04}") for n in gone]) == len(gone)
    left = sorted(set(range(1, 7)) - set(gone))
    found = shared_database.execute("SELECT version FROM charm_packed ORDER BY 1").fetchall()
    assert [v for (v,) in found] == [version(n) for n in left if n < 6]
    for n in left:
        assert blobs_of(read(packer, f"{n:04}"))["messages"][2] == talk.values[f"{n:04}"]
    values = shared_database.execute("SELECT data FROM charm_packed").fetchall()
    assert sum(len(data) for (data,) in values) <= 2000 * max(n for n in left if n < 6) + 100


def test_a_foreign_step_that_waited_for_a_packer(
    packer: PostgresBackend, official: PostgresSaver, shared_database: psycopg.Connection
) -> None:
    """What it grew from was packed under its hands, and is whole again before it is stored."""
    talk = Talk()
    talk.go_on(packer, 6)
    dsn = shared_database.info.dsn
    with ThreadPoolExecutor(1) as pool, psycopg.connect(dsn) as packing:
        packing.execute("SELECT charm_pack_v1(%s, '', 'messages', 1, NULL)", (THREAD,))
        checkpoint = _foreign("0009", version(3))
        stepping = pool.submit(official.put, place(THREAD, "0003"), checkpoint, {}, {})
        while not shared_database.execute(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
        ).fetchone():
            assert not stepping.done()
        packing.commit()
        stepping.result(WAIT)
    assert version(3) in whole(shared_database)
    assert version(4) not in whole(shared_database)


def _foreign(name: str, messages: str) -> Any:
    return {
        "v": 4,
        "id": name,
        "ts": "",
        "channel_values": {},
        "channel_versions": {"messages": messages},
        "versions_seen": {},
    }
