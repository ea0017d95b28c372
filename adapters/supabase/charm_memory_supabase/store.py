"""The store that the provider name `supabase` opens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from charm_checkpoint.backend import Backend
from charm_checkpoint.config import mask, number
from charm_checkpoint.errors import ConfigError
from charm_checkpoint.store import CheckpointStore
from charm_memory_supabase.schema import SCHEMA, script

if TYPE_CHECKING:
    from charm_memory_supabase.bearer import Token

__all__ = ["KEYS", "URLS", "SupabaseMemory"]

URLS = ("SUPABASE_URL", "NEXT_PUBLIC_SUPABASE_URL")
"""Environment variables that say where the project is; the first that is set counts."""

KEYS = ("SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_KEY")
"""Environment variables that hold a key of the project; the first that is set counts."""

_OVER_HTTPS = frozenset({"key", "access_token", "owner", "max_request"})
_OVER_POSTGRES = {
    "schema": "over HTTPS the migration has said it",
    "pack_after": "over HTTPS nothing is packed",
}


class SupabaseMemory(CheckpointStore):
    """Threads in a Supabase project, over HTTPS; given a URL of its Postgres, over a connection.

    Args:
        config: `url`: the project's, `https://<ref>.supabase.co` or `supabase://<ref>.supabase.co` (by default what
            `SUPABASE_URL` or `NEXT_PUBLIC_SUPABASE_URL` says), or `postgresql://…`. `key`: a key of the project (by
            default what `SUPABASE_SERVICE_ROLE_KEY` or `SUPABASE_KEY` says). `access_token`: a user's, or a function
            that returns a fresh one; then `key` is best the project's public one. `owner`: with the service key, the
            user to act as; with an access token, the user it has to be of. `timeout`: seconds to wait for an answer
            (10). `pool_size`: connections at most (10). `max_request`: bytes above which a batch is sent in parts
            (4 MiB). For `postgresql://`: `schema`, where the tables are (`charm`); `pack_after`, how many of each
            namespace's newest checkpoints `compact` leaves whole (20). And what every `CheckpointStore` takes.

    Raises:
        ConfigError: The configuration is not valid. Nothing is connected to yet.
    """

    options = frozenset({"url", "timeout", "pool_size", *_OVER_HTTPS, *_OVER_POSTGRES})

    def open_backend(self) -> Backend:
        config = self.config
        url = _text(config, "url", URLS)
        timeout = number(config, "timeout", 10.0, least=0.1)
        pool_size = int(number(config, "pool_size", 10, least=1))
        if url.startswith(("postgresql://", "postgres://")):
            if extra := sorted(_OVER_HTTPS & config.keys()):
                raise ConfigError(f"a postgresql:// url takes no {', '.join(extra)}")
            try:
                from charm_memory_postgres.packing import PACK_AFTER
                from charm_memory_supabase.direct import DirectBackend
            except ImportError as error:
                raise ConfigError(
                    f'a postgresql:// url needs psycopg ({error}): pip install "charm-memory-supabase[binary]"'
                ) from error
            schema = str(config.get("schema") or SCHEMA)
            return DirectBackend(
                url,
                schema=schema,
                timeout=timeout,
                pool_size=pool_size,
                pack_after=int(number(config, "pack_after", PACK_AFTER, least=1)),
            )
        from charm_memory_supabase.backend import MAX_REQUEST, SupabaseBackend

        for name, why in _OVER_POSTGRES.items():
            if name in config:
                raise ConfigError(f"{name} is for postgresql:// URLs; {why}")
        return SupabaseBackend(
            _https(url),
            key=_text(config, "key", KEYS),
            access_token=_token(config),
            owner=_owner(config),
            timeout=timeout,
            max_request=int(number(config, "max_request", MAX_REQUEST, least=1)),
            pool_size=pool_size,
        )

    @staticmethod
    def script(*, schema: str = SCHEMA) -> str:
        """Return the migration: what `charm-checkpoint sql supabase` prints, for a file in `supabase/migrations`.

        Args:
            schema: Where the tables go; made if missing.

        Raises:
            ConfigError: The REST interface reaches the schema, or psycopg is missing.
        """
        return script(schema)


def _text(config: dict[str, Any], key: str, variables: Sequence[str]) -> str:
    value = config.get(key)
    if value is None:
        value = next((os.environ[name] for name in variables if os.environ.get(name)), None)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"the supabase provider needs a {key}, or {' or '.join(variables)} set")
    return value.strip()


def _token(config: dict[str, Any]) -> Token | None:
    token = config.get("access_token")
    if token is None or callable(token) or (isinstance(token, str) and token.strip()):
        return token
    raise ConfigError("access_token is to be a text, or a function that returns one")


def _owner(config: dict[str, Any]) -> str | None:
    owner = config.get("owner")
    if owner is None or (isinstance(owner, str) and owner and "\x00" not in owner):
        return owner
    raise ConfigError("owner is to be the id of a user, a text")


def _https(url: str) -> str:
    """The project's URL. Plain HTTP goes to this machine or its neighbours only, where `supabase start` is."""
    scheme, is_url, rest = url.partition("://")
    if not is_url:
        scheme, rest = "https", url
    try:
        told = urlsplit(f"https://{rest}")
        host, _ = told.hostname or "", told.port
    except ValueError as error:
        raise ConfigError(f"url {mask(url)!r} is not valid: {error}") from None
    scheme = scheme.lower()
    if scheme == "supabase":
        scheme = "http" if host == "localhost" or _is_loopback(host) else "https"
    if scheme not in ("http", "https") or not host or "@" in told.netloc or told.query:
        raise ConfigError(
            f"url {mask(url)!r} is no project's: it looks like https://<ref>.supabase.co, the key apart from it"
        )
    if scheme == "http" and not _is_near(host):
        raise ConfigError(f"url {mask(url)!r} would send the key unencrypted; use https://")
    return f"{scheme}://{rest.rstrip('/')}"


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return False


def _is_near(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_private
    return "." not in host or host.endswith((".localhost", ".local", ".internal"))
