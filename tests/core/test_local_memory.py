"""The `local` provider: where its file is, and the histories that charmos left beside it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.graph import END, START, MessagesState, StateGraph

from charm_checkpoint.errors import ConfigError, DeserializationError, InvalidIdError
from charm_checkpoint.sqlite import LocalMemory
from tests.core.support import WAIT, place

OLD = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi there"}]
NEW = {"role": "user", "content": "and now?"}


def texts(messages: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    return [(m["role"], m["content"]) for m in messages]


class TestPlace:
    def test_is_the_workspace(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CHARM_WORKSPACE_DIR", str(tmp_path / "elsewhere"))
        with LocalMemory() as store:
            store.save_messages("t", OLD)
        assert (tmp_path / "elsewhere/.charm/memory/threads.db").is_file()

    @pytest.mark.parametrize("value", [None, ""])
    def test_is_a_folder_here_without_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
    ) -> None:
        if value is not None:
            monkeypatch.setenv("CHARM_WORKSPACE_DIR", value)
        monkeypatch.chdir(tmp_path)
        with LocalMemory() as store:
            store.save_messages("t", OLD)
            (tmp_path / "other").mkdir()
            # It stays where it was when the program goes elsewhere.
            monkeypatch.chdir(tmp_path / "other")
            store.append_messages("t", [NEW])
        assert (tmp_path / "workspace/.charm/memory/threads.db").is_file()
        assert list((tmp_path / "other").iterdir()) == []

    def test_is_the_file_of_the_config(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        with LocalMemory({"path": "~/my/threads.sqlite"}) as store:
            store.save_messages("t", OLD)
        assert (tmp_path / "my/threads.sqlite").is_file()

    def test_nothing_is_made_before_it_is_used(self, tmp_path: Path) -> None:
        with LocalMemory({"path": str(tmp_path / "new/threads.db")}) as store:
            store.get_langgraph_checkpointer()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("value", ["soon", -1, True, None])
    def test_a_busy_timeout_is_seconds(self, tmp_path: Path, value: Any) -> None:
        with pytest.raises(ConfigError, match="busy_timeout"):
            LocalMemory({"path": str(tmp_path / "threads.db"), "busy_timeout": value})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Charmos's folder for histories, with one in it."""
    monkeypatch.setenv("CHARM_WORKSPACE_DIR", str(tmp_path / "workspace"))
    folder = tmp_path / "workspace/.charm/memory"
    folder.mkdir(parents=True)
    (folder / "t.json").write_text(json.dumps(OLD))
    return folder


@pytest.fixture
def store(folder: Path) -> Iterator[LocalMemory]:
    with LocalMemory() as store:
        yield store


class TestOldHistories:
    def test_are_read_until_saved_here(self, store: LocalMemory, folder: Path) -> None:
        assert store.load_messages("t") == OLD
        assert store.load_messages("t") == OLD, "reading it changes nothing"
        assert store.load_messages("unknown") == []
        store.save_messages("t", [NEW])
        assert texts(store.load_messages("t")) == texts([NEW])
        store.save_messages("t", [])
        assert store.load_messages("t") == []
        assert json.loads((folder / "t.json").read_text()) == OLD, "charmos's own stays"

    def test_are_what_an_append_adds_to(self, store: LocalMemory) -> None:
        store.append_messages("t", [NEW])
        assert texts(store.load_messages("t")) == texts([*OLD, NEW])
        store.append_messages("t", [NEW])
        assert texts(store.load_messages("t")) == texts([*OLD, NEW, NEW])

    async def test_in_both_colours(self, store: LocalMemory) -> None:
        assert await store.aload_messages("t") == OLD
        await store.aappend_messages("t", [NEW])
        assert texts(await store.aload_messages("t")) == texts([*OLD, NEW])
        await store.asave_messages("t", [NEW])
        assert texts(await store.aload_messages("t")) == texts([NEW])

    def test_are_added_to_once_by_many_at_once(self, folder: Path) -> None:
        """Also by several stores: nobody's message is lost, and the old ones are there once."""
        stores = [LocalMemory() for _ in range(4)]
        together = threading.Barrier(4)

        def append(thread_id: str, number: int) -> None:
            together.wait(WAIT)
            stores[number].append_messages(thread_id, [{"role": "user", "content": f"by {number}"}])

        with ThreadPoolExecutor(4) as pool:
            for thread_id in "abcde":
                (folder / f"{thread_id}.json").write_text(json.dumps(OLD))
                for each in [pool.submit(append, thread_id, number) for number in range(4)]:
                    each.result(WAIT)
                found = texts(stores[0].load_messages(thread_id))
                assert found[:2] == texts(OLD)
                assert sorted(found[2:]) == [("user", f"by {number}") for number in range(4)]
        for store in stores:
            store.close()

    def test_go_with_the_thread(self, store: LocalMemory, folder: Path) -> None:
        store.delete("t")
        assert store.load_messages("t") == []
        assert not (folder / "t.json").exists()
        store.append_messages("t", [NEW])
        assert texts(store.load_messages("t")) == texts([NEW])

    def test_do_not_come_back_after_a_graph_deleted_the_thread(self, store: LocalMemory) -> None:
        store.append_messages("t", [NEW])
        store.get_langgraph_checkpointer().delete_thread("t")
        assert store.load_messages("t") == []

    def test_are_over_when_a_graph_has_begun_the_thread(self, store: LocalMemory) -> None:
        builder = StateGraph(MessagesState)
        builder.add_node("answer", lambda state: {"messages": [("ai", "from the graph")]})
        builder.add_edge(START, "answer")
        builder.add_edge("answer", END)
        graph = builder.compile(checkpointer=store.get_langgraph_checkpointer())
        graph.invoke({"messages": [HumanMessage("to the graph")]}, place("t"))
        found = [content for _, content in texts(store.load_messages("t"))]
        assert found == ["to the graph", "from the graph"]

    def test_a_number_is_its_text(self, store: LocalMemory, folder: Path) -> None:
        (folder / "7.json").write_text(json.dumps(OLD))
        number: Any = 7
        assert store.load_messages(number) == OLD
        store.append_messages("7", [NEW])
        assert texts(store.load_messages(number)) == texts([*OLD, NEW])

    @pytest.mark.parametrize("thread_id", ["../secret", "../../secret", "sub/secret", "..", "."])
    def test_never_leave_the_folder(self, store: LocalMemory, folder: Path, thread_id: str) -> None:
        (folder / "sub").mkdir()
        names = ("../secret", "../../secret", "sub/secret")
        others = [folder / f"{name}.json" for name in names]
        for other in others:
            other.write_text(json.dumps(OLD))
        absolute = str(others[0].resolve().with_suffix(""))
        for name in (thread_id, absolute, thread_id.replace("/", "\\")):
            assert store.load_messages(name) == []
            store.append_messages(name, [NEW])
            assert texts(store.load_messages(name)) == texts([NEW])
            store.delete(name)
        for other in others:
            assert json.loads(other.read_text()) == OLD

    def test_of_ids_that_are_no_file_names(self, store: LocalMemory) -> None:
        for name in ("x" * 250, "x" * 251, "x" * 1024, "é" * 512, "a:b", "*", "t\n"):
            assert store.load_messages(name) == []
            store.append_messages(name, [NEW])
            assert texts(store.load_messages(name)) == texts([NEW])
            store.delete(name)
            assert store.load_messages(name) == []

    @pytest.mark.parametrize("bad", ["", "t\x00", "\ud800", "x" * 1025, None, True])
    def test_of_bad_ids_there_are_none(self, store: LocalMemory, bad: Any) -> None:
        with pytest.raises(InvalidIdError):
            store.load_messages(bad)
        with pytest.raises(InvalidIdError):
            store.append_messages(bad, [NEW])
        with pytest.raises(InvalidIdError):
            store.delete(bad)
        with pytest.raises(InvalidIdError):
            asyncio.run(store.aload_messages(bad))

    @pytest.mark.parametrize(
        "content",
        [b"", b"[", b"{}", b'"text"', b"null", b"\xff\xfe[]", b"[1, 2]", b'["text"]'],
    )
    async def test_that_are_malformed_say_which_file(
        self, store: LocalMemory, folder: Path, content: bytes
    ) -> None:
        (folder / "t.json").write_bytes(content)
        for _ in range(2):
            with pytest.raises(DeserializationError, match=r"t\.json"):
                store.load_messages("t")
            with pytest.raises(DeserializationError, match=r"t\.json"):
                await store.aload_messages("t")
            with pytest.raises(DeserializationError, match=r"t\.json"):
                store.append_messages("t", [NEW])
        assert (folder / "t.json").read_bytes() == content
        assert store.load_messages("other") == []
        store.save_messages("t", OLD)
        assert texts(store.load_messages("t")) == texts(OLD)
