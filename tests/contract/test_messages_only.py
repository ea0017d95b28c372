"""A plugin that keeps nothing but messages, written as the Charm docs do, with either base class or none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from charm.core.storage import BaseMemoryStore as CharmosStore

from charm_checkpoint.store import BaseMemoryStore
from charm_checkpoint.testing import MessagesContract


class _Plugin:
    """Keeps JSON text by thread, as a key-value server would."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self._texts: dict[str, str] = {}

    def load_messages(self, thread_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self._texts.get(thread_id, "[]"))
        return found

    def save_messages(self, thread_id: str, messages: list[dict[str, Any]]) -> None:
        self._texts[thread_id] = json.dumps(messages)


class _WithOurBase(_Plugin, BaseMemoryStore):
    pass


class _WithCharmosBase(_Plugin, CharmosStore):
    pass


class TestWithoutBase(MessagesContract):
    @pytest.fixture
    def store(self) -> Any:
        return _Plugin({})


class TestWithOurBase(MessagesContract):
    @pytest.fixture
    def store(self) -> Any:
        return _WithOurBase({})


class TestWithCharmosBase(MessagesContract):
    @pytest.fixture
    def store(self) -> Any:
        return _WithCharmosBase({})
