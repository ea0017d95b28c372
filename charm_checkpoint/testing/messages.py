"""Message history, as a plugin that keeps nothing else has it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from charm_checkpoint.store import BaseMemoryStore

Message = dict[str, Any]

HELLO: list[Message] = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi, what can I do?"},
]

KINDS: dict[str, list[Message]] = {
    "roles": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
    ],
    "tools": [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Oslo", "days": 2}'},
                }
            ],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "call_1"},
    ],
    "no-content": [{"role": "assistant", "content": None, "refusal": "no"}],
    "blocks": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ],
        }
    ],
    "name-and-id": [{"role": "user", "content": "x", "name": "ann", "id": "message-1"}],
    "own-fields": [
        {
            "role": "user",
            "content": "x",
            "meta": {"n": 1, "f": 0.5, "t": True, "z": None, "l": [{}]},
        }
    ],
    "unicode": [
        {"role": "user", "content": "Grüße 日本 \U0001f680 \u2028 e\u0301 \\ \" ' %s {} \t\n"}
    ],
    "empty": [{"role": "user", "content": ""}],
    "repeated": [{"role": "user", "content": "again"}] * 3,
    "long": [{"role": "user", "content": "x" * 300_000}],
    "many": [{"role": "user", "content": str(n)} for n in range(500)],
}

_THREADS = {
    "uuid": "0190b6f2-5b1e-7c3a-8d1f-9a4b6c7d8e9f",
    "colon": "user:7:main",
    "slashes": "../../etc/passwd",
    "backslash": "a\\b",
    "quotes": 'it\'s "quoted"; DROP TABLE messages; --',
    "patterns": "100%_*[a-z]?",
    "braces": "{tag}:{}",
    "space": " padded ",
    "newline": "a\nb",
    "unicode": "Grüße 日本 \U0001f680",
    "json": ".json",
    "long": "x" * 200,
}


def _other(thread_id: str) -> list[str]:
    """Ids that a careless store takes for this one."""
    return [
        f"{thread_id}2",
        thread_id[:-1] or "y",
        thread_id.swapcase() + "-",
        f"{thread_id}:x",
        "x",
    ]


class MessagesContract:
    """What a `charm.memory` plugin that keeps messages has to do.

    A subclass gives it a fixture `store`. Methods that a plugin need not have are tested if it has them.
    """

    @pytest.fixture
    def store(self) -> BaseMemoryStore:
        """A fresh and empty store. Every subclass has its own."""
        raise NotImplementedError(
            f"{type(self).__name__} has to define a fixture `store` that yields a fresh, empty store"
        )

    def reopen_store(self, store: BaseMemoryStore) -> BaseMemoryStore | None:
        """Open the data of `store` once more, as another process would. The kit closes what it gets.

        `None`, the default: the data cannot be reached from elsewhere, and tests about that are skipped.
        """
        return None

    # -- load and save ---------------------------------------------------------------------------------------------

    def test_an_unknown_thread_has_no_messages(self, store: BaseMemoryStore) -> None:
        assert store.load_messages("unknown") == []
        assert store.load_messages("unknown") == []

    @pytest.mark.parametrize("kind", KINDS)
    def test_messages_come_back_as_they_were(self, store: BaseMemoryStore, kind: str) -> None:
        store.save_messages("thread", copy.deepcopy(KINDS[kind]))
        assert store.load_messages("thread") == KINDS[kind]
        assert isinstance(store.load_messages("thread"), list)

    @pytest.mark.parametrize("text", ["NUL \x00", "\x00", "control \x01\x1b\x7f", "\ufeff\ufffe"])
    def test_any_text_comes_back_or_is_refused(self, store: BaseMemoryStore, text: str) -> None:
        """Also what some databases cannot hold."""
        store.save_messages("thread", HELLO)
        odd: list[Message] = [*HELLO, {"role": "user", "content": text}]
        try:
            store.save_messages("thread", odd)
        except Exception:  # noqa: BLE001 a plugin's own
            assert store.load_messages("thread") == HELLO
        else:
            assert store.load_messages("thread") == odd

    def test_text_that_is_none_spoils_nothing(self, store: BaseMemoryStore) -> None:
        """A lone surrogate, as broken JSON of a model brings it: it may be refused or replaced."""
        store.save_messages("thread", HELLO)
        with contextlib.suppress(Exception):
            store.save_messages("thread", [*HELLO, {"role": "user", "content": "lone \ud800"}])
        assert store.load_messages("thread")[:2] == HELLO
        store.save_messages("thread", HELLO)
        assert store.load_messages("thread") == HELLO

    def test_saving_replaces_the_list(self, store: BaseMemoryStore) -> None:
        changed: list[list[Message]] = [
            [*HELLO, {"role": "user", "content": "more"}],
            HELLO[:1],
            [{"role": "user", "content": "edited"}, *HELLO[1:]],
            HELLO[::-1],
            HELLO,
            HELLO,
            [],
            HELLO,
        ]
        for messages in changed:
            store.save_messages("thread", messages)
            assert store.load_messages("thread") == messages

    def test_the_documented_turn(self, store: BaseMemoryStore) -> None:
        """Load, add, save: what an agent without a graph does."""
        for n in range(3):
            history = store.load_messages("thread")
            store.save_messages("thread", [*history, {"role": "user", "content": str(n)}])
        assert [m["content"] for m in store.load_messages("thread")] == ["0", "1", "2"]

    @pytest.mark.parametrize("kind", _THREADS)
    def test_threads_are_apart(self, store: BaseMemoryStore, kind: str) -> None:
        thread_id = _THREADS[kind]
        store.save_messages(thread_id, HELLO)
        for n, other in enumerate(_other(thread_id)):
            assert store.load_messages(other) == []
            store.save_messages(other, [{"role": "user", "content": str(n)}])
        assert store.load_messages(thread_id) == HELLO
        store.save_messages(thread_id, [])
        for n, other in enumerate(_other(thread_id)):
            assert store.load_messages(other) == [{"role": "user", "content": str(n)}]

    def test_lists_are_not_shared_with_the_caller(self, store: BaseMemoryStore) -> None:
        given = copy.deepcopy(KINDS["blocks"] + KINDS["own-fields"])
        before = copy.deepcopy(given)
        store.save_messages("thread", given)
        for messages in (given, store.load_messages("thread")):
            messages[0]["content"][0]["text"] = "changed"
            messages[1]["meta"]["l"].append("changed")
            messages[1]["content"] = "changed"
            messages.append({"role": "user", "content": "changed"})
            assert store.load_messages("thread") == before

    def test_another_process_reads_them(self, store: BaseMemoryStore) -> None:
        second = self.reopen_store(store)
        if second is None:
            pytest.skip(f"{type(self).__name__}.reopen_store opens no second store")
        store.save_messages("thread", HELLO)
        assert second.load_messages("thread") == HELLO
        second.save_messages("thread", HELLO[:1])
        assert store.load_messages("thread") == HELLO[:1]
        second.close()

    def test_many_threads_at_once(self, store: BaseMemoryStore) -> None:
        def run(n: int) -> list[Message]:
            for turn in range(3):
                history = store.load_messages(f"thread {n}")
                message = {"role": "user", "content": f"{n}.{turn}"}
                store.save_messages(f"thread {n}", [*history, message])
            return store.load_messages(f"thread {n}")

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(run, range(16)))
        assert [[m["content"] for m in messages] for messages in found] == [
            [f"{n}.{turn}" for turn in range(3)] for n in range(16)
        ]

    # -- what a plugin may leave out -------------------------------------------------------------------------------

    @staticmethod
    def _needs(store: BaseMemoryStore, name: str) -> None:
        if not hasattr(store, name):
            pytest.skip(f"{type(store).__name__} has no {name}")

    def test_appending(self, store: BaseMemoryStore) -> None:
        self._needs(store, "append_messages")
        more: list[Message] = [{"role": "user", "content": "more"}]
        store.append_messages("thread", HELLO)
        assert store.load_messages("thread") == HELLO
        store.append_messages("thread", [])
        store.append_messages("thread", more)
        store.append_messages("thread", more)
        assert store.load_messages("thread") == [*HELLO, *more, *more]
        assert store.load_messages("other") == []

    @pytest.mark.asyncio
    async def test_asynchronous_twins(self, store: BaseMemoryStore) -> None:
        for name in ("aload_messages", "asave_messages", "aappend_messages"):
            self._needs(store, name)
        assert await store.aload_messages("thread") == []
        await store.asave_messages("thread", HELLO)
        assert await store.aload_messages("thread") == HELLO
        assert await asyncio.to_thread(store.load_messages, "thread") == HELLO
        await store.aappend_messages("thread", HELLO)
        assert await store.aload_messages("thread") == HELLO * 2
        await asyncio.gather(*(store.asave_messages(f"{n}", HELLO) for n in range(20)))
        assert [await store.aload_messages(f"{n}") for n in range(20)] == [HELLO] * 20

    def test_closing_twice(self, store: BaseMemoryStore) -> None:
        self._needs(store, "close")
        store.save_messages("thread", HELLO)
        store.close()
        store.close()
        again = self.reopen_store(store)
        if again is not None:
            assert again.load_messages("thread") == HELLO
            again.close()

    def test_its_checkpointer_is_one_object(self, store: BaseMemoryStore) -> None:
        self._needs(store, "get_langgraph_checkpointer")
        assert store.get_langgraph_checkpointer() is store.get_langgraph_checkpointer()
