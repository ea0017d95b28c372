"""The store that the provider names `redis`, `rediss`, `valkey` and `valkeys` open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from charm_checkpoint.config import number
from charm_checkpoint.errors import ConfigError
from charm_checkpoint.store import CheckpointStore
from charm_memory_redis.backend import TOMBSTONE_TTL, RedisBackend

if TYPE_CHECKING:
    from charm_checkpoint.moving import Source

__all__ = ["RedisMemory"]


class RedisMemory(CheckpointStore):
    """Threads in Redis or Valkey, a single server or a cluster; no modules needed.

    Args:
        config: `url`: where the server is (`redis://`, `rediss://` for TLS, `valkey://`, `valkeys://`, `unix://`).
            `prefix`: what every key begins with (`charm`). `ttl`: seconds after which a thread that nobody writes is
            gone whole (never). `refresh_on_read`: whether reading counts, too (false). `tombstone_ttl`: seconds for
            which a deletion is remembered (90 days; 0: for ever). `pool_size`: connections at most, per server (10).
            `timeout`: seconds to wait for the server, or for one of the connections (10). `cluster`: `true`, `false`
            or `"auto"`, which asks the server. `wait_replicas`: how many replicas have to acknowledge a write before
            it is answered (0). And what every `CheckpointStore` takes.

    Raises:
        ConfigError: The configuration is not valid. Nothing is connected to yet.
    """

    options = frozenset(
        {
            *("url", "prefix", "ttl", "refresh_on_read", "tombstone_ttl", "pool_size", "timeout"),
            *("cluster", "wait_replicas"),
        }
    )

    def open_backend(self) -> RedisBackend:
        config = self.config
        url = config.get("url")
        if not isinstance(url, str) or not url.strip():
            raise ConfigError(
                "the redis provider needs a url, such as redis://:password@host:6379/0; in charm.yaml write "
                'config: {url: "${REDIS_URL}"}'
            )
        ttl = number(config, "ttl", 0.0, least=0)
        return RedisBackend(
            url.strip(),
            prefix=_text(config, "prefix", "charm"),
            ttl=ttl or None,
            refresh_on_read=bool(_flag(config, "refresh_on_read", False)),
            tombstone_ttl=number(config, "tombstone_ttl", TOMBSTONE_TTL, least=0) or None,
            pool_size=int(number(config, "pool_size", 10, least=1)),
            timeout=number(config, "timeout", 10.0, least=0.05),
            cluster=_flag(config, "cluster", None, other="auto"),
            wait_replicas=int(number(config, "wait_replicas", 0, least=0)),
        )

    def source(self) -> Source:
        """What copies read threads from: where there are none but those of LangGraph's RedisSaver, these."""
        from charm_memory_redis.official import official

        own = super().source()
        if next(own.threads(), None) is not None:
            return own
        return official(self.config["url"].strip()) or own


def _text(config: dict[str, Any], key: str, default: str) -> str:
    value = config.get(key, default)
    if not isinstance(value, str):
        raise ConfigError(f"{key}={value!r} is not a text")
    return value


def _flag(
    config: dict[str, Any], key: str, default: bool | None, *, other: str = ""
) -> bool | None:
    """A boolean, where `${VAR}` makes texts of them; `default` if it is not given or `other`."""
    value = config.get(key)
    if value is None or (other and value == other):
        return default
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise ConfigError(
            f"{key}={value!r} is neither true nor false{f' nor {other}' * bool(other)}"
        )
    return value
