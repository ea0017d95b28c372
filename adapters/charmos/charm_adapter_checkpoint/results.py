"""Results in the form of charmos's stock adapters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from pydantic_core import to_jsonable_python

__all__ = ["as_json", "success", "suspended", "text_of"]

_RENDERED = "_charm_render_type"  # a dict with this key is drawn by the store's front end


def success(output: Any, thread_id: str) -> dict[str, Any]:
    """A turn that ended; `output` is what the run's `final` event shows."""
    return {"status": "success", "output": output, "thread_id": thread_id, "charm_state": ""}


def suspended(
    thread_id: str, next_step: Sequence[str], interrupts: Sequence[Any], values: Any
) -> dict[str, Any]:
    """A thread that waits. The `final` event shows the question: one payload as it is, several as `id` and `value`.

    Args:
        thread_id: The thread.
        next_step: The nodes that run next.
        interrupts: LangGraph `Interrupt`s; none at a static breakpoint.
        values: The state, whose last message is shown at a breakpoint.
    """
    questions = [{"id": each.id, "value": each.value} for each in interrupts]
    output: Any = "Waiting for input..."
    if len(questions) == 1:
        output = questions[0]["value"]
    elif questions:
        output = questions
    elif isinstance(values, dict) and values.get("messages"):
        output = text_of(values["messages"][-1])
    return {
        "status": "suspended",
        "output": output,
        "message": f"The thread waits: {output}",  # all that `charm run --input` shows
        "thread_id": thread_id,
        "next_step": list(next_step),
        "interrupts": questions,
        "charm_state": "",
    }


def output_of(state: Any) -> Any:
    """What a graph's final state has to show: its last message, else `generation` or `output`, else all of it."""
    if not isinstance(state, dict) or _RENDERED in state:
        return state if isinstance(state, dict) else str(state)
    if state.get("messages"):
        return text_of(state["messages"][-1])
    for key in ("generation", "output"):
        if key in state:
            value = state[key]
            return value if isinstance(value, dict) and _RENDERED in value else str(value)
    return str(state)


def text_of(message: Any) -> str:
    """The text of a message, be it an object, a dict or a plain value."""
    if isinstance(message, BaseMessage):
        return str(message.text) or str(message.content)
    if isinstance(message, dict) and "content" in message:
        message = message["content"]
    return str(message)


def as_json(value: Any) -> Any:
    """`value` as the runtime's events can carry it: plain JSON values, no lone surrogates."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError):  # keys that JSON does not have, or a cycle
        text = json.dumps(str(value), ensure_ascii=False)
    return json.loads(text.encode("utf-8", "replace"))


def _plain(value: Any) -> Any:
    return to_jsonable_python(value, fallback=str, bytes_mode="base64", serialize_unknown=True)
