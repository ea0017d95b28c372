"""What both adapter types share: a thread, a store, and one result for every ending."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
import traceback
from abc import abstractmethod
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

from charm.adapters.base import BaseAdapter
from charm.core.io import CharmEmitter
from langchain_core.callbacks import BaseCallbackHandler

from charm_adapter_checkpoint.providers import install, open_memory, without_secrets
from charm_adapter_checkpoint.results import as_json
from charm_checkpoint import BaseMemoryStore, CheckpointStore
from charm_checkpoint.errors import CheckpointStoreError, InvalidIdError
from charm_checkpoint.replica import ReplicaStore

__all__ = ["DEFAULT_THREAD", "MemoryAdapter", "run_async", "take_thread_id"]

log = logging.getLogger("charm_adapter_checkpoint")

T = TypeVar("T")

DEFAULT_THREAD = "default_thread"

# Seconds to wait for what is being sent, and how often to look whether that is of any use.
_FLUSH_TIMEOUT, _FLUSH_LOOK = 10.0, 0.25

# Agent code is imported after its adapter, so a store it opens at import time is ours already.
install()


class MemoryAdapter(BaseAdapter):
    """Runs one turn of a thread and turns every failure into charmos's error result.

    Args:
        agent_instance: What `runtime.adapter.entry_point` names.
        config: The `CharmConfig`; without one the environment chooses the provider.
    """

    def __init__(self, agent_instance: Any, config: Any = None) -> None:
        super().__init__(agent_instance, config)
        self._opened: BaseMemoryStore | None = None

    @property
    def store(self) -> BaseMemoryStore:
        """The store of `runtime.memory`, opened at its first use."""
        if self._opened is None:
            self._opened = open_memory(self.config)
        return self._opened

    def invoke(self, inputs: dict[str, Any], callbacks: list[Any] | None = None) -> dict[str, Any]:
        """Run one turn.

        Args:
            inputs: `thread_id` or `__charm_thread_id__` name the thread; the rest is the turn. Not changed.
            callbacks: LangChain callbacks that the runtime listens with.

        Returns:
            `status` (`success`, `suspended` or `error`) with `output` or `message`, JSON all through.
        """
        inputs = dict(inputs)
        try:
            thread_id = take_thread_id(inputs)
            result = self._turn(inputs, thread_id, [*(callbacks or []), _ToolUsage()])
        except Exception as error:  # noqa: BLE001 -- the runtime reads failures from the result
            result = self._failure(error)
        # The runtime may freeze or kill the process once it has the result.
        if isinstance(self._opened, CheckpointStore):
            _flush(self._opened)
        return cast("dict[str, Any]", as_json(result))

    @abstractmethod
    def _turn(
        self, inputs: dict[str, Any], thread_id: str, callbacks: list[Any]
    ) -> dict[str, Any]: ...

    def _failure(self, error: Exception) -> dict[str, Any]:
        if log.isEnabledFor(logging.DEBUG):  # by `charm --debug run`
            told = "".join(traceback.format_exception(error))
            log.debug("%s", without_secrets(told, self.config))
        text = str(error)
        if not isinstance(error, CheckpointStoreError):
            text = f"{type(error).__name__}: {text}" if text else type(error).__name__
        return {
            "status": "error",
            "error_type": type(error).__name__,
            "message": f"Agent Execution Failed: {without_secrets(text, self.config)}",
        }


def _flush(store: CheckpointStore) -> None:
    deadline = time.monotonic() + _FLUSH_TIMEOUT
    while not store.flush(_FLUSH_LOOK):
        if isinstance(store, ReplicaStore) and store.sync_status().offline_since is not None:
            return  # which the replica has told; what waits is sent by the next run that can
        if time.monotonic() > deadline:
            log.warning("not everything of this turn has reached the remote store yet")
            return


class _ToolUsage(BaseCallbackHandler):
    """Tells the runtime each tool call, which it bills, as the stock adapters do."""

    def on_tool_start(self, serialized: dict[str, Any], input_str: str, **kwargs: Any) -> None:
        if name := (serialized or {}).get("name") or kwargs.get("name"):
            CharmEmitter.emit_tool_usage(name, 1)


def take_thread_id(inputs: dict[str, Any]) -> str:
    """Remove the thread's id from `inputs` and return it: `thread_id`, else `__charm_thread_id__`, else the default.

    Raises:
        InvalidIdError: It is neither text nor a whole number.
    """
    given = [inputs.pop(key, None) for key in ("thread_id", "__charm_thread_id__")]
    thread_id = next((value for value in given if value is not None), DEFAULT_THREAD)
    if isinstance(thread_id, bool) or not isinstance(thread_id, (str, int)):
        raise InvalidIdError(f"thread_id must be text, not {type(thread_id).__name__}")
    return str(thread_id)


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run `coroutine` to its end, also where this thread already runs an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    context = contextvars.copy_context()
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(context.run, asyncio.run, coroutine).result()
