"""Which store an adapter opens, and what it says when it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from langgraph.graph import START, MessagesState, StateGraph

from charm_adapter_checkpoint.graph import GraphAdapter
from charm_adapter_checkpoint.history import HistoryAdapter
from charm_adapter_checkpoint.providers import open_memory, without_secrets
from charm_checkpoint import StorageManager
from charm_checkpoint.errors import MissingVariableError

from .conftest import charm_config, write_plugin


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    yield
    StorageManager.close_all()


def test_runtime_memory_with_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROVIDER", "local")
    monkeypatch.setenv("FOLDER", str(tmp_path))
    store = open_memory(charm_config("${PROVIDER}", {"path": "${FOLDER}/a.db"}))
    store.save_messages("t", [])
    assert store is open_memory(charm_config("local", {"path": f"{tmp_path}/a.db"}))
    assert (tmp_path / "a.db").is_file()


def test_the_environment_can_name_another_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = charm_config("local", {"path": str(tmp_path / "declared.db")})
    monkeypatch.setenv("CHARM_MEMORY_PROVIDER", "local")
    assert open_memory(declared).config["path"].endswith("declared.db")
    monkeypatch.setenv("CHARM_MEMORY_PROVIDER", f"sqlite:///{tmp_path}/operator.db")
    assert open_memory(declared).config["path"].endswith("operator.db")


def test_no_config_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # charmos makes an adapter without one if its class takes no `config`.
    monkeypatch.setenv("CHARM_WORKSPACE_DIR", str(tmp_path))
    assert HistoryAdapter(lambda input: "hello").invoke({"input": "hi"})["output"] == "hello"
    assert (tmp_path / ".charm" / "memory" / "threads.db").is_file()


def test_a_variable_that_is_not_set(tmp_path: Path) -> None:
    config = charm_config("local", {"path": "${NOT_SET_ANYWHERE}"})
    result = HistoryAdapter(lambda input: "hello", config).invoke({"input": "hi"})
    assert result["error_type"] == MissingVariableError.__name__
    assert "NOT_SET_ANYWHERE" in result["message"]


def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    diary = tmp_path / "diary.txt"
    diary.write_text("Dear diary, " * 100)
    ran = []
    graph = StateGraph(MessagesState).add_node("n", lambda state: ran.append(1))
    config = charm_config("local", {"path": str(diary)})
    result = GraphAdapter(graph.add_edge(START, "n"), config).invoke({"input": "hi"})
    assert result["error_type"] == "BackendCorrupt"
    assert str(diary) in result["message"]
    assert not ran
    assert diary.read_text() == "Dear diary, " * 100


def test_a_plugin_for_messages_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from charm.core.storage import BaseMemoryStore\n"
        "class Memory(BaseMemoryStore):\n"
        "    kept = {}\n"
        "    def load_messages(self, thread_id): return list(self.kept.get(thread_id, []))\n"
        "    def save_messages(self, thread_id, messages): self.kept[thread_id] = messages\n"
    )
    write_plugin(tmp_path, "notebook", "notebook_memory", code)
    monkeypatch.syspath_prepend(tmp_path)
    config = charm_config("notebook", {})

    function = HistoryAdapter(lambda input, history: str(len(history)), config)
    assert [function.invoke({"input": "hi"})["output"] for _ in range(2)] == ["0", "2"]

    graph = StateGraph(MessagesState).add_node("n", lambda state: {}).add_edge(START, "n")
    result = GraphAdapter(graph, config).invoke({"input": "hi"})
    assert "message histories but no graph states" in result["message"]


def test_secrets_of_the_config_are_masked_in_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hunter2@db.test/threads")
    monkeypatch.setenv("CHARM_MEMORY_PROVIDER", "redis://:sesame@cache.test")
    config = charm_config("postgres", {"url": "${DATABASE_URL}", "token": "t0ken", "x": "${UNSET}"})
    text = "tried hunter2, sesame and t0ken; gave up"
    assert without_secrets(text, config) == "tried ***, *** and ***; gave up"
