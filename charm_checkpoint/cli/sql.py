"""`sql`: what the owner of a database runs for agents whose role may not make tables."""

from __future__ import annotations

import inspect

from charm_checkpoint import plugins
from charm_checkpoint.errors import ConfigError

__all__ = ["script"]


def script(provider: str, **options: str | None) -> str:
    """Ask a provider's class for its `script`.

    Args:
        provider: A provider's name, or a URL, whose scheme is one.
        options: What the user gave; `None` stands for not given.

    Raises:
        ConfigError: The provider is not installed, has no script, or its script does not take an option.
    """
    plugin = plugins.find(provider.partition("://")[0])
    named = f"memory provider {plugin.name!r} ({plugin})"
    write = getattr(plugins.load(plugin), "script", None)
    if not callable(write):
        raise ConfigError(f"{named} has no script to print: it makes what it needs itself")
    given = {name: value for name, value in options.items() if value is not None}
    try:
        inspect.signature(write).bind(**given)
    except TypeError as error:
        raise ConfigError(f"{named}: its script does not take these options ({error})") from error
    return str(write(**given))
