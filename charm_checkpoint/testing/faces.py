"""One thread, two faces: what a graph and an agent without one see of each other, over a backend."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from charm_checkpoint.backend import Backend
from charm_checkpoint.errors import ConfigError, ThreadConflictError
from charm_checkpoint.store import BaseMemoryStore, CheckpointStore
from charm_checkpoint.testing.fixtures import BackendFixtures
from charm_checkpoint.testing.messages import HELLO, KINDS, MessagesContract


class _Store(CheckpointStore):
    """A store over the backend of a test."""

    def __init__(self, backend: Backend, device: str) -> None:
        self.backend = backend
        super().__init__({"device": device})

    def open_backend(self) -> Backend:
        return self.backend


def _agent(store: CheckpointStore) -> Any:
    """Answers each message; asks before it answers "danger"."""

    def answer(state: MessagesState) -> Any:
        said = state["messages"][-1].content
        if said == "danger":
            said = interrupt("sure?")
        return {"messages": [AIMessage(f"answer to {said}")]}

    builder = StateGraph(MessagesState)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    return builder.compile(checkpointer=store.get_langgraph_checkpointer())


_THREAD: Any = {"configurable": {"thread_id": "thread"}}


class MessageFaceContract(BackendFixtures, MessagesContract):
    """A `CheckpointStore` over the backend: one thread, two faces."""

    @pytest.fixture
    def store(self, backend: Backend) -> Iterator[CheckpointStore]:
        """The laptop's store."""
        store = _Store(backend, "laptop")
        yield store
        store.close()

    @pytest.fixture
    def phone_store(self, backend: Backend) -> Iterator[CheckpointStore]:
        """The phone's store, on the same threads."""
        store = _Store(self.reopen(backend) or backend, "phone")
        yield store
        store.close()

    def reopen_store(self, store: BaseMemoryStore) -> BaseMemoryStore | None:
        assert isinstance(store, _Store)
        backend = self.reopen(store.backend)
        return _Store(backend, "phone") if backend else None

    def test_a_graph_goes_on_from_saved_messages(
        self, store: CheckpointStore, phone_store: CheckpointStore
    ) -> None:
        store.save_messages("thread", [*HELLO, *KINDS["tools"]])
        graph = _agent(phone_store)
        before = graph.get_state(_THREAD).values["messages"]
        assert [m.type for m in before] == ["human", "ai", "ai", "tool"]
        assert before[2].tool_calls[0]["args"] == {"city": "Oslo", "days": 2}
        after = graph.invoke({"messages": [HumanMessage("more")]}, _THREAD)["messages"]
        assert [m.id for m in after[:4]] == [m.id for m in before]
        assert store.load_messages("thread")[:4] == [*HELLO, *KINDS["tools"]]
        assert store.load_messages("thread")[-1]["content"] == "answer to more"

    def test_what_a_graph_wrote_is_history(
        self, store: CheckpointStore, phone_store: CheckpointStore
    ) -> None:
        graph = _agent(store)
        graph.invoke({"messages": [HumanMessage("hi", id="h")]}, _THREAD)
        history = phone_store.load_messages("thread")
        assert [(m["role"], m["content"]) for m in history] == [
            ("user", "hi"),
            ("assistant", "answer to hi"),
        ]
        phone_store.append_messages("thread", [{"role": "user", "content": "noted"}])
        messages = graph.invoke({"messages": [HumanMessage("go on")]}, _THREAD)["messages"]
        said = ["hi", "answer to hi", "noted", "go on", "answer to go on"]
        assert [m.content for m in messages] == said
        assert messages[0].id == "h"

    @pytest.mark.asyncio
    async def test_both_faces_in_both_colours(self, store: CheckpointStore) -> None:
        graph = _agent(store)
        await store.asave_messages("thread", HELLO)
        await graph.ainvoke({"messages": [HumanMessage("a")]}, _THREAD)
        graph.invoke({"messages": [HumanMessage("b")]}, _THREAD)
        said = ["Hello", "Hi, what can I do?", "a", "answer to a", "b", "answer to b"]
        assert [m["content"] for m in await store.aload_messages("thread")] == said
        assert [m["content"] for m in store.load_messages("thread")] == said

    def test_of_two_devices_that_append_both_are_kept(
        self, store: CheckpointStore, phone_store: CheckpointStore
    ) -> None:
        def run(n: int) -> None:
            device = (store, phone_store)[n % 2]
            device.append_messages("thread", [{"role": "user", "content": str(n)}])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(run, range(12)))
        found = [m["content"] for m in store.load_messages("thread")]
        assert sorted(found, key=int) == [str(n) for n in range(12)]

    def test_a_late_save_does_not_overwrite(
        self, store: CheckpointStore, phone_store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A save that comes between another's read and write wins; the other is told."""
        saver = store.get_langgraph_checkpointer()
        put = saver.put

        def late(*args: Any) -> Any:
            phone_store.save_messages("thread", HELLO)
            return put(*args)

        monkeypatch.setattr(saver, "put", late)
        with pytest.raises(ThreadConflictError):
            store.save_messages("thread", [{"role": "user", "content": "late"}])
        assert store.load_messages("thread") == HELLO

    def test_threads_of_a_store(self, store: CheckpointStore, phone_store: CheckpointStore) -> None:
        assert list(store.threads()) == []
        assert store.thread("thread") is None
        store.save_messages("saved", HELLO)
        graph = _agent(phone_store)
        graph.invoke({"messages": [HumanMessage("danger")]}, _THREAD)
        assert {t.thread_id: (t.status, t.device) for t in store.threads()} == {
            "saved": ("idle", "laptop"),
            "thread": ("interrupted", "phone"),
        }
        graph.invoke(Command(resume="yes"), _THREAD)
        found = store.thread("thread")
        assert found is not None
        assert (found.status, found.namespaces) == ("idle", ("",))
        assert (
            found.checkpoint_id == graph.get_state(_THREAD).config["configurable"]["checkpoint_id"]
        )
        assert len(list(store.threads(limit=1))) == 1

    def test_threads_by_status_and_label(self, store: CheckpointStore) -> None:
        graph = _agent(store)
        for name, text, user in (
            ("a", "hi", "ann"),
            ("b", "danger", "ann"),
            ("c", "danger", "ben"),
        ):
            config: RunnableConfig = {
                "configurable": {"thread_id": name, "floor": 3, "api_key": "secret"},
                "metadata": {"user": user, "vip": user == "ben"},
            }
            graph.invoke({"messages": [HumanMessage(text)]}, config)
        names = [t.thread_id for t in store.threads(labels={"user": "ann"})]
        assert names == ["b", "a"]
        [found] = store.threads(status="interrupted", labels={"user": "ann", "floor": 3})
        assert (found.thread_id, found.status) == ("b", "interrupted")
        assert dict(found.labels).items() >= {"user": "ann", "vip": False, "floor": 3}.items()
        assert "api_key" not in found.labels
        assert [t.thread_id for t in store.threads(labels={"vip": True}, limit=9)] == ["c"]
        for wrong in (
            {"step": 1},
            {"user": None},
            {"x": 1.5},
            {"x" * 201: 1},
            {"x": "\x00"},
            {1: 1},
        ):
            with pytest.raises(ConfigError, match="label"):
                store.threads(labels=wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="waiting"):
            store.threads(status="waiting")  # type: ignore[arg-type]

    def test_history_and_deletion(
        self, store: CheckpointStore, phone_store: CheckpointStore
    ) -> None:
        store.save_messages("thread", HELLO)
        store.append_messages("thread", HELLO)
        ids = [t.checkpoint["id"] for t in phone_store.history("thread")]
        assert len(ids) == 2
        assert [t.checkpoint["id"] for t in store.history("thread", limit=1)] == ids[:1]
        phone_store.delete("thread")
        assert store.load_messages("thread") == []
        assert list(store.history("thread")) == []
        store.save_messages("thread", HELLO[:1])
        assert phone_store.load_messages("thread") == HELLO[:1]
