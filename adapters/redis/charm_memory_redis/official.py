"""What LangGraph's RedisSaver keeps on a server, as a source of threads: read by RedisSaver itself."""

from __future__ import annotations

from contextlib import closing

import redis
from redis import exceptions

from charm_checkpoint.errors import ConfigError
from charm_checkpoint.moving import Source, from_saver

__all__ = ["official"]

_INDEX = b"checkpoint"


def official(url: str) -> Source | None:
    """A source, if RedisSaver was used on the server with its usual prefixes; `None` if not.

    Raises:
        ConfigError: It was, and is not installed here.
    """
    url = url.replace("valkey", "redis", 1) if url.startswith("valkey") else url
    with closing(redis.Redis.from_url(url)) as client:
        try:
            indexes = client.execute_command("FT._LIST")  # type: ignore[no-untyped-call]
        except exceptions.RedisError:
            return None  # without the modules that it needs it was not
        if _INDEX not in indexes:
            return None
    try:
        from langgraph.checkpoint.redis import RedisSaver
    except ImportError as error:
        raise ConfigError(
            "this server holds threads of LangGraph's RedisSaver; to read them: pip install langgraph-checkpoint-redis"
        ) from error
    saver = RedisSaver(url)
    saver.setup()  # the indexes are there; this finds them
    return from_saver(saver)
