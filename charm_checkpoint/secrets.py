"""Tells a credential by its name.

One rule serves messages (`config.mask`) and metadata (`configurable` entries that look like credentials are not copied
into it). In doubt a name counts as a credential: hiding a harmless value costs little.
"""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["is_secret_name"]

# "OPENAI_API_KEY", "x-api-key" and "accessToken" are the words they are made of; digits part words, too.
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

# Looked for in the words run together, so that "PGPASSWORD" and "clientsecret" are seen.
_ANYWHERE = re.compile(
    r"password|passwd|passphrase|secret(?!ar)|credential|authorization|bearer|servicerole"
    r"|(api|access|auth|private|master)(key|token)|refreshtoken"
)
_LAST = frozenset(
    {"auth", "cookie", "cookies", "cred", "creds", "jwt", "pass", "pat", "pwd", "sig"}
)

# What makes a "… key" a place in some data, and a "… token" a piece of text.
_DATA = re.compile(
    "cache|channel|chat|checkpoint|composite|conversation|dedup|dict|document|foreign|group|hash|history|hot|idempotency"
    "|index|input|item|join|lookup|map|memory|messages?|namespace|node|object|order|output|partition|primary|public"
    "|record|routing|row|run|search|shard|sort|state|store|task|thread|unique"
)
_TEXT = re.compile("bos|cls|continuation|eos|mask|max|min|next|pad|page|per|sep|special|stop|unk")


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether a setting, header or parameter of this name holds a credential.

    True for `OPENAI_API_KEY`, `x-api-key`, `accessToken`, `db_password`, `bearer`, `service_role` and a bare `key`;
    false for `thread_key`, `max_tokens`, `tokens_used`, `keyboard`, `monkey`.
    """
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words:
        return False
    if _ANYWHERE.search("".join(words)):
        return True
    *before, last = words
    if last == "key":
        return not any(map(_DATA.fullmatch, before))
    if last.endswith("token"):
        return not any(map(_TEXT.fullmatch, before))
    return last in _LAST
