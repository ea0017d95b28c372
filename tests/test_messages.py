"""Dicts and messages, each turned into the other: nothing is lost on the way, in either direction."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
    message_to_dict,
)
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from charm_checkpoint.errors import SerializationError
from charm_checkpoint.messages import to_dicts, to_messages, with_ids

# What JSON can hold and what it cannot, text with NUL and lone surrogates included.
any_text = st.text(st.characters(codec=None), max_size=8)
small_ints = st.integers(-(2**60), 2**60)
leaves = (
    st.none()
    | st.booleans()
    | small_ints
    | st.floats(allow_nan=False)
    | any_text
    | st.binary(max_size=4)
    | st.datetimes(timezones=st.just(timezone.utc))
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)
json_values = st.recursive(
    st.none() | st.booleans() | small_ints | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)
json_objects = st.dictionaries(any_text, json_values, max_size=3)

roles = st.sampled_from(
    ["user", "assistant", "system", "developer", "tool", "function", "human", "ai", "bot", "chat"]
)
types = st.sampled_from(["human", "ai", "system", "tool", "function", "chat", "AIMessageChunk"])
blocks = st.fixed_dictionaries({"type": st.just("text"), "text": any_text}) | json_objects
contents = st.none() | any_text | st.lists(any_text | blocks, max_size=3)
openai_calls = st.fixed_dictionaries(
    {
        "id": any_text,
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {
                "name": any_text,
                "arguments": any_text
                | json_objects.map(json.dumps)
                | json_objects.map(lambda o: json.dumps(o, separators=(",", ":"))),
            }
        ),
    }
)
langchain_calls = st.fixed_dictionaries(
    {"name": any_text, "args": st.dictionaries(any_text, values, max_size=2), "id": any_text},
    optional={"type": st.just("tool_call")},
)
known_keys = st.fixed_dictionaries(
    {},
    optional={
        "content": contents | values,
        "id": st.none() | any_text | small_ints | st.just("charm_1"),
        "name": st.none() | any_text | small_ints,
        "tool_calls": st.none() | st.lists(openai_calls | langchain_calls, max_size=3) | values,
        "invalid_tool_calls": st.lists(json_objects, max_size=2) | values,
        "tool_call_id": st.none() | any_text | small_ints,
        "artifact": values,
        "status": st.sampled_from(["success", "error", "sent", None]),
        "additional_kwargs": st.dictionaries(
            any_text | st.sampled_from(["tool_calls", "charm_checkpoint", "__openai_role__"]),
            values | st.lists(openai_calls, max_size=1),
            max_size=2,
        )
        | values,
        "response_metadata": json_objects | values,
        "usage_metadata": st.dictionaries(
            st.sampled_from(["input_tokens", "output_tokens", "total_tokens", "cost"]),
            st.integers(0, 99),
        )
        | values,
        "refusal": st.none() | any_text,
        "function_call": st.none() | json_objects,
        "data": json_objects,
    },
)
unknown_keys = st.dictionaries(any_text | small_ints, values, max_size=2)
dicts = st.builds(
    lambda head, known, unknown: {**unknown, **known, **head},
    st.just({})
    | st.fixed_dictionaries({"role": roles | values})
    | st.fixed_dictionaries({"type": types | values})
    | st.fixed_dictionaries({"role": roles, "type": types}),
    known_keys,
    unknown_keys,
)

usages = st.fixed_dictionaries(
    {k: st.integers(0, 99) for k in ("input_tokens", "output_tokens", "total_tokens")}
)
common = {
    "content": any_text | st.lists(any_text | blocks, max_size=3),
    "id": st.none() | any_text.filter(lambda t: t and not t.startswith("charm_")),
    "name": st.none() | any_text,
    "additional_kwargs": st.dictionaries(any_text, json_values, max_size=2),
    "response_metadata": json_objects,
}
messages = st.one_of(
    st.builds(HumanMessage, **common),
    st.builds(SystemMessage, **common),
    st.builds(ChatMessage, role=roles, **common),
    st.builds(FunctionMessage, **{**common, "name": any_text}),
    st.builds(
        ToolMessage,
        tool_call_id=any_text,
        status=st.sampled_from(["success", "error"]),
        artifact=values,
        **common,
    ),
    st.builds(
        AIMessage,
        tool_calls=st.lists(langchain_calls, max_size=2),
        invalid_tool_calls=st.lists(
            st.fixed_dictionaries(
                {"name": any_text, "args": any_text, "id": any_text, "error": any_text}
            ),
            max_size=2,
        ),
        usage_metadata=st.none() | usages,
        **common,
    ),
)


@given(st.lists(dicts, max_size=4))
@example(
    [
        {
            "role": "assistant",
            "content": "",
            "additional_kwargs": {"tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
        }
    ]
)
@example(
    [{"role": "assistant", "tool_calls": [{"name": "f", "args": {"x": float("inf")}, "id": "1"}]}]
)
@example([{"role": "user", "content": "x", "additional_kwargs": {"charm_checkpoint": {"set": 1}}}])
def test_dicts_come_back_equal(history: list[dict[Any, Any]]) -> None:
    before = copy.deepcopy(history)
    converted = to_messages(history)
    assert to_dicts(converted) == before
    assert to_dicts(with_ids(converted)) == before
    assert history == before


@given(st.lists(dicts, max_size=3))
def test_dicts_come_back_equal_after_the_second_trip(history: list[dict[Any, Any]]) -> None:
    assert to_dicts(to_messages(to_dicts(to_messages(history)))) == history


@given(st.lists(messages, max_size=4))
def test_messages_come_back_equal(history: list[BaseMessage]) -> None:
    before = [m.model_copy(deep=True) for m in history]
    assert to_messages(to_dicts(history)) == before
    assert history == before


@given(st.lists(st.builds(lambda d, c: {**d, "content": c}, dicts, contents), max_size=3))
def test_dicts_survive_storage(history: list[dict[Any, Any]]) -> None:
    """LangGraph's serializer is no obstacle, but for surrogates, which it replaces or refuses itself."""
    serde = JsonPlusSerializer()
    plain = without_surrogates(history)
    stored = serde.loads_typed(serde.dumps_typed(with_ids(to_messages(plain))))
    assert to_dicts(stored) == plain


def without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {without_surrogates(k): without_surrogates(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_surrogates(v) for v in value]
    return value


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"role": "user", "content": "hi"}, HumanMessage("hi")),
        ({"role": "human", "content": "hi"}, HumanMessage("hi")),
        ({"role": "assistant", "content": "hi", "name": "Bo"}, AIMessage("hi", name="Bo")),
        (
            {"role": "ai", "content": ["a", {"type": "text", "text": "b"}]},
            AIMessage(["a", {"type": "text", "text": "b"}]),
        ),
        ({"role": "system", "content": "hi", "id": "7"}, SystemMessage("hi", id="7")),
        (
            {"role": "developer", "content": "hi"},
            SystemMessage("hi", additional_kwargs={"__openai_role__": "developer"}),
        ),
        (
            {
                "role": "tool",
                "content": "3",
                "tool_call_id": "c1",
                "status": "error",
                "artifact": [3],
            },
            ToolMessage("3", tool_call_id="c1", status="error", artifact=[3]),
        ),
        ({"role": "function", "name": "add", "content": "3"}, FunctionMessage("3", name="add")),
        ({"role": "narrator", "content": "hi"}, ChatMessage("hi", role="narrator")),
        ({"role": "user", "content": None}, HumanMessage("")),
        (
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1}, "id": "c1"}]),
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "add", "args": {"a": 1}, "id": "c1"}]},
            AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1}, "id": "c1"}]),
        ),
        (
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "c1", "function": {"name": "now", "arguments": ""}}],
            },
            AIMessage("", tool_calls=[{"name": "now", "args": {}, "id": "c1"}]),
        ),
        (
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "c1", "function": {"name": "add", "arguments": '{"a"'}}],
            },
            AIMessage(
                "", invalid_tool_calls=[{"name": "add", "args": '{"a"', "id": "c1", "error": None}]
            ),
        ),
        (
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"id": "c1", "function": {"name": "add", "arguments": '{"a": NaN}'}}
                ],
            },
            AIMessage(
                "",
                invalid_tool_calls=[
                    {"name": "add", "args": '{"a": NaN}', "id": "c1", "error": None}
                ],
            ),
        ),
        (
            {"role": "assistant", "content": "no", "refusal": "no", "audio": None},
            AIMessage("no", additional_kwargs={"refusal": "no"}),
        ),
        ({"type": "human", "data": {"content": "hi", "id": "7"}}, HumanMessage("hi", id="7")),
        ({"type": "ai", "content": "hi"}, AIMessage("hi")),
        ({"type": "system", "event": "boot"}, HumanMessage('{"type": "system", "event": "boot"}')),
        ({"note": "likes tea"}, HumanMessage('{"note": "likes tea"}')),
        ({"role": "user", "text": "hi"}, HumanMessage('{"text": "hi"}')),
        ({"role": "user", "content": {"n": 1}}, HumanMessage('{"n": 1}')),
    ],
)
def test_what_a_dict_means(written: dict[str, Any], expected: BaseMessage) -> None:
    (message,) = to_messages([written])
    assert to_dicts([message]) == [written]
    message.additional_kwargs.pop("charm_checkpoint", None)
    assert message == expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (HumanMessage("hi", id="1"), {"role": "user", "content": "hi", "id": "1"}),
        (SystemMessage("hi"), {"role": "system", "content": "hi"}),
        (
            AIMessage("", tool_calls=[{"name": "add", "args": {"a": "é"}, "id": "c1"}]),
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "add", "arguments": '{"a": "é"}'},
                    }
                ],
            },
        ),
        (
            AIMessage(
                "", tool_calls=[{"name": "at", "args": {"t": datetime(2026, 1, 1)}, "id": "c1"}]
            ),
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "name": "at",
                        "args": {"t": datetime(2026, 1, 1)},
                        "id": "c1",
                        "type": "tool_call",
                    }
                ],
            },
        ),
        (
            AIMessage("", tool_calls=[{"name": "add", "args": {"n": {1: 2}}, "id": "c1"}]),
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"name": "add", "args": {"n": {1: 2}}, "id": "c1", "type": "tool_call"}
                ],
            },
        ),
        (AIMessageChunk("hi"), {"role": "assistant", "content": "hi"}),
        (
            ToolMessage("3", tool_call_id="c1"),
            {"role": "tool", "content": "3", "tool_call_id": "c1"},
        ),
        (ChatMessage("hi", role="user"), {"role": "user", "content": "hi", "type": "chat"}),
        (RemoveMessage("1"), {"role": "remove", "content": "", "id": "1"}),
    ],
)
def test_how_a_graphs_message_shows(message: BaseMessage, expected: dict[str, Any]) -> None:
    assert to_dicts([message]) == [expected]


def test_dicts_of_messages_are_what_langchain_reads() -> None:
    history = [
        SystemMessage("be brief", id="0"),
        HumanMessage([{"type": "text", "text": "1 + 2?"}], id="1"),
        AIMessage("", id="2", tool_calls=[{"name": "add", "args": {"a": 1, "b": 2}, "id": "c1"}]),
        ToolMessage("3", id="3", tool_call_id="c1"),
        AIMessage("3", id="4"),
    ]
    assert convert_to_messages(to_dicts(history)) == history


@pytest.mark.parametrize("form", [message_to_dict, BaseMessage.model_dump])
def test_langchains_own_forms_are_not_stored_twice(form: Any) -> None:
    original = form(HumanMessage("a long text", additional_kwargs={"k": "v"}))
    (message,) = with_ids(to_messages([original]))
    assert to_dicts([message]) == [original]
    assert "a long text" not in repr(message.additional_kwargs)


def test_a_nan_is_no_change() -> None:
    serde = JsonPlusSerializer()
    call = {"name": "add", "args": {"x": float("nan")}, "id": "c1"}
    stored = serde.dumps_typed(to_messages([{"role": "assistant", "tool_calls": [call]}]))
    (shown,) = to_dicts(serde.loads_typed(stored))
    assert shown.keys() == {"role", "tool_calls"}
    assert repr(shown["tool_calls"]) == repr([call])


def test_what_a_graph_changed_wins_over_what_was_kept() -> None:
    (message,) = to_messages(
        [{"role": "assistant", "content": None, "at": 5, "tool_calls": [CALL]}]
    )
    changed = message.model_copy(update={"content": "redacted", "tool_calls": []})
    assert to_dicts([changed]) == [{"role": "assistant", "content": "redacted", "at": 5}]
    (record,) = to_messages([{"secret": "x"}])
    changed = record.model_copy(update={"content": "redacted"})
    assert to_dicts([changed]) == [{"role": "user", "content": "redacted"}]


def test_ids_that_were_made_here_do_not_show() -> None:
    original = [user("hi"), user("hi", id=""), user("hi", id="mine")]
    converted = to_messages(original)
    first, second, third = with_ids(converted)
    assert converted[0].id is converted[1].id is None
    assert first.id
    assert second.id
    assert first.id != second.id
    assert third.id == "mine"
    assert to_dicts([first, second, third]) == original


def test_dicts_share_nothing_with_messages() -> None:
    original: list[dict[str, Any]] = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "a", "deep": {"n": [1]}}],
            "mine": {"n": [1]},
        },
        {"role": "tool", "content": "x", "tool_call_id": "c", "artifact": {"n": [1]}},
        {
            "role": "assistant",
            "content": "x",
            "response_metadata": {"n": [1]},
            "tool_calls": [CALL],
        },
    ]
    expected = copy.deepcopy(original)
    converted = to_messages(original)
    before = copy.deepcopy(converted)
    for dicts_ in (original, to_dicts(converted)):
        spoil(dicts_)
    assert converted == before
    assert to_dicts(converted) == expected
    spoil(to_dicts(expected))
    assert to_dicts(converted) == expected


def spoil(value: Any) -> None:
    if isinstance(value, dict):
        for part in list(value.values()):
            spoil(part)
        value["spoiled"] = True
    elif isinstance(value, list):
        for part in value:
            spoil(part)
        value.append("spoiled")


def test_messages_stay_as_they_are() -> None:
    message = HumanMessage("hi")
    assert to_messages([message])[0] is message


@pytest.mark.parametrize("convert", [to_messages, to_dicts])
@pytest.mark.parametrize(
    ("wrong", "named"),
    [("hi", "builtins.str"), (("user", "hi"), "builtins.tuple"), (None, "NoneType")],
)
def test_other_things_are_named(convert: Any, wrong: Any, named: str) -> None:
    with pytest.raises(SerializationError, match=rf"message 1 is a \S*{named}"):
        convert([{"role": "user", "content": "x"}, wrong])


def test_a_dict_that_holds_itself_is_named() -> None:
    endless: dict[str, Any] = {"role": "user", "content": "x"}
    endless["self"] = endless
    with pytest.raises(SerializationError, match=r"message 1 .* holds itself"):
        to_messages([{"role": "user", "content": "x"}, endless])


def test_langchain_is_imported_only_when_there_is_something_to_do() -> None:
    code = "import sys, charm_checkpoint.messages; print('langchain_core' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
