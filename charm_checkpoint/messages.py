"""Message dicts and LangChain messages, each turned into the other without loss.

A dict is what people write: `{"role": "user", "content": "…"}`, with OpenAI's or LangChain's tool calls, or LangChain's
own `{"type": "human", "data": {…}}` and `model_dump()` forms. The way back gives an equal dict: what a message cannot
hold (keys it has no field for, `None` as content, the exact text of a tool call's arguments) is kept under one key of
its `additional_kwargs`, where no model integration looks. If a graph has changed the message since, its own values win.

| dict | message |
|---|---|
| `role` user, assistant, system, tool, function (also human, ai) | the message of that type |
| `role` developer | `SystemMessage`, marked as LangChain's OpenAI integration does |
| any other `role` | `ChatMessage` with that role |
| no `role`: a record of the agent's own | `HumanMessage` whose content is the dict as JSON, which every model takes |
| no `content` and no tool calls | the keys that messages do not know, as JSON, are the content |

A message that never was a dict shows as `role`, `content`, then those of its fields that are set; tool calls in
OpenAI's form, in LangChain's if their arguments are not JSON. Message chunks show as whole messages.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from charm_checkpoint.errors import SerializationError

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage, InvalidToolCall, ToolCall

__all__ = ["same", "to_dicts", "to_messages", "with_ids"]

# The one key in `additional_kwargs`, and the prefix of ids that were made here: neither is shown in a dict.
_KEPT = "charm_checkpoint"
_INVENTED = "charm_"

_TYPES = {
    "user": "human",
    "human": "human",
    "assistant": "ai",
    "ai": "ai",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "function",
}
_ROLES = {
    "human": "user",
    "ai": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "function",
}

# Keys of an assistant's dict that LangChain's integrations look for in `additional_kwargs`.
_PROVIDER_KEYS = ("function_call", "audio", "refusal", "reasoning_content")
_SAID_WITHOUT_CONTENT = ("tool_calls", *_PROVIDER_KEYS)
_OPENAI_ROLE = "__openai_role__"

_FIELDS = frozenset(
    {
        "role",
        "type",
        "data",
        "content",
        "name",
        "id",
        "invalid_tool_calls",
        "tool_call_id",
        "status",
        "artifact",
        "additional_kwargs",
        "response_metadata",
        "usage_metadata",
        *_SAID_WITHOUT_CONTENT,
    }
)


def to_messages(messages: Iterable[dict[str, Any] | BaseMessage]) -> list[BaseMessage]:
    """Turn dicts into messages that `to_dicts` turns back into equal dicts. Messages stay as they are.

    Raises:
        SerializationError: An element is neither a dict nor a message; names its index and type.
    """
    from langchain_core.messages import BaseMessage

    result: list[BaseMessage] = []
    for index, message in enumerate(messages):
        if isinstance(message, BaseMessage):
            result.append(message)
        elif isinstance(message, dict):
            try:
                result.append(_to_message(message))
            except RecursionError as error:
                raise SerializationError(
                    f"message {index} is nested too deeply, or holds itself"
                ) from error
        else:
            raise _not_a_message(index, message)
    return result


def to_dicts(messages: Iterable[BaseMessage | dict[str, Any]]) -> list[dict[str, Any]]:
    """Turn messages into dicts that share nothing changeable with them. Dicts are copied.

    Raises:
        SerializationError: An element is neither a message nor a dict; names its index and type.
    """
    from langchain_core.messages import BaseMessage

    result: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        if isinstance(message, BaseMessage):
            result.append(_to_dict(message))
        elif isinstance(message, dict):
            result.append(_copy(message))
        else:
            raise _not_a_message(index, message)
    return result


def with_ids(messages: Iterable[BaseMessage]) -> list[BaseMessage]:
    """Give every message an id, as graphs need it, without changing the ones passed in.

    `to_dicts` does not show the ids made here.
    """
    return [
        m if m.id is not None else m.model_copy(update={"id": f"{_INVENTED}{uuid.uuid4()}"})
        for m in messages
    ]


# -- dict to message ---------------------------------------------------------------------------------------------------


def _to_message(original: dict[str, Any]) -> BaseMessage:
    original = _copy(original)
    message = _build(original)
    form, _ = _read_form(original)
    shown = _show(message, form)
    kept: dict[str, Any] = {} if form == "role" else {"form": form}
    if form == "record":
        own = {} if same(shown, original) else original
    else:
        own = {k: v for k, v in original.items() if k not in shown or not same(shown[k], v)}
        if missing := [k for k in shown if k not in original]:
            kept["drop"] = missing
    if own:
        kept["set"] = own
    if kept:
        message.additional_kwargs[_KEPT] = kept
    return message


def _read_form(original: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """How a dict is written (`"role"`, `"data"`, `"flat"` or `"record"`), and the message fields in it."""
    if isinstance(original.get("role"), str):
        return "role", original
    type_ = original.get("type")
    if isinstance(type_, str) and (_whole(type_) in _ROLES or _whole(type_) == "chat"):
        data = original.get("data")
        if isinstance(data, dict):
            return "data", {**data, "type": type_}
        if "content" in original:
            return "flat", original
    return "record", {}


def _build(original: Mapping[str, Any]) -> BaseMessage:
    """Make the message that says what the dict says, as far as a message can."""
    from langchain_core import messages as lc

    form, fields = _read_form(original)
    if form == "record":
        return lc.HumanMessage(_text(original))
    role, type_ = fields.get("role"), fields.get("type")
    if form == "role" and type_ != "chat":
        type_ = _TYPES.get(cast(str, role), "chat")
    type_ = _whole(cast(str, type_))

    given = fields.get("additional_kwargs")
    additional = dict(given) if isinstance(given, dict) else {}
    values: dict[str, Any] = {"content": _content(fields), "additional_kwargs": additional}
    for field in ("name", "response_metadata"):
        if fields.get(field) is not None:
            values[field] = fields[field]
    # Graphs would take all messages with an empty id for one.
    if fields.get("id") not in (None, ""):
        values["id"] = fields["id"]

    if type_ == "ai":
        additional.update({k: fields[k] for k in _PROVIDER_KEYS if fields.get(k) is not None})
        values["tool_calls"], values["invalid_tool_calls"] = _parse_tool_calls(fields)
        values["usage_metadata"] = fields.get("usage_metadata")
        return _make(lc.AIMessage, values)
    if type_ == "tool":
        call_id = fields.get("tool_call_id")
        values["tool_call_id"] = call_id if isinstance(call_id, str) else ""
        values.update({k: fields[k] for k in ("artifact", "status") if k in fields})
        return _make(lc.ToolMessage, values)
    if type_ == "function":
        name = fields.get("name")
        values["name"] = name if isinstance(name, str) else ""
        return _make(lc.FunctionMessage, values)
    if type_ == "chat":
        values["role"] = role if isinstance(role, str) else "chat"
        return _make(lc.ChatMessage, values)
    if form == "role" and role == "developer":
        additional[_OPENAI_ROLE] = "developer"
    return _make(lc.SystemMessage if type_ == "system" else lc.HumanMessage, values)


def _make(kind: type[BaseMessage], values: dict[str, Any]) -> BaseMessage:
    """Make a message, leaving out optional fields whose value does not fit: the dict's own is kept anyway."""
    from pydantic import ValidationError

    while True:
        try:
            return kind(**values)
        except ValidationError as error:
            named = {str(e["loc"][0]) for e in error.errors(include_input=False) if e["loc"]}
            # LangChain also reads tool calls out of `additional_kwargs`.
            unfit = named & values.keys() or {"additional_kwargs"} & values.keys()
            if not unfit:
                raise
            values = {k: v for k, v in values.items() if k not in unfit}


def _content(fields: Mapping[str, Any]) -> str | list[Any]:
    content = fields.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, (list, tuple)) and all(isinstance(b, (str, dict)) for b in content):
        return list(content)
    if content is not None:
        return _text(content)
    said = "content" in fields or any(fields.get(k) is not None for k in _SAID_WITHOUT_CONTENT)
    rest = {} if said else {k: v for k, v in fields.items() if k not in _FIELDS}
    return _text(rest) if rest else ""


def _parse_tool_calls(fields: Mapping[str, Any]) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    """Read tool calls in OpenAI's or LangChain's form; what is neither stays in the dict only."""
    from langchain_core.messages import tool as lc

    valid: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for call in _dicts_in(fields.get("tool_calls")):
        function = call.get("function")
        if isinstance(function, dict):
            name, args = function.get("name"), function.get("arguments")
        else:
            name, args = call.get("name"), call.get("args")
        call_id = call.get("id")
        if not isinstance(name, str) or not isinstance(call_id, (str, type(None))):
            continue
        if isinstance(args, str):
            parsed = _parse_arguments(args)
            if parsed is None:
                invalid.append(lc.invalid_tool_call(name=name, args=args, id=call_id))
                continue
            args = parsed
        if args is None or isinstance(args, dict):
            valid.append(lc.tool_call(name=name, args=args or {}, id=call_id))
    for call in _dicts_in(fields.get("invalid_tool_calls")):
        parts = {k: call.get(k) for k in ("name", "args", "id", "error")}
        if all(isinstance(v, (str, type(None))) for v in parts.values()):
            invalid.append(lc.invalid_tool_call(**parts))
    return valid, invalid


def _parse_arguments(text: str) -> dict[str, Any] | None:
    """The arguments of a tool call, `None` if `text` is not a JSON object. Models leave it empty for no arguments."""
    if not text:
        return {}
    try:
        parsed = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# -- message to dict ---------------------------------------------------------------------------------------------------


def _to_dict(message: BaseMessage) -> dict[str, Any]:
    kept = message.additional_kwargs.get(_KEPT)
    if not isinstance(kept, dict):
        return _show(message, "role")
    form, own, missing = kept.get("form", "role"), kept.get("set", {}), kept.get("drop", ())
    if form == "record":
        restored = _copy(own) or _show(message, form)
    else:
        restored = {k: v for k, v in _show(message, form).items() if k not in missing}
        restored.update(_copy(own))
    if form != "record" and not missing and _FIELDS.isdisjoint(own):
        return restored
    # A graph may have given the message another content, say, while what was kept still describes the old one.
    described, now = _build(restored), _show(message, "role")
    if same(_show(described, "role"), now):
        return restored
    if "content" in missing and described.content:
        return now  # the unknown keys were the content
    return {**{k: v for k, v in _copy(own).items() if k not in _FIELDS}, **now}


def _show(message: BaseMessage, form: str) -> dict[str, Any]:
    """The dict of a message in one of the forms of `_read_form`, from its own fields only."""
    if form == "record":
        try:
            record = json.loads(cast(str, message.content))
        except (TypeError, ValueError, RecursionError):
            return {}
        return record if isinstance(record, dict) else {}
    if form == "role":
        return _show_fields(message)
    dump = message.model_dump()
    dump["additional_kwargs"].pop(_KEPT, None)
    if _invented(message.id):
        dump["id"] = None
    return dump if form == "flat" else {"type": message.type, "data": dump}


def _show_fields(message: BaseMessage) -> dict[str, Any]:
    from langchain_core.messages import AIMessage, ChatMessage, ToolMessage

    additional = _copy({k: v for k, v in message.additional_kwargs.items() if k != _KEPT})
    role = _ROLES.get(_whole(message.type), message.type)
    shown: dict[str, Any] = {}
    if isinstance(message, ChatMessage):
        role = message.role
        if role in _TYPES:
            shown["type"] = "chat"
    elif role == "system" and additional.get(_OPENAI_ROLE) == "developer":
        role = additional.pop(_OPENAI_ROLE)
    shown = {"role": role, "content": _copy(message.content), **shown}
    if message.name is not None:
        shown["name"] = message.name
    if isinstance(message, AIMessage):
        if message.tool_calls:
            shown["tool_calls"] = [_show_tool_call(call) for call in message.tool_calls]
        if message.invalid_tool_calls:
            shown["invalid_tool_calls"] = [dict(call) for call in message.invalid_tool_calls]
        if message.usage_metadata is not None:
            shown["usage_metadata"] = _copy(message.usage_metadata)
        shown.update({k: additional.pop(k) for k in _PROVIDER_KEYS if k in additional})
    elif isinstance(message, ToolMessage):
        shown["tool_call_id"] = message.tool_call_id
        if message.status != "success":
            shown["status"] = message.status
        if message.artifact is not None:
            shown["artifact"] = _copy(message.artifact)
    if message.id is not None and not _invented(message.id):
        shown["id"] = message.id
    if additional:
        shown["additional_kwargs"] = additional
    if message.response_metadata:
        shown["response_metadata"] = _copy(message.response_metadata)
    return shown


def _show_tool_call(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.dumps(call["args"], ensure_ascii=False, allow_nan=False)
        if json.loads(arguments) == call["args"]:
            function = {"name": call["name"], "arguments": arguments}
            return {"id": call.get("id"), "type": "function", "function": function}
    except (TypeError, ValueError, RecursionError):
        pass
    return {**_copy(call), "type": "tool_call"}


# -- parts -------------------------------------------------------------------------------------------------------------


def _whole(type_: str) -> str:
    """A message's type; a chunk's is that of the whole message."""
    return type_[: -len("MessageChunk")].lower() if type_.endswith("MessageChunk") else type_


def _invented(message_id: str | None) -> bool:
    return message_id is not None and message_id.startswith(_INVENTED)


def _dicts_in(value: Any) -> list[dict[str, Any]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, (list, tuple)) else []


def _text(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):
        return str(value)


def same(one: Any, other: Any) -> bool:
    """Equal, where a NaN equals itself, and arrays, which have no one answer, are compared by what they show."""
    try:
        return bool(one == other) or repr(one) == repr(other)
    except ValueError:
        return repr(one) == repr(other)


def _copy(value: Any) -> Any:
    """Copy the dicts and lists of a value; what else is in them is shared."""
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_copy(v) for v in value]
    return value


def _not_a_message(index: int, value: Any) -> SerializationError:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return SerializationError(
        f"message {index} is a {kind}, neither a dict nor a LangChain message. Nothing was stored"
    )
