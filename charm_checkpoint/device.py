"""Which device this is: the name that conflicts and histories show."""

from __future__ import annotations

import os
import socket

__all__ = ["device_name"]


def device_name(configured: str | None = None) -> str:
    """The configured name, else `$CHARM_DEVICE`, else the host's name."""
    return configured or os.environ.get("CHARM_DEVICE") or socket.gethostname() or "unnamed"
