"""Make charmos's stock adapters read `runtime.memory`.

```python
import charm_adapter_checkpoint.patch  # in the agent's code, or without code:
```

```yaml
runtime:
  adapter: {type: langgraph, entry_point: "src.main:graph"}
  telemetry: [charm-checkpoint]
  memory: {provider: local}
```

charmos 0.5.2 looks for `memory` on the whole `CharmConfig`, where nothing is. This gives it one, for a charm.yaml that
has `runtime.memory`. Interrupts are stored, but the stock adapter never resumes them: for that, use the adapter type
`langgraph-checkpoint`. A charmos that reads `runtime.memory` itself is left as it is.
"""

from __future__ import annotations

import logging
from typing import Any

from charm.adapters.langgraph import CharmLangGraphAdapter
from charm.contracts.uac import CharmConfig, MemoryConfig
from charm.core.telemetry import BaseTelemetryExporter

from charm_adapter_checkpoint.providers import install

__all__ = ["PatchExporter", "apply", "needed"]

log = logging.getLogger("charm_adapter_checkpoint")


def needed() -> bool:
    """Whether the installed charmos looks for `memory` where it is not."""
    if "memory" in CharmConfig.model_fields or hasattr(CharmConfig, "memory"):
        return False
    setup = getattr(CharmLangGraphAdapter, "_ensure_instantiated", None)
    names = setup.__code__.co_names if setup else ()
    return "memory" in names and "runtime" not in names


def apply() -> bool:
    """Patch charmos, once.

    Returns:
        True if charmos now reads `runtime.memory` by this patch, False if it was left as it is.
    """
    install()
    if CharmConfig.__dict__.get("memory") is _memory:
        return True
    if not needed():
        log.info("this charmos reads runtime.memory itself; it is left as it is")
        return False
    CharmConfig.memory = _memory  # type: ignore[attr-defined]
    return True


def _runtime_memory(self: CharmConfig) -> MemoryConfig:
    # Without runtime.memory the stock adapter has its own way of choosing, by the environment.
    if "memory" not in self.runtime.model_fields_set:
        raise AttributeError("memory")
    return self.runtime.memory


_memory = property(_runtime_memory)


class PatchExporter(BaseTelemetryExporter):
    """Named in `runtime.telemetry`, it loads this module before the adapter runs. It exports nothing."""

    def _ignore(self, *args: Any, **kwargs: Any) -> None:
        pass

    on_run_start = on_run_end = on_error = _ignore
    on_tool_start = on_tool_end = on_tool_error = _ignore
    on_llm_new_token = on_agent_action = _ignore


apply()
