"""Whether a server keeps what it was told: what `charm-checkpoint doctor` shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from charm_checkpoint.errors import BackendError, BackendReadOnly
from charm_memory_redis.connections import Connections

__all__ = ["Finding", "examine"]

Status = Literal["ok", "warn", "fail"]
Finding = tuple[str, Status, str]
"""What was looked at, how it is, and what to do."""

_NEARLY_FULL = 0.9


def examine(connections: Connections, *, replicas: int) -> Iterator[Finding]:
    """Look at every server that takes writes; changes nothing.

    Args:
        connections: To the server or cluster.
        replicas: How many have to acknowledge a write.
    """
    try:
        servers: list[Mapping[str, Any]] = connections.ask("INFO")
    except BackendReadOnly as error:
        yield "server", "warn", f"nobody may look at it: {error}"
        return
    except BackendError as error:
        yield "server", "fail", str(error)
        return
    kind = f"cluster of {len(servers)} primaries" if connections.is_cluster else "single server"
    yield "server", "ok", f"{_version(servers[0])}, {kind}"
    settings = [_settings(connections, name, len(servers)) for name in ("appendfsync", "save")]
    every = list(zip(servers, *settings, strict=True))
    yield "durability", *_worst(_durability(*each) for each in every)
    yield "eviction", *_worst(map(_eviction, servers))
    yield "replicas", *_worst(_replicas(server, replicas) for server in servers)


def _version(server: Mapping[str, Any]) -> str:
    if "valkey_version" in server:
        return f"Valkey {server['valkey_version']}"
    return f"Redis {server.get('redis_version', 'of an unknown version')}"


def _settings(connections: Connections, name: str, servers: int) -> list[str | None]:
    """A setting of each server, `None` where nobody may ask, as with most hosters."""
    try:
        told: list[Mapping[Any, Any]] = connections.ask("CONFIG GET", name)
    except BackendError:
        return [None] * servers
    texts = [{_text(key): _text(value) for key, value in each.items()} for each in told]
    return [each.get(name) for each in texts]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _worst(found: Iterable[tuple[Status, str]]) -> tuple[Status, str]:
    return max(found, key=lambda each: ("ok", "warn", "fail").index(each[0]))


def _durability(
    server: Mapping[str, Any], fsync: str | None, save: str | None
) -> tuple[Status, str]:
    if server.get("loading"):
        return "warn", "it is still reading its files"
    for key in ("aof_last_write_status", "rdb_last_bgsave_status"):
        if server.get(key, "ok") != "ok":
            return "fail", f"it could not write its files the last time ({key}): is its disk full?"
    if server.get("aof_enabled"):
        if fsync == "always":
            return "ok", "appendonly: what was answered is on its disk"
        if fsync == "no":
            return "warn", (
                "appendonly, but appendfsync is no: a crash of the machine loses what its system had not written, "
                "often 30 seconds; set appendfsync everysec or always"
            )
        return "ok", (
            "appendonly: a restart loses nothing, a crash of the machine at most about two seconds; with "
            "appendfsync always it loses nothing"
        )
    if save == "":
        return "warn", (
            "neither appendonly nor save is on: a restart loses every thread; set appendonly yes"
        )
    often = f" ({save})" if save else ""
    return "warn", (
        f"snapshots only{often}: a crash loses every step since the last one; set appendonly yes"
    )


def _eviction(server: Mapping[str, Any]) -> tuple[Status, str]:
    policy, most = server.get("maxmemory_policy"), int(server.get("maxmemory") or 0)
    used = int(server.get("used_memory") or 0)
    if policy is None:
        return "warn", "it does not tell its maxmemory-policy; it should be noeviction"
    if policy == "noeviction":
        if most and used > _NEARLY_FULL * most:
            return (
                "warn",
                f"noeviction, and {used / most:.0%} of maxmemory are used: soon steps are refused",
            )
        return "ok", "noeviction: a full server refuses steps and forgets none"
    if not most:
        return "ok", f"{policy}, but no maxmemory is set, so nothing is evicted"
    what = "threads" if policy.startswith("allkeys") else "threads with a ttl, and deletions"
    return (
        "warn",
        f"{policy}: when memory is full, {what} are forgotten; set maxmemory-policy noeviction",
    )


def _replicas(server: Mapping[str, Any], wanted: int) -> tuple[Status, str]:
    there = int(server.get("connected_slaves") or 0)
    if there < wanted:
        return "fail", f"{there} connected, but wait_replicas is {wanted}: every step is refused"
    if wanted:
        return "ok", f"{there} connected; {wanted} acknowledge each step (wait_replicas)"
    if there:
        return (
            "ok",
            f"{there} connected; a failover can lose the last steps unless wait_replicas is set",
        )
    return "ok", "none"
