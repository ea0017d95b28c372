"""The Lua scripts: one for each verb, known to the server by their SHA-1."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import NamedTuple

__all__ = ["Script", "script"]


class Script(NamedTuple):
    """What `EVALSHA` names, and what `EVAL` teaches a server that does not know it."""

    source: bytes
    sha: str


@cache
def script(name: str) -> Script:
    """The script of `lua/<name>.lua`, behind what all of them share."""
    folder = resources.files("charm_memory_redis") / "lua"
    source = b"".join((folder / f"{part}.lua").read_bytes() for part in ("common", name))
    # Not for security: it is how Redis names scripts.
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest())
