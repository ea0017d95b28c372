"""Finds the plugins of the entry-point group `charm.memory`, and makes stores of them.

A plugin is looked up by its name, and only the one that is asked for is imported. Its class takes the config and has
`load_messages` and `save_messages`: it may inherit from this project's `BaseMemoryStore`, from charmos's, or from
neither.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, NamedTuple

from charm_checkpoint.config import mask
from charm_checkpoint.errors import (
    BackendError,
    CheckpointStoreError,
    ConfigError,
    ProviderNotFoundError,
)
from charm_checkpoint.store import BaseMemoryStore, Message

__all__ = ["AdaptedStore", "Plugin", "family", "find", "installed", "load", "open_plugin"]

GROUP = "charm.memory"

_OURS = "charm-checkpoint"
_LOCAL = "charm_checkpoint.sqlite:LocalMemory"
# Names that no other distribution can take over.
_BUILT_IN = {"local": _LOCAL, "sqlite": _LOCAL}

# Schemes that are another provider's name for itself.
_FAMILIES = {
    "postgresql": "postgres",
    "rediss": "redis",
    "sqlite": "local",
    "valkey": "redis",
    "valkeys": "redis",
}


class Plugin(NamedTuple):
    """One offer of a provider, known without importing it."""

    name: str
    distribution: str
    version: str
    module: str
    value: str
    """`module:Class`."""
    used: bool
    """False if the name resolves to another distribution's class."""

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".rstrip()


def installed() -> list[Plugin]:
    """List every offer by name, the one in use first. Imports none of them."""
    names = {entry.name for entry in metadata.entry_points(group=GROUP)}
    return [plugin for name in sorted(names | _BUILT_IN.keys()) for plugin in _offers(name)]


@functools.cache
def find(name: str) -> Plugin:
    """Find the plugin that a provider's name means. Imports nothing.

    Of several distributions that offer the name this project's come first (`charm-checkpoint`, then the
    `charm-memory-…` that is named after the provider, then the others of that kind), then the alphabet decides; a
    `RuntimeWarning` tells, once.

    Raises:
        ProviderNotFoundError: No installed distribution offers it.
    """
    offers = list(_offers(name))
    if not offers:
        raise ProviderNotFoundError(
            f"memory provider {name!r} is not installed; install it with: pip install {_distribution(name)}"
        )
    used = offers[0]
    if len(offers) > 1:
        warnings.warn(
            f"memory provider {name!r} is offered by {' and '.join(map(str, offers))}; {used.distribution} "
            "is used. Uninstall what is not meant.",
            RuntimeWarning,
            stacklevel=4,
        )
    return used


def family(provider: str) -> str:
    """Tell which provider a name or URL means, the same for all its schemes."""
    name = provider.partition("://")[0].lower()
    return _FAMILIES.get(name, name)


def load(plugin: Plugin) -> Callable[[dict[str, Any]], Any]:
    """Import a plugin's class.

    Raises:
        ConfigError: It cannot be imported, or is no class.
    """
    try:
        factory = metadata.EntryPoint(plugin.name, plugin.value, GROUP).load()
    except Exception as error:
        raise ConfigError(
            f"memory provider {plugin.name!r} ({plugin}) is installed, but {plugin.value} cannot be imported: "
            f"{_told(error)}"
        ) from error
    if not callable(factory):
        raise ConfigError(f"memory provider {plugin.name!r} ({plugin}): {plugin.value} is no class")
    return factory  # type: ignore[no-any-return]


def open_plugin(
    plugin: Plugin, factory: Callable[[dict[str, Any]], Any], config: dict[str, Any]
) -> BaseMemoryStore:
    """Make a store of a plugin's class.

    Raises:
        CheckpointStoreError: The plugin's own, as it is.
        BackendError: The plugin raised something else.
        ConfigError: What it made has no `load_messages` or `save_messages`.
    """
    try:
        store = factory(config)
    except CheckpointStoreError:
        raise
    except Exception as error:
        raise BackendError(
            f"memory provider {plugin.name!r} ({plugin}) could not be opened: {_told(error, config)}"
        ) from error
    if isinstance(store, BaseMemoryStore):
        return store
    for method in ("load_messages", "save_messages"):
        if not callable(getattr(store, method, None)):
            raise ConfigError(
                f"memory provider {plugin.name!r} ({plugin}): {plugin.value} has no {method}; a memory plugin needs "
                "load_messages(thread_id) and save_messages(thread_id, messages)"
            )
    return AdaptedStore(store, config)


class AdaptedStore(BaseMemoryStore):
    """A plugin that is no `BaseMemoryStore` of this project, with what it lacks added.

    Whatever the plugin has of its own is used, attributes beyond the contract included.

    Attributes:
        plugin: The plugin's object.
    """

    def __init__(self, plugin: Any, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.plugin = plugin
        for name in vars(BaseMemoryStore):
            if not name.startswith("_") and callable(own := getattr(plugin, name, None)):
                setattr(self, name, own)

    def load_messages(self, thread_id: str) -> list[Message]:
        return self.plugin.load_messages(thread_id)  # type: ignore[no-any-return]

    def save_messages(self, thread_id: str, messages: list[Message]) -> None:
        self.plugin.save_messages(thread_id, messages)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "plugin" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.plugin, name)


def _offers(name: str) -> Iterator[Plugin]:
    """Yield who offers a name, the one in use first; the same class is one offer."""
    offers = [
        (
            entry.dist.name if entry.dist else "",
            entry.dist.version if entry.dist else "",
            entry.value,
        )
        for entry in metadata.entry_points(group=GROUP, name=name)
    ]
    offers.sort(key=lambda offer: (_rank(offer[0], name), offer))
    if name in _BUILT_IN:
        offers.insert(0, (_OURS, _own_version(), _BUILT_IN[name]))
    seen: set[str] = set()
    for distribution, version, value in offers:
        if value not in seen:
            module = value.partition(":")[0].strip()
            yield Plugin(name, distribution, version, module, value, used=not seen)
            seen.add(value)


def _rank(distribution: str, name: str) -> int:
    normal = distribution.lower().replace("_", "-").replace(".", "-")
    if normal == _OURS:
        return 0
    if normal == _distribution(name):
        return 1
    return 2 if normal.startswith("charm-memory-") else 3


def _distribution(name: str) -> str:
    return f"charm-memory-{family(name)}"


def _own_version() -> str:
    try:
        return metadata.version(_OURS)
    except metadata.PackageNotFoundError:
        return ""


def _told(error: Exception, config: dict[str, Any] | None = None) -> str:
    return f"{type(error).__name__}: {mask(str(error), config)}".rstrip(": ")
