"""Adopt and leave: LangGraph's PostgresSaver before, after and beside this project's saver on the same tables."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import psycopg
import pytest
from langchain_core.messages import AIMessage
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver, DeltaChannelHistory
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.shallow import ShallowPostgresSaver
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt
from psycopg.rows import dict_row
from typing_extensions import TypedDict

import charm_memory_postgres
from charm_checkpoint.backend import Scan, ThreadQuery
from charm_checkpoint.errors import BackendCorrupt, ThreadConflictError, ThreadDeletedError
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.testing.colours import Driver, grow, place
from charm_checkpoint.testing.graphs import _view
from charm_checkpoint.testing.scenarios import SCENARIOS, Scenario, chat, turn
from charm_memory_postgres import PostgresBackend
from tests.postgres import old
from tests.test_differential import shown

Saver = BaseCheckpointSaver[Any]


@pytest.fixture
def official(database: str) -> Iterator[PostgresSaver]:
    with _Official(database) as saver:
        yield saver


@pytest.fixture
def ours(database: str) -> Iterator[CheckpointSaver]:
    saver = CheckpointSaver(PostgresBackend(database), device="laptop")
    yield saver
    saver.close()


class _Official:
    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> PostgresSaver:
        self._connection = psycopg.connect(
            self._url, autocommit=True, prepare_threshold=0, row_factory=dict_row
        )
        return PostgresSaver(self._connection)

    def __exit__(self, *_: object) -> None:
        self._connection.close()


class Switch(BaseCheckpointSaver[str]):
    """A saver that is one or the other, as it is told."""

    def __init__(self, *savers: Saver) -> None:
        super().__init__()
        self.savers = list(savers)

    def switch(self) -> None:
        self.savers.append(self.savers.pop(0))

    def with_allowlist(self, extra_allowlist: Any) -> Switch:
        return self

    def get_next_version(self, current: Any, channel: None) -> str:
        return self.savers[0].get_next_version(current, channel)  # type: ignore[no-any-return]

    def get_tuple(self, config: Any) -> Any:
        return self.savers[0].get_tuple(config)

    def list(self, config: Any, **options: Any) -> Any:
        return self.savers[0].list(config, **options)

    def put(self, *arguments: Any) -> Any:
        return self.savers[0].put(*arguments)

    def put_writes(self, *arguments: Any) -> None:
        self.savers[0].put_writes(*arguments)

    def get_delta_channel_history(
        self, *, config: Any, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return self.savers[0].get_delta_channel_history(config=config, channels=channels)


class SwitchingDriver(Driver):
    """Hands each call to the other saver than the call before."""

    def __init__(self, graph: Any, durability: Any) -> None:
        super().__init__(graph, "sync", durability)
        self.saver: Switch = graph.checkpointer

    async def invoke(self, *arguments: Any) -> Any:
        self.saver.switch()
        return await super().invoke(*arguments)

    async def update(self, *arguments: Any, **options: Any) -> Any:
        self.saver.switch()
        return await super().update(*arguments, **options)

    async def state(self, *arguments: Any, **options: Any) -> Any:
        """Both tell the same."""
        first = await super().state(*arguments, **options)
        self.saver.switch()
        assert _view(await super().state(*arguments, **options)) == _view(first)
        return first


def test_leaving_for_good(database: str, empty_database: str) -> None:
    """What the README says leaves nothing but LangGraph's tables."""
    readme = Path(charm_memory_postgres.__file__).parents[1] / "README.md"
    [leaving] = re.findall(r"```sql\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    backend = PostgresBackend(empty_database, pack_after=1)
    saver = CheckpointSaver(backend)
    for text in ("hi", "long " * 1000, "later"):
        chat(saver).invoke(turn(text), place())
    before = [t.checkpoint["channel_values"] for t in saver.list(place())]
    done = backend.compact()
    assert done.after < done.before
    saver.close()
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute(leaving.encode())
        left = connection.execute(
            "SELECT relname FROM pg_class WHERE relname LIKE 'charm%' UNION ALL "
            "SELECT proname FROM pg_proc WHERE proname LIKE 'charm%' UNION ALL "
            "SELECT tgname FROM pg_trigger WHERE tgname LIKE 'charm%'"
        )
        assert left.fetchall() == []
    with _Official(empty_database) as official:
        official.setup()
        assert [t.checkpoint["channel_values"] for t in official.list(place())] == before
        assert chat(official).invoke(turn("again"), place())["items"][:2] == ["hi", "said hi"]
        official.delete_thread("thread")


# -- taking turns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["sync", "exit"])
@pytest.mark.parametrize("first", [0, 1], ids=["official-first", "ours-first"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
async def test_graphs_that_change_their_saver_from_call_to_call(
    scenario: Scenario, first: int, durability: Any, official: PostgresSaver, ours: CheckpointSaver
) -> None:
    savers = [ours, official] if first == 0 else [official, ours]
    seen = []
    for driver in (
        Driver(scenario.build(InMemorySaver()), "sync", durability),
        SwitchingDriver(scenario.build(Switch(*savers)), durability),
    ):
        told = await scenario.play(driver)
        state = _view(await driver.state(subgraphs=True))
        seen.append((told, state, [_view(s) for s in await driver.history()]))
    assert seen[0] == seen[1]


def _extend(state: list[Any], writes: Sequence[list[Any]]) -> list[Any]:
    return [*state, *(item for write in writes for item in write)]


@pytest.mark.parametrize("frequency", [1, 2, 3, 1000])
async def test_delta_channels_that_change_their_saver(
    frequency: int, official: PostgresSaver, ours: CheckpointSaver
) -> None:
    channel: DeltaChannel[Any] = DeltaChannel(_extend, snapshot_frequency=frequency)
    state = TypedDict("State", {"items": Annotated[list, channel], "n": int})  # type: ignore[operator]  # noqa: UP013

    def work(state: Any) -> Any:
        return {"items": [f"work {len(state['items'])}"], "n": len(state["items"])}

    def ask(state: Any) -> Any:
        return {"items": [interrupt("go on?")]}

    builder = StateGraph(state)
    builder.add_node("work", work)
    builder.add_node("ask", ask)
    builder.add_edge(START, "work")
    builder.add_edge("work", "ask")
    seen = []
    for driver in (
        Driver(builder.compile(checkpointer=InMemorySaver()), "sync"),
        SwitchingDriver(builder.compile(checkpointer=Switch(ours, official)), "async"),
    ):
        for n in range(4):
            await driver.invoke({"items": [f"turn {n}"]})
            await driver.invoke(Command(resume=f"answer {n}"))
        seen.append([_view(s) for s in await driver.history()])
    assert seen[0] == seen[1]


async def test_plain_values_outlive_changes_of_the_saver(
    official: PostgresSaver, ours: CheckpointSaver
) -> None:
    """The official saver keeps them in each checkpoint, this one at their version: neither may lose the other's."""
    values = {"text": "Grüße \U0001f680", "n": 7, "f": 0.5, "yes": True, "no": False, "none": None}

    class State(TypedDict):
        text: str
        n: int
        f: float
        yes: bool
        no: bool
        none: Any
        rounds: int

    builder: Any = StateGraph(State)
    builder.add_node("count", lambda state: {"rounds": state["rounds"] + 1})
    builder.add_edge(START, "count")
    for savers in ([ours, official], [official, ours]):
        config: Any = {"configurable": {"thread_id": str(savers)}}
        savers[0].delete_thread(config["configurable"]["thread_id"])
        builder.compile(checkpointer=savers[0]).invoke({**values, "rounds": 0}, config)
        for saver in (savers[1], savers[1], savers[0], savers[1], savers[0], savers[0]):
            found = builder.compile(checkpointer=saver).invoke({"rounds": 1}, config)
            assert found == {**values, "rounds": 2}
            assert [type(v) for v in found.values()] == [*map(type, values.values()), int]


# -- adopting ----------------------------------------------------------------------------------------------------------


def _asking(saver: Saver) -> Any:
    def answer(state: MessagesState) -> Any:
        return {
            "messages": [AIMessage(f"told: {interrupt('say?')}", id=str(len(state["messages"])))]
        }

    builder = StateGraph(MessagesState)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    return builder.compile(checkpointer=saver)


def test_a_database_that_the_official_saver_filled(empty_database: str) -> None:
    with _Official(empty_database) as official:
        official.setup()
        for n in range(3):
            config: Any = {"configurable": {"thread_id": f"thread {n}", "run_id": f"run-{n}"}}
            _asking(official).invoke({"messages": [("user", f"hi {n}")]}, config)
        _asking(official).invoke(
            Command(resume="done"), {"configurable": {"thread_id": "thread 0"}}
        )

        ours = CheckpointSaver(PostgresBackend(empty_database), device="laptop")
        rows = ours.engine.call(lambda backend: backend.threads(ThreadQuery(limit=10)))
        assert [row.thread_id for row in rows] == ["thread 0", "thread 2", "thread 1"]
        assert [row.status for row in rows] == ["idle", "interrupted", "interrupted"]
        labelled = ThreadQuery(labels={"run_id": "run-1"})
        page = ours.engine.call(lambda backend: backend.threads(labelled))
        assert [row.thread_id for row in page] == ["thread 1"]
        assert all(row.created_at <= row.updated_at for row in rows)
        assert {head.device for row in rows for head in row.heads} == {"another saver"}
        page = ours.engine.call(lambda backend: backend.scan(Scan(run_ids=("run-1",))))
        assert {entry.thread_id for entry in page.entries} == {"thread 1"}
        for n in range(3):
            where: Any = {"configurable": {"thread_id": f"thread {n}"}}
            assert [t.config for t in ours.list(where)] == [t.config for t in official.list(where)]

        config = {"configurable": {"thread_id": "thread 1"}}
        told = _asking(ours).invoke(Command(resume="yes"), config)
        assert [m.content for m in told["messages"]] == ["hi 1", "told: yes"]
        ours.close()
        assert _asking(official).get_state(config).values == told


def test_setting_up_after_the_official_saver_and_before(empty_database: str) -> None:
    backend = PostgresBackend(empty_database)
    backend.setup()
    with _Official(empty_database) as official:
        official.setup()
        chat(official).invoke(turn("hi"), place())
        saver = CheckpointSaver(backend)
        assert chat(saver).get_state(place()).values["items"] == ["hi", "said hi"]
        saver.close()


def test_the_tables_of_a_shallow_saver_are_refused(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True, row_factory=dict_row) as connection:
        with pytest.warns(DeprecationWarning, match="ShallowPostgresSaver"):
            ShallowPostgresSaver(connection).setup()
        backend = PostgresBackend(empty_database)
        with pytest.raises(BackendCorrupt, match="ShallowPostgresSaver"):
            backend.setup()
        backend.close()
        tables = connection.execute("SELECT 1 FROM pg_tables WHERE tablename LIKE 'charm%'")
        assert tables.fetchall() == []
    backend = PostgresBackend(empty_database, schema="of its own")
    backend.setup()
    assert list(backend.threads(ThreadQuery(limit=1))) == []
    backend.close()


@pytest.mark.parametrize(
    "seed", ["text", 0, False, True, None, [1], _DeltaSnapshot([1]), _DeltaSnapshot(True)], ids=repr
)
async def test_the_history_of_a_delta_channel_begins_with_what_the_official_saver_left(
    seed: Any, official: PostgresSaver, ours: CheckpointSaver
) -> None:
    on = place()
    for id, values in (("1", {"ch": seed}), ("2", {}), ("3", {})):
        checkpoint = {
            **_checkpoint(id),
            "channel_values": values,
            "channel_versions": {"ch": f"{id}.0"},
        }
        versions = checkpoint["channel_versions"]
        on = official.put(on, checkpoint, {"source": "loop"}, versions if values else {})  # type: ignore[typeddict-item]
        official.put_writes(on, [("ch", f"written on {id}")], "task")
    theirs = official.get_delta_channel_history(config=on, channels=["ch", "other"])
    assert ours.get_delta_channel_history(config=on, channels=["ch", "other"]) == theirs
    assert [w[2] for w in theirs["ch"]["writes"]] == ["written on 1", "written on 2"]


# -- old formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", old.FORMATS)
def test_checkpoints_of_older_formats(
    format: str, database: str, official: PostgresSaver, ours: CheckpointSaver
) -> None:
    """Rows as releases of their time left them: both savers tell the same of them."""
    old.insert(database, format)
    where = place("old")
    theirs = [t.config for t in official.list(where)]  # which holds its lock until the end
    assert len(theirs) == 2
    assert list(map(shown, ours.list(where))) == list(map(shown, official.list(where)))
    for place_ in (where, *theirs):
        assert shown(ours.get_tuple(place_)) == shown(official.get_tuple(place_))


# -- what a foreign saver does, seen from here -------------------------------------------------------------------------


async def test_a_foreign_step_is_seen_as_a_conflict(
    official: PostgresSaver, ours: CheckpointSaver
) -> None:
    first = await grow(ours, place())
    official.put(first, _checkpoint("ff"), {"source": "loop", "step": 1, "parents": {}}, {})
    with pytest.raises(ThreadConflictError, match="another saver"):
        await grow(ours, first)


async def test_a_foreign_deletion_leaves_a_tombstone(
    official: PostgresSaver, ours: CheckpointSaver
) -> None:
    first = await grow(ours, place(), {"a": [1]})
    official.delete_thread("thread")
    assert list(ours.engine.call(lambda backend: backend.threads(ThreadQuery(limit=9)))) == []
    before = time.time()
    with pytest.raises(ThreadDeletedError) as refused:
        await grow(ours, first)
    assert before - 60 < refused.value.deleted_at < before + 60
    anew = await grow(ours, place())
    assert ours.get_tuple(place()).config == anew  # type: ignore[union-attr]


async def test_a_foreign_prune_leaves_the_head(
    official: PostgresSaver, ours: CheckpointSaver
) -> None:
    config = place()
    for n in range(4):
        config = await grow(ours, config, {"a": [n]})
    official.prune(["thread"])
    assert [t.config for t in ours.list(place())] == [config]
    await grow(ours, config)


async def test_rows_loaded_in_any_order_have_the_greatest_id_as_head(
    official: PostgresSaver, ours: CheckpointSaver
) -> None:
    for id in ("3", "1", "4", "2"):
        official.put(place(), _checkpoint(id), {}, {})  # type: ignore[typeddict-item]
    assert ours.get_tuple(place()).checkpoint["id"] == "4"  # type: ignore[union-attr]


async def test_a_checkpoint_that_was_put_again_counts_as_put_last(
    official: PostgresSaver, ours: CheckpointSaver
) -> None:
    config = await grow(ours, place(), note=["NUL \x00"])
    assert ours.get_tuple(config).metadata["note"] == ["NUL \x00"]  # type: ignore[union-attr,typeddict-item]
    checkpoint = _checkpoint(config["configurable"]["checkpoint_id"])
    official.put(place(), checkpoint, {"step": 5}, {})
    assert ours.get_tuple(config).metadata["step"] == 5  # type: ignore[union-attr]


def test_truncating_the_tables_forgets_the_threads(database: str, ours: CheckpointSaver) -> None:
    chat(ours).invoke(turn("hi"), place())
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("TRUNCATE checkpoints, checkpoint_blobs, checkpoint_writes")
    assert list(ours.engine.call(lambda backend: backend.threads(ThreadQuery(limit=9)))) == []
    assert ours.get_tuple(place()) is None


def _checkpoint(id: str) -> Any:
    return {
        "v": 4,
        "id": id,
        "ts": "2026-01-01T00:00:00+00:00",
        "channel_values": {},
        "channel_versions": {},
        "versions_seen": {},
        "updated_channels": None,
    }
