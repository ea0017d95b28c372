"""Several writers on one thread, both colours, and what a saver hands out."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.base import id as uuid6_state
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import MessagesState

from charm_checkpoint import history as history_module
from charm_checkpoint.errors import (
    ThreadConflictError,
)
from charm_checkpoint.history import MessageHistory
from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.saver import CheckpointSaver
from tests.history.faces import (
    THREAD,
    TOOL_TURN,
    DeltaState,
    Saver,
    chat,
    own_sqlite,
    state_of,
    user,
)


def test_appends_of_many_writers_are_all_kept(fencing_saver: Saver) -> None:
    graph = chat(fencing_saver)
    history = MessageHistory(fencing_saver)
    history.save("trip", [user("start")])
    failures: list[BaseException] = []

    def write(name: str) -> None:
        try:
            for i in range(5):
                history.append("trip", [user(f"{name}{i}")])
        except BaseException as error:  # noqa: BLE001  # told below, in the test's own thread
            failures.append(error)

    writers = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failures == []
    texts = [m.text for m in state_of(graph)]
    for name in "abcd":
        assert [t for t in texts if t.startswith(name)] == [f"{name}{i}" for i in range(5)]
    assert len(texts) == 21


async def test_async_appends_of_many_writers_are_all_kept(tmp_path: Path) -> None:
    with own_sqlite(tmp_path) as saver:
        history = MessageHistory(saver)
        await asyncio.gather(*(history.aappend("trip", [user(str(i))]) for i in range(8)))
        texts = [d["content"] for d in await history.aload("trip")]
        assert sorted(texts) == [str(i) for i in range(8)]


class Raced(CheckpointSaver):
    """Another writer gets in after each of the next `races` reads."""

    races = 0

    def get_tuple(self, config: Any) -> CheckpointTuple | None:
        found = super().get_tuple(config)
        self._race()
        return found

    async def aget_tuple(self, config: Any) -> CheckpointTuple | None:
        found = await super().aget_tuple(config)
        self._race()
        return found

    def _race(self) -> None:
        if self.races:
            self.races -= 1
            other = MessageHistory(CheckpointSaver(self.engine.backend, device="phone"))
            other.append("trip", [user(f"other {self.races}")])


@pytest.fixture
def raced() -> Iterator[Raced]:
    saver = Raced(MemoryBackend())
    yield saver
    saver.close()


@pytest.mark.parametrize("begun", [False, True])
async def test_an_append_that_lost_a_race_is_repeated(raced: Raced, begun: bool) -> None:
    history = MessageHistory(raced)
    before = [user("hi")] if begun else []
    history.append("trip", before)
    raced.races = 2
    history.append("trip", [user("mine")])
    raced.races = 1
    await history.aappend("trip", [user("too")])
    others = [user("other 1"), user("other 0")]
    assert history.load("trip") == [*before, *others, user("mine"), user("other 0"), user("too")]


async def test_a_save_that_lost_a_race_is_told(raced: Raced) -> None:
    history = MessageHistory(raced)
    history.save("trip", [user("hi")])
    raced.races = 1
    with pytest.raises(ThreadConflictError, match="'phone'"):
        history.save("trip", [user("mine")])
    raced.races = 1
    with pytest.raises(ThreadConflictError, match="'phone'"):
        await history.asave("trip", [user("mine")])
    assert history.load("trip") == [user("hi"), user("other 0"), user("other 0")]


async def test_an_append_that_always_loses_gives_up(
    raced: Raced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "_LONGEST_PAUSE", 0)
    history = MessageHistory(raced)
    raced.races = 1000
    with pytest.raises(ThreadConflictError):
        history.append("trip", [user("mine")])
    with pytest.raises(ThreadConflictError):
        await history.aappend("trip", [user("mine")])
    tried, raced.races = 1000 - raced.races, 0
    assert tried == 2 * (history_module._RETRIES + 1)
    assert user("mine") not in history.load("trip")


def test_a_save_follows_a_checkpoint_from_a_clock_that_is_ahead(
    saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = MessageHistory(saver)
    with monkeypatch.context() as ahead:
        hour = 60 * 60 * 10_000_000  # in uuid6's ticks
        history.save("trip", [user("before")])
        assert uuid6_state._last_v6_timestamp is not None
        ahead.setattr(uuid6_state, "_last_v6_timestamp", uuid6_state._last_v6_timestamp + hour)
        history.append("trip", [user("from the future")])
    monkeypatch.setattr(uuid6_state, "_last_v6_timestamp", None)
    history.append("trip", [user("now")])
    assert [d["content"] for d in history.load("trip")] == ["before", "from the future", "now"]


@pytest.mark.parametrize("schema", [MessagesState, DeltaState])
async def test_the_async_face_is_the_same(async_saver: Saver, schema: Any) -> None:
    history, graph = MessageHistory(async_saver), chat(async_saver, schema)
    assert await history.aload("trip") == []
    await history.asave("trip", TOOL_TURN)
    await history.asave("trip", TOOL_TURN)
    await graph.ainvoke({"messages": [HumanMessage("and now?", id="q")]}, THREAD)
    shown = await history.aload("trip")
    assert shown[:-1] == [*TOOL_TURN, user("and now?", id="q")]
    assert shown[-1]["content"] == "8: and now?"
    await history.aappend("trip", [user("thanks")])
    assert await history.aload("trip") == [*shown, user("thanks")]
    state = (await graph.aget_state(THREAD)).values["messages"]
    assert [m.text for m in state[-2:]] == ["8: and now?", "thanks"]
    assert len([c async for c in async_saver.alist(THREAD)]) == 5


class Remembering(InMemorySaver):
    """Hands out the same objects for the same checkpoint, as a saver may."""

    handed_out: dict[str, tuple[CheckpointTuple, CheckpointTuple]] | None = None

    def get_tuple(self, config: Any) -> CheckpointTuple | None:
        found = super().get_tuple(config)
        if found is None or self.handed_out is None:
            return found
        pair = (found, copy.deepcopy(found))
        return self.handed_out.setdefault(found.checkpoint["id"], pair)[0]


@pytest.mark.parametrize("schema", [MessagesState, DeltaState])
def test_what_a_saver_hands_out_is_not_changed(schema: Any) -> None:
    saver = Remembering()
    history, graph = MessageHistory(saver), chat(saver, schema)
    history.save("trip", TOOL_TURN)
    graph.invoke({"messages": [HumanMessage("hm", id="1")]}, THREAD)
    saver.handed_out = {}
    history.append("trip", [user("hi")])
    history.load("trip")[1]["content"][0]["text"] = "spoiled"
    history.save("trip", history.load("trip")[2:])
    history.load("trip")[0]["tool_calls"].clear()
    assert history.load("trip")[0] == TOOL_TURN[2]
    assert len(saver.handed_out) == 3
    for handed, before in saver.handed_out.values():
        assert handed == before
