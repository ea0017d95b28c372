"""Adapter type `python-history`: a plain function that is handed its thread's history, and whose turn is saved.

```python
def agent(input, history):  # history: [{"role": "user", "content": "…"}, …]
    return f"You said {len(history) // 2} things before."
```

```yaml
runtime:
  adapter: {type: python-history, entry_point: "src.main:agent"}
  memory: {provider: local}
```

The entry point is a function, sync or async, a class, or an object with `invoke` or `run`. Its parameters are given by
name: `input`, `history`, `messages` (the history with this turn's message), `inputs` (all that the user sent),
`thread_id`, `callbacks`, and each key of the inputs; a first parameter of another name receives `input`.

It answers with text, a message, a list of messages (the new ones, or all with the new ones at the end), a dict with
`output` or `messages`, or anything else that JSON can say.

The user's message and the answer are saved together, after the answer. A turn that fails leaves the history as it was,
so that it can be sent again.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable
from typing import Any

from langchain_core.messages import BaseMessage, convert_to_messages

from charm_adapter_checkpoint.adapter import MemoryAdapter, run_async
from charm_adapter_checkpoint.results import as_json, success, text_of
from charm_checkpoint.errors import ConfigError
from charm_checkpoint.messages import to_dicts

__all__ = ["HistoryAdapter"]

Message = dict[str, Any]


class HistoryAdapter(MemoryAdapter):
    """Runs a function on the history of its thread, and appends the turn."""

    def __init__(self, agent_instance: Any, config: Any = None) -> None:
        super().__init__(agent_instance, config)
        self._function: Callable[..., Any] | None = None

    def _turn(self, inputs: dict[str, Any], thread_id: str, callbacks: list[Any]) -> dict[str, Any]:
        if self._function is None:
            self._function = _find_function(self.agent)
        asked = _asked(inputs)
        messages = [*self.store.load_messages(thread_id), *asked]
        positional, named = _arguments(
            self._function,
            inputs,
            {
                "input": inputs.get("input", text_of(asked[-1]) if asked else ""),
                "inputs": dict(inputs),
                "history": messages[: len(messages) - len(asked)],
                "messages": list(messages),
                "thread_id": thread_id,
                "callbacks": callbacks,
            },
        )
        answer = self._function(*positional, **named)
        if inspect.isawaitable(answer):
            answer = run_async(_awaited(answer))
        if isinstance(answer, dict) and answer.get("status") == "error":
            return answer
        said, output = _answered(answer, messages)
        self.store.append_messages(thread_id, asked + said)
        if isinstance(answer, dict) and "status" in answer:
            return {"thread_id": thread_id, **answer}
        return success(output, thread_id)


def _find_function(agent: Any) -> Callable[..., Any]:
    if inspect.isclass(agent):
        agent = agent()
    candidates: list[Any] = [getattr(agent, "invoke", None), getattr(agent, "run", None), agent]
    for function in filter(callable, candidates):
        return function
    raise ConfigError(
        f"the entry point gives a {type(agent).__name__}; expected a function, a class, or an object with invoke() or "
        "run()"
    )


def _arguments(
    function: Callable[..., Any], inputs: dict[str, Any], offered: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    positional: list[Any] = []
    named: dict[str, Any] = {}
    available = {**inputs, **offered}
    for place, parameter in enumerate(inspect.signature(function).parameters.values()):
        name = parameter.name
        if parameter.kind is parameter.VAR_POSITIONAL:
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            named.update({key: inputs[key] for key in inputs if key not in named})
        elif name not in available and parameter.default is not parameter.empty:
            continue
        elif name not in available and place > 0:
            raise ConfigError(
                f"the agent's parameter {name!r} is neither in the input nor one of {', '.join(offered)}"
            )
        else:
            value = available.get(name, offered["input"])
            if parameter.kind is parameter.POSITIONAL_ONLY:
                positional.append(value)
            else:
                named[name] = value
    return positional, named


def _asked(inputs: dict[str, Any]) -> list[Message]:
    """This turn's messages: `messages`, else `input` as the user's one message."""
    messages = inputs.get("messages")
    if messages is not None:
        return _messages(messages if isinstance(messages, list) else [messages])
    if inputs.get("input") is None:
        return []
    return [{"role": "user", "content": _text(inputs["input"])}]


def _answered(answer: Any, given: list[Message]) -> tuple[list[Message], Any]:
    """The messages to save, and the output to show."""
    if answer is None:
        return [], ""
    if isinstance(answer, dict) and "messages" in answer:
        said, output = _answered(answer["messages"], given)
        return said, answer.get("output", output)
    if isinstance(answer, dict) and "output" in answer:
        return _answered(answer["output"], given)
    if _is_message(answer):
        answer = [answer]
    if isinstance(answer, list) and all(map(_is_message, answer)):
        said = _messages(answer)
        if len(said) >= len(given) and all(map(_same, said, given)):
            said = said[len(given) :]
        return said, text_of(said[-1]) if said else ""
    return [{"role": "assistant", "content": _text(answer)}], answer


def _is_message(value: Any) -> bool:
    return isinstance(value, BaseMessage) or (
        isinstance(value, dict) and "role" in value and "content" in value
    )


def _messages(values: list[Any]) -> list[Message]:
    return to_dicts(
        value if isinstance(value, (dict, BaseMessage)) else convert_to_messages([value])[0]
        for value in values
    )


def _same(said: Message, given: Message) -> bool:
    return (said.get("role"), said.get("content")) == (given.get("role"), given.get("content"))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(as_json(value), ensure_ascii=False)


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value
