"""What a graph is given, from what the user sent and what the thread waits for."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from langchain_core.messages import HumanMessage, convert_to_messages
from langgraph.types import Command, Interrupt, StateSnapshot

from charm_checkpoint.errors import CheckpointStoreError

__all__ = ["InputError", "Turn", "plan"]

_ABSENT: Any = object()
_SAID = ("input", "messages")
_ID = re.compile(r"[0-9a-f]{32}")  # of an interrupt; LangGraph tells a resume by id likewise


class InputError(CheckpointStoreError, ValueError):
    """The input does not fit what the thread waits for; nothing ran."""


class Turn(NamedTuple):
    """One run of the graph.

    Attributes:
        input: For `invoke`; `None` goes on where the thread stopped.
    """

    input: Any


def plan(inputs: dict[str, Any], state: StateSnapshot | None, keys: Collection[str]) -> Turn | None:
    """Decide what runs.

    | the thread | `resume` | `input` or `messages` | neither |
    |---|---|---|---|
    | waits at `interrupt()` | answers it | answers it | shown again, nothing runs |
    | stopped between two nodes | `true` goes on | a new turn | shown again, nothing runs |
    | is idle, or `restart` is true | an error | a new turn | a new turn |

    "Stopped between two nodes" is a static breakpoint, a failed node, or a run that was killed.

    Args:
        inputs: The user's input without the thread's id. `resume` and `restart` are the adapter's unless the state
            has keys of these names; `__charm_resume__` and `__charm_restart__` always are.
        state: Where the thread stands; `None` if nothing is kept.
        keys: The keys of the graph's state.

    Returns:
        `None` if nothing is to run.

    Raises:
        InputError: `resume` has nothing to resume, or is not what the thread waits for.
    """
    inputs = {k: v for k, v in inputs.items() if v is not None or k not in _SAID}
    answer = _take(inputs, "resume", keys)
    restart = _take(inputs, "restart", keys)
    if state is None or not state.next or restart not in (_ABSENT, None, False):
        if answer is not _ABSENT:
            raise InputError("there is nothing to resume: the thread waits for no answer")
        return Turn(_graph_input(inputs, keys))
    if state.interrupts:
        return _answered(inputs, answer, state.interrupts, keys)
    if answer is not _ABSENT:
        if answer is not True:
            raise InputError(
                f"the thread stopped before {', '.join(state.next)} and asks no question: `resume` can only be true "
                "(go on); send `input` to begin a new turn"
            )
        return Turn(Command(update=update) if (update := _update(inputs, keys)) else None)
    return Turn(_graph_input(inputs, keys)) if _says_something(inputs, keys) else None


def _answered(
    inputs: dict[str, Any], answer: Any, interrupts: Sequence[Interrupt], keys: Collection[str]
) -> Turn | None:
    if answer is _ABSENT and "input" in inputs:
        answer = inputs.pop("input")
    if answer is _ABSENT and inputs.get("messages"):
        answer = convert_to_messages(_listed(inputs.pop("messages")))[-1].content
    if answer is _ABSENT:
        if _says_something(inputs, keys):
            raise InputError(
                f"the thread waits for an answer to {interrupts[0].value!r}: send it as `input` or `resume`, or "
                "`restart: true` to begin a new turn"
            )
        return None
    return Turn(Command(resume=_by_id(answer, interrupts), update=_update(inputs, keys)))


def _by_id(answer: Any, interrupts: Sequence[Interrupt]) -> dict[str, Any]:
    """Address the answer, so that one which comes late, after another device's, reaches no other question."""
    if not (isinstance(answer, dict) and answer and all(map(_ID.fullmatch, answer))):
        return {interrupts[0].id: answer}
    if unknown := answer.keys() - {interrupt.id for interrupt in interrupts}:
        raise InputError(
            f"the thread does not wait for an answer to {', '.join(sorted(unknown))} (any more); it waits for "
            f"{', '.join(interrupt.id for interrupt in interrupts)}"
        )
    return answer


def _take(inputs: dict[str, Any], name: str, keys: Collection[str]) -> Any:
    value = inputs.pop(f"__charm_{name}__", _ABSENT)
    return inputs.pop(name, _ABSENT) if value is _ABSENT and name not in keys else value


def _says_something(inputs: dict[str, Any], keys: Collection[str]) -> bool:
    return any(key in keys or key in _SAID for key in inputs)


def _graph_input(inputs: dict[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """`input` becomes one human message unless `messages` is given or the state has no messages but an `input`."""
    given = dict(inputs)
    if "messages" in given:
        given["messages"] = _listed(given["messages"])
    elif "input" in given and ("messages" in keys or "input" not in keys):
        value = given["input"] if "input" in keys else given.pop("input")
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        given["messages"] = [HumanMessage(text)]
    return given


def _update(inputs: dict[str, Any], keys: Collection[str]) -> dict[str, Any] | None:
    update = {key: value for key, value in _graph_input(inputs, keys).items() if key in keys}
    return update or None


def _listed(messages: Any) -> list[Any]:
    return messages if isinstance(messages, list) else [messages]
