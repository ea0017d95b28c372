"""DeltaChannels: values that are rebuilt from writes, and lost without an error when one of those is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.graph import START, StateGraph
from langgraph.types import Command, Overwrite, interrupt
from typing_extensions import TypedDict

from charm_checkpoint.backend import Backend
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.testing.colours import (
    Colour,
    ColourFixtures,
    Driver,
    Durability,
    Saver,
    face_of,
    grow,
    id_of,
    needs_context,
    newest,
    place,
)


class _Counting:
    """Counts the calls that reach a backend."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.calls[name] += 1
        return getattr(self._backend, name)


class _Way(NamedTuple):
    colour: Colour
    durability: Durability
    frequency: int
    """After how many updates a snapshot is stored."""


_WAYS = [
    _Way("async", "sync", 1),
    _Way("async", "async", 3),
    _Way("async", "exit", 1000),
    _Way("sync", "sync", 1000),
    _Way("sync", "async", 1),
    _Way("sync", "exit", 3),
]


async def _step(
    face: Saver,
    on: RunnableConfig,
    *writes: Any,
    holds: Mapping[str, Any] | None = None,
    channel: str = "ch",
) -> RunnableConfig:
    """Put a checkpoint that holds some values, then write on it what makes the next one."""
    config = await grow(face, on, holds)
    for n, value in enumerate(writes):
        await face.aput_writes(config, [(channel, value)], f"task-{n}")
    return config


async def _history(
    face: Saver, config: RunnableConfig, *channels: str
) -> dict[str, tuple[Any, list[Any]]]:
    """Seed (or `...`) and written values of each channel."""
    found = await face.aget_delta_channel_history(config=config, channels=channels or ("ch",))
    return {c: (h.get("seed", ...), [w[2] for w in h["writes"]]) for c, h in found.items()}


def _extend(state: list[Any], writes: Sequence[list[Any]]) -> list[Any]:
    return [*state, *(item for write in writes for item in write)]


def _state(snapshot_frequency: int) -> Any:
    channel: DeltaChannel[Any] = DeltaChannel(_extend, snapshot_frequency=snapshot_frequency)
    return TypedDict("State", {"items": Annotated[list, channel], "n": int})  # type: ignore[operator]


def _delta_graph(saver: Saver, snapshot_frequency: int) -> Any:
    def work(state: Any) -> Any:
        return {"items": [f"work {len(state['items'])}"], "n": len(state["items"])}

    def ask(state: Any) -> Any:
        if state["items"][-2] == "ask":
            return {"items": [interrupt("go on?")]}
        return {"items": ["not asked"]}

    builder = StateGraph(_state(snapshot_frequency))
    builder.add_node("work", work)
    builder.add_node("ask", ask)
    builder.add_edge(START, "work")
    builder.add_edge("work", "ask")
    return builder.compile(checkpointer=saver)


class DeltaContract(ColourFixtures):
    """`get_delta_channel_history`, and graphs that live by it."""

    # -- what the history of a channel is --------------------------------------------------------------------------

    @pytest.mark.asyncio
    async def test_writes_are_oldest_first(self, face: Saver) -> None:
        config = place()
        for n in range(5):
            config = await _step(face, config, n)
        assert await _history(face, config) == {"ch": (..., [0, 1, 2, 3])}

    @pytest.mark.asyncio
    async def test_the_newest_checkpoints_history(self, face: Saver) -> None:
        config = await _step(face, await _step(face, place(), "a"), "b")
        assert await _history(face, place()) == await _history(face, config)
        assert await _history(face, place()) == {"ch": (..., ["a"])}

    @pytest.mark.asyncio
    @pytest.mark.parametrize(
        "seed",
        [_DeltaSnapshot([1]), [1], _DeltaSnapshot([]), [], "", 0, False, {}, None],
        ids=repr,
    )
    async def test_the_nearest_stored_value_is_the_seed(self, face: Saver, seed: Any) -> None:
        """A snapshot, or what an ordinary channel left before it became a DeltaChannel; also an empty one."""
        config = await _step(face, place(), "older", holds={"ch": ["oldest"]})
        config = await _step(face, config, "at the seed", holds={"ch": seed})
        config = await _step(face, config, "after it")
        config = await _step(face, config, "pending", holds={"other": 1})
        assert await _history(face, config) == {"ch": (seed, ["at the seed", "after it"])}

    @pytest.mark.asyncio
    async def test_a_checkpoints_own_value_and_writes_do_not_count(self, face: Saver) -> None:
        config = await _step(face, place(), "before")
        config = await _step(face, config, "own", holds={"ch": ["own"]})
        assert await _history(face, config) == {"ch": (..., ["before"])}

    @pytest.mark.asyncio
    async def test_each_channel_has_its_own_seed(self, face: Saver) -> None:
        config = place()
        for n, holds in enumerate([{}, {"a": "a1"}, {}, {"b": "b3"}, {}]):
            config = await grow(face, config, holds)
            await face.aput_writes(config, [("a", n), ("b", n), ("c", n)], "task")
        assert await _history(face, config, "c", "b", "a", "none") == {
            "a": ("a1", [1, 2, 3]),
            "b": ("b3", [3]),
            "c": (..., [0, 1, 2, 3]),
            "none": (..., []),
        }

    @pytest.mark.asyncio
    async def test_nothing_asked_or_nothing_there(self, face: Saver) -> None:
        config = await _step(face, place(), 1)
        assert await face.aget_delta_channel_history(config=config, channels=[]) == {}
        assert await _history(face, config) == {"ch": (..., [])}
        assert await _history(face, place("unknown")) == {"ch": (..., [])}

    @pytest.mark.asyncio
    async def test_writes_of_a_step_replay_in_task_order(self, face: Saver) -> None:
        config = await grow(face, place())
        for task, path in (("a", "~2"), ("b", "~10"), ("c", "~1"), ("B", "~1")):
            await face.aput_writes(config, [("ch", f"{task}0"), ("ch", f"{task}1")], task, path)
        config = await grow(face, config)
        expected = ["B0", "B1", "c0", "c1", "b0", "b1", "a0", "a1"]
        assert await _history(face, config) == {"ch": (..., expected)}

    @pytest.mark.asyncio
    async def test_abandoned_branches_do_not_count(self, face: Saver) -> None:
        root = await _step(face, place(), "root")
        abandoned = await _step(face, root, "abandoned")
        await _step(face, abandoned, "too", holds={"ch": ["abandoned"]})
        asked_for = (await newest(face, root)).config
        config = await _step(face, await _step(face, asked_for, "kept"))
        assert await _history(face, config) == {"ch": (..., ["root", "kept"])}

    @pytest.mark.asyncio
    async def test_it_is_what_walking_up_one_by_one_gives(self, face: Saver) -> None:
        """LangGraph's default, which reads each ancestor, is the definition."""
        configs = [place()]
        for n in range(24):
            holds = {c: [n] for c, every in (("a", 5), ("b", 7)) if n % every == 3}
            on = configs[-1 if n % 6 else n // 2]
            if on is not configs[-1]:
                on = (await newest(face, on)).config
            config = await grow(face, on, holds)
            for task in range(n % 3):
                writes = [("a", f"{n}.{task}"), ("b", n)][: 1 + n % 2]
                await face.aput_writes(config, writes, f"t{task}", f"p{9 - task}")
            configs.append(config)
        for config in configs:
            channels = ["a", "b", "c"]
            walked = await BaseCheckpointSaver.aget_delta_channel_history(
                face, config=config, channels=channels
            )
            found = await face.aget_delta_channel_history(config=config, channels=channels)
            assert found == walked

    @pytest.mark.asyncio
    async def test_one_call_whatever_the_distance(self, backend: Backend, colour: Colour) -> None:
        counting: Any = _Counting(backend)
        saver = CheckpointSaver(counting)
        face = face_of(saver, colour)
        config = place()
        for n in range(20):
            config = await _step(face, config, n)
        counting.calls.clear()
        assert len((await _history(face, config, "ch", "other"))["ch"][1]) == 19
        assert counting.calls == {"lineage": 1}
        saver.close()

    # -- graphs ----------------------------------------------------------------------------------------------------

    @pytest.fixture(params=_WAYS, ids=lambda way: "-".join(map(str, way)))
    def way(self, request: pytest.FixtureRequest) -> _Way:
        """Each colour, durability and snapshot frequency."""
        way: _Way = request.param
        return way

    @pytest.fixture
    def drivers(self, saver: CheckpointSaver, way: _Way) -> tuple[Driver, Driver]:
        """One graph over the backend, one over LangGraph's memory."""
        return (
            Driver(_delta_graph(saver, way.frequency), way.colour, way.durability),
            Driver(_delta_graph(InMemorySaver(), way.frequency), way.colour, way.durability),
        )

    @pytest.mark.asyncio
    async def test_graphs_with_delta_channels(
        self, way: _Way, drivers: tuple[Driver, Driver]
    ) -> None:
        """Turns, an interrupt, `update_state`, time travel and `Overwrite`, as in memory."""
        needs_context(way.colour)
        seen = []
        for driver in drivers:
            for turn in ("1", "ask"):
                await driver.invoke({"items": [turn]})
            await driver.invoke(Command(resume="resumed"))
            await driver.invoke({"items": ["2"]})
            await driver.update({"items": ["updated"]}, as_node="ask")
            await driver.invoke({"items": ["3"]})
            history = [state.values for state in await driver.history()]
            past = (await driver.history())[-3]
            await driver.invoke(None, past.config)
            await driver.invoke({"items": Overwrite(["anew"])})
            await driver.invoke({"items": ["last"]})
            seen.append((history, (await driver.state()).values))
        assert seen[0] == seen[1]

    @pytest.mark.asyncio
    async def test_pruned_and_copied_they_go_on(
        self, saver: CheckpointSaver, way: _Way, drivers: tuple[Driver, Driver]
    ) -> None:
        driver, reference = drivers
        for turn in range(4):
            for one in drivers:
                await one.invoke({"items": [f"turn {turn}"]})
        face = face_of(saver, way.colour)
        before = (await driver.state()).values
        await face.acopy_thread("thread", "copy")
        copied = [t.checkpoint["id"] async for t in face.alist(place("copy"))]
        for _ in range(2):
            await face.aprune(["thread"], strategy="keep_latest")
            assert (await driver.state()).values == before
        kept = [t.checkpoint["id"] async for t in face.alist(place())]
        assert kept[0] == copied[0]
        assert len(kept) < len(copied) or way.frequency == 1000
        for one in drivers:
            await one.invoke({"items": ["one more"]})
        after = (await driver.state()).values
        assert after == (await reference.state()).values
        copy = Driver(_delta_graph(saver, way.frequency), way.colour, way.durability, "copy")
        assert (await copy.state()).values == before
        await copy.invoke({"items": ["one more"]})
        assert (await copy.state()).values == after

    @pytest.mark.asyncio
    async def test_reading_a_state_takes_two_calls(self, backend: Backend, colour: Colour) -> None:
        counting: Any = _Counting(backend)
        saver = CheckpointSaver(counting)
        driver = Driver(_delta_graph(saver, 1000), colour)
        for turn in range(6):
            await driver.invoke({"items": [str(turn)]})
        counting.calls.clear()
        assert len((await driver.state()).values["items"]) == 18
        assert counting.calls == {"read": 1, "lineage": 1}
        saver.close()

    @pytest.mark.asyncio
    async def test_a_branch_keeps_its_own_past(
        self, saver: CheckpointSaver, colour: Colour
    ) -> None:
        driver = Driver(_delta_graph(saver, 1000), colour, "sync")
        await driver.invoke({"items": ["1"]})
        first = (await driver.state()).config
        await driver.invoke({"items": ["2"]})
        second = (await driver.state()).config
        forked = await driver.update({"items": ["forked"]}, first, as_node="ask")
        assert (await driver.state(second)).values["items"][-3] == "2"
        items = (await driver.state(forked)).values["items"]
        assert items[-1] == "forked"
        assert "2" not in items
        assert (await driver.state()).values["items"] == items
        assert id_of((await driver.state()).config) == id_of(forked)
