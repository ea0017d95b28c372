"""Reading what is here, what is only there, and both together."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import pytest
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import START, StateGraph
from langgraph.types import Command
from typing_extensions import TypedDict

from charm_checkpoint.backend import Scan, ThreadQuery
from charm_checkpoint.errors import BackendUnavailable
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.testing.rows import blob, chain, keys, pending, put, store, write
from charm_checkpoint.testing.scenarios import SCENARIOS
from charm_memory_postgres import PostgresBackend
from tests.core.support import WAIT, id_of, place
from tests.replica.conftest import MakeDevice
from tests.replica.support import Device


@pytest.fixture
def before(laptop: Device) -> Device:
    """A device whose thread of three turns is at the remote."""
    for n in range(3):
        laptop.turn(f"{n}")
    laptop.sync()
    return laptop


# -- threads -----------------------------------------------------------------------------------------------------------


def test_threads_of_everybody(laptop: Device, phone: Device) -> None:
    for n in range(3):
        laptop.turn("hi", f"laptop {n}")
        phone.turn("hi", f"phone {n}")
    laptop.sync()
    phone.sync()
    names = {f"{who} {n}" for who in ("laptop", "phone") for n in range(3)}
    for device in (laptop, phone):
        assert {info.thread_id for info in device.threads()} == names
        assert device.thread("laptop 0").device == "laptop"
        assert device.thread("phone 2").device == "phone"
        assert device.thread("nobody's") is None
    listed = [(i.thread_id, i.updated_at, i.created_at, i.status) for i in laptop.threads()]
    assert listed == [(i.thread_id, i.updated_at, i.created_at, i.status) for i in phone.threads()]


def test_a_thread_that_is_only_there_is_gone_on_with(before: Device, phone: Device) -> None:
    assert [info.thread_id for info in phone.threads()] == ["t"]
    assert phone.turn("3")[::2] == ["0", "1", "2", "3"]
    phone.sync()
    assert before.said() == ["0", "1", "2", "3"]


def test_threads_with_something_unsent(laptop: Device, phone: Device) -> None:
    """As they are here, at their place; those that are only here, too."""
    for name in ("a", "b", "c"):
        laptop.turn("hi", name)
    laptop.sync()
    phone.turn("hi", "d")
    phone.sync()
    waiting = threading.Event()
    laptop.line.before = lambda verb, _: verb != "write" or waiting.wait(WAIT)
    laptop.turn("hi again", "a")
    laptop.turn("hi again", "d")
    laptop.turn("hi", "new")
    for limit in (None, 2, 10):
        listed = [info.thread_id for info in laptop.threads(limit=limit)]
        assert listed == ["new", "d", "a", "c", "b"][:limit]
    for name in ("a", "d"):
        there, here = phone.thread(name), laptop.thread(name)
        assert here.checkpoint_id != there.checkpoint_id
        assert here.updated_at > there.updated_at
        assert here.created_at == there.created_at, "when it was begun, wherever"
    waiting.set()


@pytest.mark.parametrize("remote", ["sqlite", "postgres"])
def test_a_named_thread_with_something_unsent(
    remote: str, device: MakeDevice, request: pytest.FixtureRequest
) -> None:
    """Some databases leave out the cursor when a thread is named."""
    options = {}
    if remote == "postgres":
        options["remote"] = PostgresBackend(request.getfixturevalue("database"))
    laptop = device("laptop", **options)
    laptop.turn("one")
    laptop.sync()
    sent = laptop.thread("t")
    waiting = threading.Event()
    laptop.line.before = lambda verb, _: verb != "write" or waiting.wait(WAIT)
    laptop.turn("two")
    found = laptop.thread("t")
    assert found.updated_at > sent.updated_at
    waiting.set()


def test_pages_of_threads_while_they_are_sent(laptop: Device) -> None:
    """None is lost, none is listed twice."""
    backend = laptop.saver.engine.backend
    backend.setup()
    names = {f"thread {n:02}" for n in range(30)}
    laptop.away()
    for n, name in enumerate(sorted(names)):
        store(backend, put("1", thread=name, at=1000.0 + n))
    laptop.line.cut = False
    for size in (1, 2, 7):
        found, after = [], None
        while page := backend.threads(ThreadQuery(size, after)):
            found += [row.thread_id for row in page]
            after = (page[-1].updated_at, page[-1].thread_id)
        assert found == sorted(names, reverse=True)
    laptop.sync()


def test_threads_by_status_and_label_with_something_unsent(laptop: Device, phone: Device) -> None:
    """What is only here counts, and what the remote still says of the same threads does not."""
    here, there = (device.saver.engine.backend for device in (laptop, phone))
    here.setup()
    there.setup()
    asks = write(idx=-3, channel="__interrupt__")
    for n, name in enumerate(("asks", "asked", "elsewhere")):
        first = put("1", thread=name, at=1000.0 + n, metadata=b'{"user":"ann"}')
        store(there, first, pending("1", *([] if name == "asks" else [asks]), thread=name))
    phone.sync()
    for name in ("asks", "asked"):
        assert here.read(name, "", None).head == "1"
    waiting = threading.Event()
    laptop.line.before = lambda verb, _: verb != "write" or waiting.wait(WAIT)
    store(here, pending("1", asks, thread="asks"))
    store(here, put("2", "1", thread="asked", at=2000.0, metadata=b'{"user":"ben"}'))

    def found(**asked: Any) -> list[str]:
        return [info.thread_id for info in laptop.threads(**asked)]

    for _ in range(2):
        assert found(status="interrupted") == ["elsewhere", "asks"]
        assert found(status="idle") == found(labels={"user": "ben"}) == ["asked"]
        assert found(labels={"user": "ann"}) == ["elsewhere", "asks"]
        assert found(labels={"user": "ann"}, limit=1) == ["elsewhere"]
        waiting.set()
        laptop.sync()
    laptop.line.cut = True
    assert found(status="interrupted") == ["asks"], "as far as it was seen here"


# -- history -----------------------------------------------------------------------------------------------------------


def test_history_is_everybodys(before: Device, phone: Device) -> None:
    phone.turn("3")
    waiting = threading.Event()
    phone.sync()
    phone.line.before = lambda verb, _: verb != "write" or waiting.wait(WAIT)
    phone.turn("4")
    states = list(phone.graph.get_state_history(place("t")))
    assert len(states) == 20
    assert states[0].values["turns"][::2] == ["0", "1", "2", "3", "4"]
    assert states[-1].values == {"turns": []}
    for state, older in itertools.pairwise(states):
        assert state.parent_config == older.config
    assert len(list(before.history("t"))) == 16
    waiting.set()
    phone.sync()
    assert [id_of(t.config) for t in before.history("t")] == [id_of(s.config) for s in states]
    tasks = [s.tasks[0].name for s in before.graph.get_state_history(place("t")) if s.tasks]
    assert tasks == ["answer", "think", "__start__"] * 5


def test_pages_of_history_while_it_is_sent(laptop: Device) -> None:
    """Wherever a page ends and whatever is sent meanwhile, every step is listed once."""
    backend = laptop.saver.engine.backend
    backend.setup()
    names = [f"{n:03}" for n in range(60)]
    chain(backend, *names[:30])
    laptop.sync()
    step = threading.Semaphore(0)
    laptop.line.before = lambda verb, _: verb != "write" or step.acquire(timeout=WAIT)
    parent = names[29]
    with ThreadPoolExecutor(1) as pool:
        for name in names[30:]:
            store(backend, put(name, parent))
            parent = name
        expected = [(name, "thread", "") for name in reversed(names)]
        for limit in (1, 4, 59, 100):
            reading = pool.submit(keys, backend, Scan(thread_id="thread", limit=limit))
            step.release()
            assert reading.result(WAIT) == expected
        for _ in range(100):
            step.release()
    laptop.sync()
    assert keys(backend, Scan(limit=7)) == expected


def test_pages_of_all_threads_with_old_steps_unsent(laptop: Device, phone: Device) -> None:
    """What is only here comes between what is there, and after it; what is deleted here leaves gaps in the pages."""
    here, there = (device.saver.engine.backend for device in (laptop, phone))
    here.setup()
    there.setup()
    chain(there, *(f"{n:02}" for n in range(10, 60, 3)), thread="phone")
    chain(there, *(f"{n:02}" for n in range(11, 60, 3)), thread="deleted")
    phone.sync()
    waiting = threading.Event()
    laptop.line.before = lambda verb, _: verb != "write" or waiting.wait(WAIT)
    chain(here, *(f"{n:02}" for n in range(40)), thread="laptop")
    here.delete("deleted", at=1.0)
    expected = sorted(
        [(f"{n:02}", "phone", "") for n in range(10, 60, 3)]
        + [(f"{n:02}", "laptop", "") for n in range(40)],
        reverse=True,
    )
    for limit in (1, 2, 5, 57, 100):
        # Not `keys`: with what is deleted left out, a page may end before the place where the next one goes on.
        found, query = [], Scan(limit=limit)
        while query is not None:
            page = here.scan(query)
            assert len(page.entries) <= limit
            found += [(e.snapshot.checkpoint.checkpoint_id, *e[:2]) for e in page.entries]
            query = page.next and query._replace(after=page.next)
        assert found == expected
    waiting.set()


def test_a_write_that_is_not_there_yet_is_in_the_history(before: Device) -> None:
    backend = before.saver.engine.backend
    head = before.saver.get_tuple(place("t"))
    waiting = threading.Event()
    before.line.before = lambda verb, _: verb != "write" or waiting.wait(WAIT)
    before.saver.put_writes(head.config, [("turns", ["pending"])], "task")
    listed = next(iter(before.history("t")))
    assert [w[2] for w in listed.pending_writes] == [["pending"]]
    assert [w.task_id for w in backend.read("t", "", id_of(head.config)).writes] == ["task"]
    waiting.set()


def test_what_another_device_wrote_to_an_old_step(before: Device, phone: Device) -> None:
    """By id, a checkpoint is read with all that the remote has of it."""
    old = list(phone.graph.get_state_history(place("t")))[5].config
    assert phone.saver.get_tuple(old) is not None
    phone.saver.put_writes(old, [("turns", ["from the phone"])], "task")
    phone.sync()
    assert any(w[2] == ["from the phone"] for w in before.saver.get_tuple(old).pending_writes)


def test_time_travel_from_what_is_only_there(before: Device, phone: Device) -> None:
    past = next(
        s.config
        for s in phone.graph.get_state_history(place("t"))
        if s.values["turns"][::2] == ["0", "1"] and not s.next
    )
    assert phone.graph.get_state(past).values["turns"][::2] == ["0", "1"]
    phone.graph.invoke({"turns": ["fork"]}, past)
    assert phone.said() == ["0", "1", "fork"]
    phone.sync()
    assert before.said() == ["0", "1", "fork"]
    assert before.conflicts() == phone.conflicts() == []


def test_an_old_step_that_was_read_is_here(before: Device, phone: Device) -> None:
    past = list(phone.graph.get_state_history(place("t")))[6].config
    phone.graph.get_state(past)
    phone.away()
    assert phone.graph.get_state(past).values["turns"]
    phone.graph.update_state(past, {"turns": ["fork"]}, as_node="think")
    assert phone.said()[-1] == "fork"


def test_reading_by_id_while_the_thread_is_written(before: Device, phone: Device) -> None:
    """What this device does meanwhile does not hide what is only there."""
    past = [s.config for s in phone.graph.get_state_history(place("t"))]

    def meddle(verb: str, answer: Any) -> Any:
        if verb == "read":
            head = phone.saver.get_tuple(place("t"))
            phone.saver.put_writes(head.config, [("turns", ["x"])], f"task {len(phone.line.made)}")
        return answer

    phone.line.after = meddle
    for config in past[1:]:
        assert phone.saver.get_tuple(config) is not None


def test_the_subgraphs_of_an_old_step(laptop: Device, phone: Device) -> None:
    """With a root that was read before or not."""
    scenario = next(s for s in SCENARIOS if s.name == "subgraph")
    graph = scenario.build(laptop.saver)
    graph.invoke({"items": ["go"]}, place("t"))
    for answer in ("one", "two"):
        graph.invoke(Command(resume=answer), place("t"))
    laptop.sync()
    there = scenario.build(phone.saver)
    names = {
        t.config["configurable"]["checkpoint_ns"] for t in laptop.saver.list(place("t", None, None))
    }
    [old] = names - {""}
    assert phone.saver.get_tuple(place("t", namespace=old)) is not None
    for state in there.get_state_history(place("t")):
        for task in state.tasks:
            if task.state is not None:
                assert there.get_state(task.state).values["items"]


# -- channels of deltas ------------------------------------------------------------------------------------------------


def add(old: list[str], new: list[list[str]]) -> list[str]:
    return old + [text for texts in new for text in texts]


def growing(saver: CheckpointSaver, snapshot_frequency: int = 1000) -> Any:
    """A graph whose turns are in a DeltaChannel."""

    channel = DeltaChannel(add, snapshot_frequency=snapshot_frequency)
    builder: Any = StateGraph(TypedDict("State", {"turns": Annotated[list[str], channel]}))
    builder.add_node("answer", lambda state: {"turns": [f"re {state['turns'][-1]}"]})
    builder.add_edge(START, "answer")
    return builder.compile(checkpointer=saver)


@pytest.mark.parametrize("snapshot_frequency", [1, 3, 1000])
def test_a_delta_channel_goes_on_elsewhere_then_offline(
    laptop: Device, phone: Device, snapshot_frequency: int
) -> None:
    graphs = [growing(device.saver, snapshot_frequency) for device in (laptop, phone)]
    for n in range(4):
        graphs[0].invoke({"turns": [f"{n}"]}, place("t"))
    laptop.sync()
    graphs[1].invoke({"turns": ["4"]}, place("t"))
    phone.away()
    for n in range(5, 9):
        told = graphs[1].invoke({"turns": [f"{n}"]}, place("t"))["turns"]
        assert told[::2] == [f"{i}" for i in range(n + 1)]
    phone.back()
    laptop.away()
    assert graphs[0].get_state(place("t")).values["turns"][::2] == ["0", "1", "2", "3"]
    laptop.back()
    laptop.refresh("t")
    told = graphs[0].invoke({"turns": ["9"]}, place("t"))["turns"]
    assert told[::2] == [f"{i}" for i in range(10)]


def test_a_delta_channels_old_steps(laptop: Device, phone: Device) -> None:
    graphs = [growing(device.saver) for device in (laptop, phone)]
    for n in range(4):
        graphs[0].invoke({"turns": [f"{n}"]}, place("t"))
    laptop.sync()
    values = [state.values for state in graphs[0].get_state_history(place("t"))]
    assert [state.values for state in graphs[1].get_state_history(place("t"))] == values
    past = [s.config for s in graphs[1].get_state_history(place("t"))]
    assert [graphs[1].get_state(config).values for config in past] == values
    phone.away()
    assert [graphs[1].get_state(config).values for config in past] == values, "they were read"


def test_a_delta_channel_that_is_not_all_here(laptop: Device, phone: Device) -> None:
    """Told, not made up."""
    graphs = [growing(device.saver) for device in (laptop, phone)]
    for n in range(3):
        graphs[0].invoke({"turns": [f"{n}"]}, place("t"))
    laptop.sync()
    [*_, old] = [s.config for s in graphs[0].get_state_history(place("t")) if s.values["turns"]]
    phone.saver.get_tuple(place("t"))
    phone.away()
    assert graphs[1].get_state(place("t")).values["turns"][::2] == ["0", "1", "2"]
    with pytest.raises(BackendUnavailable):
        graphs[1].get_state(old)


# -- messages ----------------------------------------------------------------------------------------------------------


def said(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_messages_on_both_devices(laptop: Device, phone: Device) -> None:
    laptop.save_messages("m", [said("one")])
    laptop.sync()
    assert phone.load_messages("m") == [said("one")]
    phone.append_messages("m", [said("two")])
    phone.sync()
    assert laptop.load_messages("m") == [said("one"), said("two")]
    laptop.away()
    laptop.append_messages("m", [said("three")])
    assert laptop.load_messages("m")[-1] == said("three")
    laptop.back()
    assert phone.load_messages("m") == [said("one"), said("two"), said("three")]
    phone.save_messages("m", [said("fresh")])
    phone.sync()
    assert laptop.load_messages("m") == [said("fresh")]
    phone.delete("m")
    phone.sync()
    assert laptop.load_messages("m") == []


def test_messages_appended_on_both_devices_at_once(laptop: Device, phone: Device) -> None:
    """Each device has its own until it hears of the other's; nothing is mixed, nothing is lost."""
    laptop.save_messages("m", [said("both")])
    laptop.sync()
    phone.load_messages("m")
    laptop.away()
    laptop.append_messages("m", [said("laptop")])
    phone.append_messages("m", [said("phone")])
    phone.sync()
    laptop.back()
    assert laptop.load_messages("m") == phone.load_messages("m") == [said("both"), said("phone")]
    laptop.promote(laptop.conflict("m"))
    assert laptop.load_messages("m") == phone.load_messages("m") == [said("both"), said("laptop")]


async def test_messages_and_turns_asynchronously(laptop: Device, phone: Device) -> None:
    await laptop.asave_messages("m", [said("one")])
    laptop.sync()
    await phone.aappend_messages("m", [said("two")])
    assert await phone.aload_messages("m") == [said("one"), said("two")]
    found = await laptop.graph.ainvoke({"turns": ["hi"]}, place("t"))
    assert found["turns"] == ["hi", "re hi"]
    laptop.sync()
    found = await phone.graph.ainvoke({"turns": ["again"]}, place("t"))
    assert found["turns"] == ["hi", "re hi", "again", "re again"]
    assert len([state async for state in phone.graph.aget_state_history(place("t"))]) == 8


# -- rows --------------------------------------------------------------------------------------------------------------


def test_rows_move_byte_for_byte(laptop: Device, phone: Device) -> None:
    """Also those that no serializer here would write."""
    here, there = (device.saver.engine.backend for device in (laptop, phone))
    here.setup()
    there.setup()
    unit = put(
        "1",
        None,
        blob("a", "v", bytes(range(256)), "odd type"),
        blob("é\U0001d11e", "ü", b""),
        versions={"none": "7"},
        run="run",
        body=b'{"ts":"2024", "more": [1e3, "\\ud800"]}',
        metadata=b'{"step": -1}',
        at=0.1 + 0.2,
        device="",
    )
    store(here, unit, pending("1"))
    laptop.sync()
    found, kept = there.read("thread", "", None), here.read("thread", "", None)
    assert found == kept
    assert found.checkpoint == unit.row
    assert sorted(found.blobs) == sorted(unit.blobs)
