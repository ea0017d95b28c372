"""Bad ids, texts and values: each gives one typed error and loses nothing. Bad files are in test_bad_files."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from langchain_core.messages import AIMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt
from typing_extensions import TypedDict

from charm_checkpoint.errors import (
    CheckpointStoreError,
    ConfigError,
    InvalidIdError,
    SerializationError,
)
from charm_checkpoint.saver import CheckpointSaver
from tests.core.support import (
    aput,
    chat_graph,
    checkpoint_of,
    latest,
    opened,
    place,
    put,
)

BAD_IDS = [
    pytest.param("", id="empty"),
    pytest.param(None, id="none"),
    pytest.param(True, id="bool"),
    pytest.param(1.5, id="float"),
    pytest.param(b"t", id="bytes"),
    pytest.param(["t"], id="list"),
    pytest.param(object(), id="object"),
    pytest.param("t\x00", id="nul"),
    pytest.param("\ud800", id="lone surrogate"),
    pytest.param("x" * 1025, id="over 1 KiB"),
    pytest.param("é" * 513, id="over 1 KiB of UTF-8"),
    pytest.param(10**5000, id="endless number"),
]
NOT_BYTES_NOR_NONE = [p for p in BAD_IDS if p.id not in ("empty", "none")]

ODD_IDS = ["../..", "/etc/passwd", "..", "a/b", "%", "_", "'; DROP TABLE threads;--", " ", "\n"]
ODD_IDS += ["x" * 1024, "é" * 512, "☃", "T", "t", "NULL", "CON", "*", "\\..\\..", "ﬁ", "fi"]


class Thread(NamedTuple):
    """A thread `"t"` with something to lose, and the saver on it."""

    saver: CheckpointSaver
    head: Any
    path: Path


@pytest.fixture
def thread(tmp_path: Path) -> Iterator[Thread]:
    """After each test the thread reads as before, and a good put works."""
    path = tmp_path / "threads.db"
    with opened(path) as saver:
        head = put(saver, place("t"), n=1, text="kept")
        saver.put_writes(head, [("n", 2)], "task")
        before = list(saver.list(place("t")))
        yield Thread(saver, head, path)
        assert saver.get_tuple(place("t")) == before[0]
        assert list(saver.list(place("t"))) == before
        put(saver, head, n=2, text="good")
        assert latest(saver, "t") == {"n": 2, "text": "good"}


class TestIds:
    @pytest.mark.parametrize("bad", BAD_IDS)
    async def test_no_verb_takes_a_bad_thread_id(self, thread: Thread, bad: Any) -> None:
        saver, config = thread.saver, place(bad, "id")
        checkpoint, versions = checkpoint_of(n=1)
        calls: list[Callable[[], Any]] = [
            lambda: saver.put(config, checkpoint, {}, versions),
            lambda: saver.put_writes(config, [("n", 1)], "task"),
            lambda: saver.get_tuple(place(bad)),
            lambda: saver.get_tuple(config),
            lambda: list(saver.list(place(bad))),
            lambda: saver.get_delta_channel_history(config=config, channels=["n"]),
            lambda: saver.delete_thread(bad),
            lambda: saver.copy_thread(bad, "new"),
            lambda: saver.copy_thread("t", bad),
            lambda: saver.prune([bad]),
        ]
        for call in calls:
            with pytest.raises(InvalidIdError):
                call()
        awaited: list[Callable[[], Any]] = [
            lambda: saver.aput(config, checkpoint, {}, versions),
            lambda: saver.aput_writes(config, [("n", 1)], "task"),
            lambda: saver.aget_tuple(config),
            lambda: anext(saver.alist(place(bad))),
            lambda: saver.aget_delta_channel_history(config=config, channels=["n"]),
            lambda: saver.adelete_thread(bad),
            lambda: saver.acopy_thread("t", bad),
            lambda: saver.aprune([bad]),
        ]
        for acall in awaited:
            with pytest.raises(InvalidIdError):
                await acall()
        assert [t.config for t in saver.list(None)] == [thread.head]

    @pytest.mark.parametrize("bad", NOT_BYTES_NOR_NONE)
    def test_nor_another_bad_id(self, thread: Thread, bad: Any) -> None:
        saver, head = thread.saver, thread.head
        checkpoint, versions = checkpoint_of(n=1)
        with pytest.raises(InvalidIdError):
            saver.put(head, {**checkpoint, "id": bad}, {}, versions)
        with pytest.raises(InvalidIdError):
            saver.get_tuple(place("t", bad))
        with pytest.raises(InvalidIdError):
            saver.put(place("t", bad), checkpoint, {}, versions)
        with pytest.raises(InvalidIdError):
            saver.put_writes(place("t", bad), [("n", 1)], "task")
        with pytest.raises(InvalidIdError):
            saver.put_writes(head, [("n", 1)], bad)

    @pytest.mark.parametrize("bad", ["n\x00", "\ud800", "x" * 20_000, 1.5, b"ns", ["ns"]])
    def test_nor_a_bad_namespace(self, thread: Thread, bad: Any) -> None:
        config = place("t", namespace=bad)
        with pytest.raises(InvalidIdError):
            thread.saver.get_tuple(config)
        with pytest.raises(InvalidIdError):
            put(thread.saver, config, n=1)
        with pytest.raises(InvalidIdError):
            list(thread.saver.list(config))

    @pytest.mark.parametrize("config", [{}, {"configurable": {}}, {"configurable": None}])
    def test_a_config_without_a_thread_says_what_to_pass(self, thread: Thread, config: Any) -> None:
        with pytest.raises(InvalidIdError, match="thread_id"):
            thread.saver.get_tuple(config)
        with pytest.raises(InvalidIdError, match="thread_id"):
            put(thread.saver, config, n=1)

    def test_writes_need_a_checkpoint(self, thread: Thread) -> None:
        with pytest.raises(InvalidIdError, match="checkpoint_id"):
            thread.saver.put_writes(place("t"), [("n", 1)], "task")

    def test_it_is_a_value_error_and_short(self, thread: Thread) -> None:
        with pytest.raises(ValueError, match="2000 bytes") as raised:
            thread.saver.get_tuple(place("x" * 2000))
        assert len(str(raised.value)) < 200

    def test_odd_ids_are_just_ids(self, thread: Thread) -> None:
        """Also those that are paths, patterns or SQL, and those that look alike."""
        saver = thread.saver
        files = sorted(thread.path.parent.parent.rglob("*"))
        for odd in ODD_IDS:
            if odd != "t":
                saver.put_writes(put(saver, place(odd), who=odd), [("who", odd)], odd)
        for odd in ODD_IDS:
            if odd != "t":
                assert latest(saver, odd) == {"who": odd}
                (found,) = saver.list(place(odd))
                assert found.pending_writes == [(odd, "who", odd)]
        assert sorted(thread.path.parent.parent.rglob("*")) == files, "nothing else was written"
        for odd in ODD_IDS:
            if odd != "t":
                saver.delete_thread(odd)
                assert saver.get_tuple(place(odd)) is None

    def test_a_number_is_its_text(self, tmp_path: Path) -> None:
        with opened(tmp_path / "threads.db") as saver:
            graph = chat_graph(saver)
            for number in (7, "7", 0, "0", -1, 2**80):
                graph.invoke({"turns": [repr(number)]}, place(number))
            assert latest(saver, 7) == latest(saver, "7")
            assert latest(saver, "7")["turns"] == ["7", "re 7", "'7'", "re '7'"]
            assert len(latest(saver, "0")["turns"]) == 4
            assert len(latest(saver, str(2**80))["turns"]) == 2
            assert graph.get_state(place(-1)).values == graph.get_state(place("-1")).values

    async def test_through_a_run(self, tmp_path: Path) -> None:
        with opened(tmp_path / "threads.db") as saver:
            graph = chat_graph(saver)
            for bad in ("", "t\x00", "\ud800", "x" * 1025):
                with pytest.raises(InvalidIdError):
                    graph.invoke({"turns": ["hi"]}, place(bad))
                with pytest.raises(InvalidIdError):
                    await graph.ainvoke({"turns": ["hi"]}, place(bad))
            assert list(saver.list(None)) == []


def echo_graph(saver: Any, answer: Callable[[], Any]) -> Any:
    """A graph that asks, then keeps what it is answered and adds `answer()`."""
    from langgraph.graph import END, START, StateGraph

    class State(TypedDict):
        said: Any
        heard: Any
        answer: Any

    def ask(state: State) -> dict[str, Any]:
        return {"heard": interrupt(state["said"])}

    builder = StateGraph(State)
    builder.add_node("ask", ask)
    builder.add_node("tell", lambda state: {"answer": answer()})
    builder.add_edge(START, "ask")
    builder.add_edge("ask", "tell")
    builder.add_edge("tell", END)
    return builder.compile(checkpointer=saver)


TEXTS = [
    "\x00",
    "a\x00b",
    "\x00" * 5000,
    "\ud800",
    "a\udfffb",
    "\ud83d\ude00",
    "\x00\ud800",
    "\uffff",
]


class TestText:
    @pytest.mark.parametrize("wrapped", [lambda t: t, lambda t: [{"deep": [t]}]])
    @pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
    def test_kills_no_run_and_comes_back_as_with_langgraphs_own_saver(
        self, tmp_path: Path, text: str, wrapped: Callable[[str], Any]
    ) -> None:
        """In channels, interrupts, resume values and writes."""
        said = wrapped(text)
        with opened(tmp_path / "threads.db") as saver:
            found = []
            for each in (saver, InMemorySaver()):
                graph = echo_graph(each, lambda: said)
                config = place("t")
                asked = graph.invoke({"said": said}, config)["__interrupt__"][0].value
                waiting = graph.get_state(config).tasks[0].interrupts[0].value
                graph.invoke(Command(resume=said), config)
                found.append([asked, waiting, graph.get_state(config).values])
                found[-1].append([s.values for s in graph.get_state_history(config)])
            assert found[0] == found[1]
            if all(ord(character) not in range(0xD800, 0xE000) for character in text):
                assert found[0][2] == {"said": said, "heard": said, "answer": said}

    @pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
    def test_around_the_values(self, thread: Thread, text: str) -> None:
        """Names of channels, tasks' paths, run ids and metadata come from agents, too."""
        saver = thread.saver
        checkpoint, versions = checkpoint_of(**{text: 1})
        metadata: Any = {"source": "loop", "step": 1, "run_id": text, "note": text, text: "note"}
        try:
            config = saver.put(place("odd"), checkpoint, metadata, versions)
            saver.put_writes(config, [(text, 1)], "task", text)
        except CheckpointStoreError:
            assert saver.get_tuple(place("odd")) is None
            return
        found = saver.get_tuple(place("odd"))
        assert found is not None
        assert found.checkpoint["channel_values"] == {text: 1}
        assert found.pending_writes == [("task", text, 1)]
        saver.delete_for_runs([text])

    def test_of_a_device(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is in the environment, or the name of a host, may be no UTF-8."""
        monkeypatch.setenv("CHARM_DEVICE", "caf\udce9")
        with opened(path) as saver:
            put(saver, place("t"), n=1)
            assert saver.device == "caf?"
        with opened(path, device="café ☃\x00") as saver:
            put(saver, place("u"), n=1)
            assert saver.device == "café ☃"
        for bad in (7, ["laptop"], b"laptop"):
            with pytest.raises(ConfigError, match="device"), opened(path, device=bad):
                pass


def _shapes() -> Any:
    from tests.core import shapes

    return shapes


def a_function() -> None:
    """Something that cannot be stored."""


UNSTORABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "alone": (lambda: a_function, "notes cannot"),
    "in a dict": (lambda: {"a": {"b": a_function}}, "notes['a']['b']"),
    "in a list": (lambda: [1, [2, a_function]], "notes[1][1]"),
    "in a tuple": (lambda: (1, a_function), "notes[1]"),
    "in a dataclass": (lambda: [_shapes().Point(1, a_function)], "notes[0].note"),
    "in a slotted one": (lambda: {"a": _shapes().Slotted(a_function)}, "notes['a'].note"),
    "in a model": (lambda: {"p": _shapes().Person(name="", note=a_function)}, "notes['p'].note"),
    "in a message": (
        lambda: [AIMessage("hi", additional_kwargs={"f": a_function})],
        "notes[0].additional_kwargs['f']",
    ),
}


class TestValues:
    @pytest.mark.parametrize("case", UNSTORABLE)
    async def test_that_cannot_be_stored_are_named(self, thread: Thread, case: str) -> None:
        make, path = UNSTORABLE[case]
        with pytest.raises(SerializationError) as raised:
            put(thread.saver, thread.head, n=2, notes=make())
        message = str(raised.value)
        assert path in message
        assert "function" in message
        assert "'t'" in message
        with pytest.raises(SerializationError):
            await aput(thread.saver, thread.head, n=2, notes=make())
        with pytest.raises(SerializationError, match="notes"):
            thread.saver.put_writes(thread.head, [("n", 1), ("notes", make())], "other task")
        assert isinstance(raised.value, TypeError)

    @pytest.mark.parametrize(
        ("value", "type_name"),
        [
            (object(), "object"),
            (threading.Lock(), "lock"),
            ((n for n in "abc"), "generator"),
            (sys, "module"),
            (2**70, "int"),
            (iter([]), "iterator"),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_of_other_kinds(self, thread: Thread, value: Any, type_name: str) -> None:
        with pytest.raises(SerializationError, match=rf"notes\['a'\].*{type_name}"):
            put(thread.saver, thread.head, notes={"a": value})

    def test_that_hold_themselves(self, thread: Thread) -> None:
        endless: list[Any] = []
        endless.append(endless)
        deep: Any = "end"
        for _ in range(5000):
            deep = [deep]
        for value in (endless, {"a": endless}, deep):
            with pytest.raises(SerializationError, match="notes"):
                put(thread.saver, thread.head, notes=value)

    @pytest.mark.parametrize("durability", ["sync", "async", "exit"])
    def test_through_a_run(self, tmp_path: Path, durability: Any) -> None:
        with opened(tmp_path / "threads.db") as saver:
            graph = echo_graph(saver, lambda: {"deep": [a_function]})
            config = place("t")
            graph.invoke({"said": "hi"}, config)
            before = graph.get_state(config)
            with pytest.raises(SerializationError, match=r"answer\['deep'\]\[0\].*function"):
                graph.invoke(Command(resume="yes"), config, durability=durability)
            state = graph.get_state(config)
            assert state.values.get("answer") is None
            assert state.values["said"] == before.values["said"]
            # The code is mended, the thread goes on.
            mended = echo_graph(saver, lambda: "fine")
            end = mended.invoke(
                Command(resume="yes") if state.next == ("ask",) else None,
                config,
                durability=durability,
            )
            assert end == {"said": "hi", "heard": "yes", "answer": "fine"}

    @pytest.mark.parametrize(
        "value",
        [object(), {1, 2}, b"bytes", {"deep": [a_function]}, {("a", 1): 2}],
        ids=["object", "set", "bytes", "deep", "key"],
    )
    def test_metadata_that_is_no_json_is_named(self, thread: Thread, value: Any) -> None:
        checkpoint, versions = checkpoint_of(n=2)
        metadata: Any = {"source": "loop", "step": 1, "when": value}
        with pytest.raises(SerializationError, match=r"metadata\['when'\]"):
            thread.saver.put(thread.head, checkpoint, metadata, versions)

    def test_a_checkpoint_that_is_no_json_is_named(self, thread: Thread) -> None:
        checkpoint: Any = {**empty_checkpoint(), "versions_seen": {"node": object()}}
        with pytest.raises(SerializationError, match="versions_seen"):
            thread.saver.put(thread.head, checkpoint, {}, {})
