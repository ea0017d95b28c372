"""Names of keys, and ids as the scripts see them.

Ids are any text. In fields and members they are *parts*: UTF-8 (lone surrogates too) with NUL as `00 FF`, and a `00` at
the end. Joined parts sort as the ids do one after the other, and none runs into the next: no UTF-8 begins with `FF`.

All keys of a thread have the thread's id as their hash tag, and so one slot of a cluster: `prefix:{id}:h`, `:i`, `:t`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import quote

from charm_checkpoint.errors import ConfigError

__all__ = ["Keys", "id_of", "pair", "part", "raw", "text"]

_END = re.compile(rb"\x00(?!\xff)")
# Braces would end the hash tag; "%" is what stands for the others.
_SAFE = " !\"#$&'()*+,-./:;<=>?@[\\]^_`|~"


def raw(text: str) -> bytes:
    """Any text as bytes."""
    return text.encode("utf-8", "surrogatepass")


def text(data: bytes) -> str:
    """What `raw` made bytes of."""
    return data.decode("utf-8", "surrogatepass")


def part(id: str) -> bytes:
    """An id as the scripts see it."""
    return raw(id).replace(b"\x00", b"\x00\xff") + b"\x00"


def id_of(part: bytes) -> str:
    """The id that a part stands for."""
    return text(part[:-1].replace(b"\x00\xff", b"\x00"))


def pair(joined: bytes) -> tuple[str, str]:
    """The ids whose parts were joined."""
    end = _END.search(joined)
    assert end is not None
    return id_of(joined[: end.end()]), id_of(joined[end.end() :])


class Keys:
    """Names the keys under a prefix.

    Raises:
        ConfigError: The prefix is empty, longer than 100 characters, or holds blanks or braces.
    """

    def __init__(self, prefix: str) -> None:
        if not re.fullmatch(r"[^\s{}\x00-\x1f\x7f\ud800-\udfff]{1,100}", prefix):
            raise ConfigError(
                f"prefix={prefix!r} has to be 1 to 100 characters without blanks and braces"
            )
        self.prefix = prefix
        self.index = raw(f"{prefix}:threads")
        self.format = raw(f"{prefix}:format")
        self.thread = lru_cache(maxsize=4096)(self._thread)

    def _thread(self, thread_id: str) -> tuple[bytes, bytes, bytes]:
        """Rows, index and tombstone of a thread."""
        # An empty tag would be none.
        tag = quote(raw(thread_id), safe=_SAFE) or "%"
        place = f"{self.prefix}:{{{tag}}}:"
        return raw(f"{place}h"), raw(f"{place}i"), raw(f"{place}t")
