"""Adapter type `langgraph-checkpoint`: a LangGraph agent whose threads outlive the process and resume.

```yaml
runtime:
  adapter: {type: langgraph-checkpoint, entry_point: "src.main:graph"}
  memory: {provider: local}
```

The entry point is a `StateGraph`, a compiled graph, a function or class that makes one (a parameter named
`checkpointer` receives the saver, another required one the input), or an object that holds one as `graph` or `app`. A
graph compiled with a saver of its own keeps it, and one compiled with `checkpointer=False` keeps nothing.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import StateGraph

from charm_adapter_checkpoint.adapter import MemoryAdapter, run_async
from charm_adapter_checkpoint.results import output_of, success, suspended
from charm_adapter_checkpoint.turn import plan
from charm_checkpoint import announce_graph_types
from charm_checkpoint.errors import ConfigError

__all__ = ["GraphAdapter"]

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_RECURSION_LIMIT = 50  # the stock adapter's, unless the graph has its own

# The agent's module is imported after this one, so that a graph it compiles without a saver knows its types.
announce_graph_types()


class GraphAdapter(MemoryAdapter):
    """Runs a graph on the store of `runtime.memory`; `turn.plan` says what an input does to a waiting thread."""

    def __init__(self, agent_instance: Any, config: Any = None) -> None:
        super().__init__(agent_instance, config)
        self._graph: Any = None

    def _turn(self, inputs: dict[str, Any], thread_id: str, callbacks: list[Any]) -> dict[str, Any]:
        if self._graph is None:
            self._graph = self._persistent(self.agent, inputs)
        graph = self._graph
        own_limit = (getattr(graph, "config", None) or {}).get("recursion_limit")
        config = {
            "configurable": {"thread_id": thread_id},
            "recursion_limit": own_limit or _RECURSION_LIMIT,
            "callbacks": callbacks,
        }
        keeps = getattr(graph, "checkpointer", None) is not False
        state = _call(graph, "get_state", config) if keeps else None
        turn = plan(inputs, state, _state_keys(graph))
        if turn is None:
            assert state is not None
            return suspended(thread_id, state.next, state.interrupts, state.values)
        values = _call(graph, "invoke", turn.input, config)
        if keeps:
            state = _call(graph, "get_state", config)
            if state.next:
                return suspended(thread_id, state.next, state.interrupts, values)
        return success(output_of(values), thread_id)

    def _persistent(self, agent: Any, inputs: dict[str, Any]) -> Any:
        """Find the graph in what the entry point names, and give it the saver if it has none."""
        if isinstance(agent, StateGraph):
            return agent.compile(checkpointer=self._saver())
        if inspect.isclass(agent) or inspect.isroutine(agent):
            return self._persistent(self._made_by(agent, inputs), inputs)
        if hasattr(agent, "invoke") and hasattr(agent, "get_state"):
            if getattr(agent, "checkpointer", False) not in (None, True):
                return agent
            # Not agent.copy(): it forgets what compile() derived from the state's types.
            agent = copy.copy(agent)
            agent.checkpointer = self._saver()
            return agent
        for name in ("graph", "app"):
            if hasattr(agent, name):
                return self._persistent(getattr(agent, name), inputs)
        raise ConfigError(
            f"the entry point gives a {type(agent).__name__}; expected a StateGraph, a compiled graph, a function or "
            "class that makes one, or an object with one in `graph` or `app`"
        )

    def _made_by(self, factory: Any, inputs: dict[str, Any]) -> Any:
        arguments: dict[str, Any] = {}
        for parameter in inspect.signature(factory).parameters.values():
            if parameter.name == "checkpointer":
                arguments["checkpointer"] = self._saver()
            elif parameter.default is parameter.empty and parameter.kind in _NAMED:
                arguments[parameter.name] = dict(inputs)
        made = factory(**arguments)
        return run_async(made) if inspect.iscoroutine(made) else made

    def _saver(self) -> BaseCheckpointSaver[Any]:
        saver = self.store.get_langgraph_checkpointer()
        if saver is None:
            raise ConfigError(
                "this memory provider keeps message histories but no graph states; choose another one, or the adapter "
                "type python-history"
            )
        return saver


def _call(graph: Any, method: str, *arguments: Any) -> Any:
    """Call the graph, by its async methods if it has a part that only runs so."""
    if _needs_async(graph):
        return run_async(getattr(graph, f"a{method}")(*arguments))
    return getattr(graph, method)(*arguments)


def _needs_async(graph: Any) -> bool:
    parts = [node.bound for node in getattr(graph, "nodes", {}).values()]
    for branches in getattr(getattr(graph, "builder", None), "branches", {}).values():
        parts.extend(branch.path for branch in branches.values())
    return any(map(_only_async, parts))


def _only_async(part: Any) -> bool:
    if hasattr(part, "get_state"):
        return _needs_async(part)
    if steps := getattr(part, "steps", None):
        return any(map(_only_async, steps))
    tools: Iterable[Any] = getattr(part, "tools_by_name", {}).values()
    if any(_lacks_sync(tool, "coroutine") for tool in tools):
        return True
    return _lacks_sync(part, "afunc")


def _lacks_sync(part: Any, async_name: str) -> bool:
    return getattr(part, "func", None) is None and getattr(part, async_name, None) is not None


def _state_keys(graph: Any) -> set[str]:
    return {key for key in getattr(graph, "channels", {}) if not key.startswith(("__", "branch:"))}
