"""The patch of the stock adapters: what it changes in the installed charmos, and when it changes nothing."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
from charm.adapters.langgraph import CharmLangGraphAdapter
from charm.contracts.uac import CharmConfig
from charm.core.storage import BaseMemoryStore as CharmMemoryStore
from charm.core.storage import StorageManager as CharmStorageManager
from langgraph.graph import START, MessagesState, StateGraph

from charm_adapter_checkpoint import patch, providers
from charm_checkpoint import StorageManager
from charm_checkpoint.sqlite import LocalMemory

from .conftest import AdapterMaker


@pytest.fixture
def unpatched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(CharmConfig, "memory")


@pytest.mark.usefixtures("unpatched")
def test_the_installed_charmos_still_needs_the_patch() -> None:
    assert patch.needed(), (
        f"charmos {version('charmos')} reads runtime.memory in another way: the patch steps aside. If the stock "
        "adapters keep threads without it, raise the lowest version of charmos and drop the patch."
    )


@pytest.mark.usefixtures("unpatched")
def test_it_steps_aside_for_a_config_with_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = property(lambda self: "theirs")
    monkeypatch.setattr(CharmConfig, "memory", theirs, raising=False)
    assert not patch.apply()
    assert CharmConfig.memory is theirs


@pytest.mark.usefixtures("unpatched")
def test_it_steps_aside_for_an_adapter_that_reads_runtime_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def setup(self: Any) -> None:
        self.provider = self.config.runtime.memory.provider

    monkeypatch.setattr(CharmLangGraphAdapter, "_ensure_instantiated", setup)
    assert not patch.apply()
    assert not hasattr(CharmConfig, "memory")


def test_without_runtime_memory_the_stock_choice_stays(make: AdapterMaker) -> None:
    config = make(CharmLangGraphAdapter, None).config
    assert config.memory is config.runtime.memory
    written = config.model_dump()
    del written["runtime"]["memory"]
    assert not hasattr(CharmConfig(**written), "memory")


def test_stores_that_agents_ask_charmos_for_are_ours(make: AdapterMaker) -> None:
    store = make(CharmLangGraphAdapter, None).config.runtime.memory
    ours = StorageManager.get_provider(store.provider, store.config)
    assert CharmStorageManager.get_provider("local", {}) is ours
    assert CharmStorageManager.get_provider("local", store.config) is ours
    assert issubclass(LocalMemory, CharmMemoryStore)


def test_another_way_of_finding_providers_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = classmethod(lambda cls, memory: None)
    monkeypatch.setattr(CharmStorageManager, "get_provider", theirs)
    assert not providers.install()
    assert CharmStorageManager.__dict__["get_provider"] is theirs
    assert "new way" in caplog.text


def test_the_stock_adapter_keeps_threads(make: AdapterMaker) -> None:
    def count(state: MessagesState) -> dict[str, object]:
        return {"messages": [("ai", f"{len(state['messages'])} messages")]}

    graph = StateGraph(MessagesState).add_node(count).add_edge(START, "count")
    assert make(CharmLangGraphAdapter, graph).invoke({"input": "hi"})["output"] == "1 messages"
    assert make(CharmLangGraphAdapter, graph).invoke({"input": "hi"})["output"] == "3 messages"
