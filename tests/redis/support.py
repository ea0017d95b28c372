"""What the tests of the Redis store share: looks behind its back."""

from __future__ import annotations

from typing import Any

from tests.redis.server import Server


def is_script(command: bytes) -> bool:
    """Whether a client calls a verb by it."""
    return command.split(b"\r\n", 3)[2].upper().startswith(b"EVAL")


def keys_of(server: Server, prefix: str, thread: str) -> list[bytes]:
    """The keys of a thread whose id needs no quoting."""
    with server.client() as client:
        found: Any = client.keys(f"{prefix}:{{{thread}}}:*")
        return sorted(found)


def remaining(server: Server, prefix: str, thread: str) -> set[float]:
    """The different times that a thread's keys have left, as `EXPIRETIME` would tell them: in seconds."""
    with server.client() as client, client.pipeline() as pipeline:
        for key in keys_of(server, prefix, thread):
            pipeline.pttl(key)
        return {left if left < 0 else left / 1000 for left in pipeline.execute()}


def expire(server: Server, prefix: str, thread: str, seconds: int) -> None:
    """Have all keys of a thread end in so many seconds; at once for 0."""
    with server.client() as client, client.pipeline() as pipeline:
        for key in keys_of(server, prefix, thread):
            pipeline.pexpire(key, 1000 * seconds)
        pipeline.execute()


def allocated(server: Server, prefix: str) -> int:
    """Bytes that the keys under a prefix take."""
    with server.client() as client:
        keys: Any = client.keys(f"{prefix}:*")
        return sum(int(client.memory_usage(key, samples=0) or 0) for key in keys)  # type: ignore[arg-type]
