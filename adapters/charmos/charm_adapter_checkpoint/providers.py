"""Charm's memory providers, looked up by `charm_checkpoint`.

charmos hard-codes `local` and `supabase`, keeps the first store it made whatever is asked for next, and replaces a
provider that fails by local files. Code that asks charmos for a store gets ours instead, the same one as the adapter.
"""

from __future__ import annotations

import inspect
import logging
import os
from contextlib import suppress
from typing import Any

from charm.core.storage import BaseMemoryStore as CharmMemoryStore
from charm.core.storage import StorageManager as CharmStorageManager

from charm_checkpoint import BaseMemoryStore, StorageManager, open_store
from charm_checkpoint.config import PROVIDER_VARIABLE, expand, mask
from charm_checkpoint.errors import ConfigError

__all__ = ["install", "open_memory", "without_secrets"]

log = logging.getLogger("charm_adapter_checkpoint")

# What charmos 0.5.0 to 0.5.2 calls. With other parameters it is another function, and stays.
_KNOWN_PARAMETERS = ["provider_name", "config"]


def install() -> bool:
    """Make `charm.core.storage.StorageManager.get_provider` resolve names as `charm_checkpoint` does. Idempotent.

    Returns:
        False if the installed charmos looks names up in another way; nothing was changed.
    """
    # `charm.memory` plugins are checked with issubclass(); ours keep the same contract.
    CharmMemoryStore.register(BaseMemoryStore)  # type: ignore[type-abstract]
    if CharmStorageManager.__dict__.get("get_provider") is _resolver:
        return True
    current = getattr(CharmStorageManager, "get_provider", None)
    if current is None or list(inspect.signature(current).parameters) != _KNOWN_PARAMETERS:
        log.warning("this charmos looks memory providers up in a new way; it is left as it is")
        return False
    CharmStorageManager.get_provider = _resolver  # type: ignore[method-assign, assignment]
    return True


def _get_provider(
    cls: type[Any], provider_name: str | None = None, config: dict[str, Any] | None = None
) -> BaseMemoryStore:
    return StorageManager.get_provider(provider_name, config)


_resolver = classmethod(_get_provider)


def open_memory(config: Any) -> BaseMemoryStore:
    """Open the store of a `CharmConfig`: `runtime.memory`, unless `CHARM_MEMORY_PROVIDER` names another provider.

    Raises:
        ConfigError: The configuration is wrong, or names a variable that is not set.
        BackendError: The provider is installed but cannot be used.
    """
    memory = _declared(config)
    named = os.environ.get(PROVIDER_VARIABLE, "").strip()
    if memory and named in ("", expand(memory.provider, "runtime.memory.provider")):
        return open_store(memory.provider, **memory.config)
    return open_store(named or None)


def without_secrets(text: str, config: Any) -> str:
    """`text` with every secret of `runtime.memory` masked, and what else looks like one."""
    memory = _declared(config)
    known: dict[str, Any] = {"provider": os.environ.get(PROVIDER_VARIABLE)}
    if memory is not None:
        known |= {"declared": memory.provider, **memory.config}
    for key, value in known.items():
        with suppress(ConfigError):  # a variable that is not set holds no secret
            known[key] = expand(value, "runtime.memory")
    return str(mask(text, known))


def _declared(config: Any) -> Any:
    """`runtime.memory` if charm.yaml has it; charmos itself makes one up otherwise."""
    runtime = getattr(config, "runtime", None)
    return runtime.memory if runtime and "memory" in runtime.model_fields_set else None
