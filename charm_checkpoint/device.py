"""Which device this is: the name that conflicts and histories show."""

from __future__ import annotations

import os
import socket

from charm_checkpoint.errors import ConfigError

__all__ = ["device_name"]


def device_name(configured: str | None = None) -> str:
    """The configured name, else `$CHARM_DEVICE`, else the host's name, in letters that can be stored.

    Raises:
        ConfigError: `configured` is no text.
    """
    name = configured or os.environ.get("CHARM_DEVICE") or socket.gethostname() or "unnamed"
    if not isinstance(name, str):
        raise ConfigError(f"device={name!r} is no name")
    # Variables and host names may hold bytes that are no UTF-8.
    return name.replace("\x00", "").encode(errors="replace").decode()
