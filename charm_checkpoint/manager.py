"""Opens stores and keeps them: one per provider and config in a process.

Two ways to ask. `open_store` means what it says: this URL or provider, this config. `StorageManager.get_provider` is
how the Charm docs ask: `get_provider(os.getenv("CHARM_MEMORY_PROVIDER", "local"), {})`, where an empty config means the
store that the program already uses.

The **active store** is the one asked for last, unless it was closed since.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack
from typing import Any, ClassVar, NamedTuple

from charm_checkpoint import plugins
from charm_checkpoint.config import Target, configured, expand, resolve
from charm_checkpoint.errors import ConfigError, ProviderNotFoundError
from charm_checkpoint.store import BaseMemoryStore

__all__ = ["StorageManager", "open_store"]

# The part of a config that local files, standing in for a provider that is not installed, can follow too.
_PORTABLE = ("on_conflict", "allow", "device", "encryption", "retention", "retry_timeout")


def open_store(url_or_provider: str | None = None, /, **config: Any) -> BaseMemoryStore:
    """Open a store, or return the one already open for the same provider and config.

    ```python
    open_store()                                    # the active store, else what is configured, else local
    open_store("local")                             # a file in the workspace
    open_store("sqlite:///threads.db")              # four slashes before an absolute path
    open_store("postgresql://…", on_conflict="branch")
    open_store("redis", url="${REDIS_URL}")
    open_store("postgresql://…", replica=True)      # commits on this device, sends in the background
    ```

    Args:
        url_or_provider: A URL, whose scheme is the provider, or a provider's name. `${VAR}` and `${VAR:-default}` are
            expanded here and in the config; write `$${` for a plain `${`.
        config: What the provider takes, and `strict`: with True a provider that is not installed is an error, else
            local files take its place with a `RuntimeWarning`. `replica`: with True, or a path, a file on this device
            goes in front (`ReplicaStore`, which takes more options).

    Raises:
        ConfigError: Something is wrong with the configuration or the plugin; `MissingVariableError` and
            `ProviderNotFoundError` are kinds of it.
        BackendError: The provider is installed and failed.
    """
    if url_or_provider:
        return _open(_target(url_or_provider, config))
    if config:
        raise ConfigError(
            f"{', '.join(config)}: name the provider that this is for, as in open_store('local', …)"
        )
    active = StorageManager._active
    return active.store if active else _open(configured())


class StorageManager:
    """The stores of this process."""

    _lock: ClassVar = threading.RLock()
    _stores: ClassVar[dict[Hashable, BaseMemoryStore]] = {}
    _active: ClassVar[_Active | None] = None

    @classmethod
    def get_provider(
        cls, provider_name: str | None = None, config: Mapping[str, Any] | None = None
    ) -> BaseMemoryStore:
        """Return the store of a provider, opened on first use.

        With a config, or a URL for a name, this is `open_store` (no name: `local`). Without a config, no name and
        `"local"`, which the Charm docs fall back to, mean the active store, else what the environment or charm.yaml
        says, else local files; any other name means the active store if it is of that provider, else that provider
        with the config that charm.yaml has for it.

        Raises:
            ConfigError: As `open_store`.
            BackendError: As `open_store`.
        """
        target = _target(provider_name or "local", {} if config is None else config)
        if target.config or "://" in target.provider:
            return _open(target)
        family, anything = plugins.family(target.provider), target.provider == "local"
        active = cls._active
        if active and (anything or active.family == family):
            return active.store
        declared = configured()
        if anything or plugins.family(declared.provider) == family:
            return _open(declared)
        return _open(target)

    @classmethod
    def close_all(cls) -> None:
        """Close and forget every store, and look at what is installed anew."""
        plugins.find.cache_clear()
        with cls._lock:
            stores = list(cls._stores.values())
        with ExitStack() as each:  # the others are closed, too, when one fails
            for store in stores:
                each.callback(store.close)


class _Active(NamedTuple):
    family: str
    store: BaseMemoryStore


def _target(provider: str, config: Mapping[str, Any]) -> Target:
    if not isinstance(provider, str):
        raise ConfigError(f"a store is asked for by name or URL, not by {type(provider).__name__}")
    return Target(expand(provider, "the provider"), config, "config")


# Called by the public functions themselves, so that warnings point to who called those.
def _open(target: Target) -> BaseMemoryStore:
    name, config, strict, replica = resolve(target)
    try:
        plugin = plugins.find(name)
    except ProviderNotFoundError as missing:
        if strict:
            raise
        warnings.warn(
            f"{missing}. Threads are kept in local files instead; strict: true in the config makes this an error.",
            RuntimeWarning,
            stacklevel=3,
        )
        plugin = plugins.find("local")
        config = {key: config[key] for key in _PORTABLE if key in config}
        replica = False
    factory = plugins.load(plugin)
    key = (plugin.value, _freeze(config), replica)
    with StorageManager._lock:
        store = StorageManager._stores.get(key)
        if store is None:
            store = _make(plugin, factory, config, replica)
            _forget_on_close(store, key)
            StorageManager._stores[key] = store
        StorageManager._active = _Active(plugins.family(name), store)
    return store


def _make(
    plugin: plugins.Plugin,
    factory: Callable[[dict[str, Any]], Any],
    config: dict[str, Any],
    replica: bool | str,
) -> BaseMemoryStore:
    if not replica:
        return plugins.open_plugin(plugin, factory, config)
    from charm_checkpoint.replica import ReplicaStore

    known = ReplicaStore.options | ReplicaStore.common_options
    own = {key: value for key, value in config.items() if key in known}
    rest = {key: value for key, value in config.items() if key not in ReplicaStore.options}
    return ReplicaStore(plugins.open_plugin(plugin, factory, rest), {**own, "replica": replica})


def _forget_on_close(store: BaseMemoryStore, key: Hashable) -> None:
    close = store.close

    def forget_and_close() -> None:
        with StorageManager._lock:
            if StorageManager._stores.get(key) is store:
                del StorageManager._stores[key]
            if StorageManager._active and StorageManager._active.store is store:
                StorageManager._active = None
        close()

    # On the object, since plugins override the method without a call to the base class.
    vars(store)["close"] = forget_and_close


class _Same:
    """Stands for a value that has no hash: equal to itself only."""

    def __init__(self, value: object) -> None:
        self._value = value  # kept, so that its id stays its own

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)


def _freeze(value: object) -> Hashable:
    """Make a key of a config: equal for equal configs, whatever the order of their keys."""
    if isinstance(value, Mapping):
        return ("mapping", frozenset((key, _freeze(item)) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return ("sequence", tuple(_freeze(item) for item in value))
    if isinstance(value, (set, frozenset)):
        return ("set", frozenset(_freeze(item) for item in value))
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return (type(value), value)  # True is not 1


def _renew_lock() -> None:
    # Another thread may have held it when this child was forked.
    StorageManager._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
