"""JSON web tokens as Supabase's auth server makes them and PostgREST checks them: HS256 with the project's secret."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

__all__ = ["SECRET", "SKEW", "TokenError", "claims_of", "token"]

SECRET = b"the-secret-of-a-project-that-is-only-in-these-tests"
SKEW = 30
"""Seconds that PostgREST lets clocks differ."""


class TokenError(Exception):
    """A token that PostgREST refuses. Its arguments are PostgREST's code and message."""


def token(role: str | None, *, secret: bytes = SECRET, alg: str = "HS256", **claims: Any) -> str:
    """Sign a token; good for ten years unless `exp` says otherwise."""
    now = int(time.time())
    said = {"iss": "supabase", "iat": now, "exp": now + 315_360_000, **claims}
    if role is not None:
        said["role"] = role
    body = f"{_text({'alg': alg, 'typ': 'JWT'})}.{_text(said)}"
    return f"{body}.{_base64(_signature(body, secret))}"


def claims_of(said: str, *, now: float, secret: bytes = SECRET) -> dict[str, Any]:
    """What a token claims.

    Raises:
        TokenError: PostgREST would refuse it.
    """
    parts = said.split(".")
    if len(parts) != 3:
        raise TokenError("PGRST301", f"Expected 3 parts in JWT; got {len(parts)}")
    try:
        alg = json.loads(_bytes(parts[0]))["alg"]
        signature, claims = _bytes(parts[2]), json.loads(_bytes(parts[1]))
    except (ValueError, KeyError, TypeError):
        raise TokenError("PGRST301", "JWT cryptographic operation failed") from None
    if alg != "HS256":  # "none" too
        raise TokenError("PGRST301", "Wrong or unsupported encoding algorithm")
    if not hmac.compare_digest(signature, _signature(f"{parts[0]}.{parts[1]}", secret)):
        raise TokenError("PGRST301", "No suitable key or wrong key type")
    if not isinstance(claims, dict):
        raise TokenError("PGRST303", "Parsing claims failed")
    for name in ("exp", "nbf", "iat"):
        if not isinstance(claims.get(name, 0), (int, float)):
            raise TokenError("PGRST303", f"The JWT '{name}' claim must be a number")
    if "exp" in claims and now - SKEW > claims["exp"]:
        raise TokenError("PGRST303", "JWT expired")
    if "nbf" in claims and now + SKEW < claims["nbf"]:
        raise TokenError("PGRST303", "JWT not yet valid")
    if "iat" in claims and now + SKEW < claims["iat"]:
        raise TokenError("PGRST303", "JWT issued at future")
    return claims


def _signature(body: str, secret: bytes) -> bytes:
    return hmac.digest(secret, body.encode(), hashlib.sha256)


def _text(value: Any) -> str:
    return _base64(json.dumps(value).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
