"""Plugins that keep messages, and not quite."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from tests.contract.faults import SoundPlugin, caught_by


@caught_by("test_lists_are_not_shared_with_the_caller")
class KeepsTheCallersList(SoundPlugin):
    lists: ClassVar[dict[str, Any]] = {}

    def load_messages(self, thread_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.lists.get(thread_id, [])
        return found

    def save_messages(self, thread_id: str, messages: list[dict[str, Any]]) -> None:
        self.lists[thread_id] = messages


@caught_by("test_saving_replaces_the_list", "test_the_documented_turn")
class AddsWhenSaving(SoundPlugin):
    def save_messages(self, thread_id: str, messages: list[dict[str, Any]]) -> None:
        super().save_messages(thread_id, [*self.load_messages(thread_id), *messages])


@caught_by("test_an_unknown_thread_has_no_messages")
class KnowsNoEmptyList(SoundPlugin):
    def load_messages(self, thread_id: str) -> list[dict[str, Any]]:
        return super().load_messages(thread_id) or None  # type: ignore[return-value]


@caught_by("test_threads_are_apart[long]", "test_threads_are_apart[colon]")
class CutsIds(SoundPlugin):
    def load_messages(self, thread_id: str) -> list[dict[str, Any]]:
        return super().load_messages(thread_id[:8])

    def save_messages(self, thread_id: str, messages: list[dict[str, Any]]) -> None:
        super().save_messages(thread_id[:8], messages)


@caught_by("test_messages_come_back_as_they_were[tools]")
class KeepsRoleAndContentOnly(SoundPlugin):
    def save_messages(self, thread_id: str, messages: list[dict[str, Any]]) -> None:
        kept = [{"role": m["role"], "content": m["content"]} for m in messages]
        super().save_messages(thread_id, kept)


@caught_by("test_messages_come_back_as_they_were[repeated]")
class DropsRepetitions(SoundPlugin):
    def save_messages(self, thread_id: str, messages: list[dict[str, Any]]) -> None:
        once = {json.dumps(m): m for m in messages}
        super().save_messages(thread_id, list(once.values()))
