"""The contract kit over Redis and Valkey, single and as a cluster, and over a replica of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from charm_checkpoint.backend import Backend
from charm_checkpoint.testing import (
    BackendContract,
    DeltaContract,
    IdContract,
    ListingContract,
    PullContract,
    ReadContract,
    SyncContract,
    ThreadContract,
    WriteContract,
)
from charm_memory_redis import RedisBackend
from tests.replica import test_contract as replica


class _OnRedis:
    where = "url"
    """The fixture that has the server."""

    @pytest.fixture
    def backend(self, request: pytest.FixtureRequest, prefix: str) -> Iterator[Backend]:
        server: Any = request.getfixturevalue(self.where)
        self.url = server if isinstance(server, str) else server.url()
        self.prefix = prefix
        backend = self.reopen(None)
        yield backend
        backend.close()

    def reopen(self, backend: Backend | None) -> Backend:
        return RedisBackend(self.url, prefix=self.prefix)


class TestOne(_OnRedis, BackendContract):
    """Everything."""


class TestOlder(
    _OnRedis, WriteContract, ReadContract, ListingContract, ThreadContract, PullContract, IdContract
):
    """What the server is asked, row by row."""

    where = "older_server"


class TestCluster(_OnRedis, WriteContract, ReadContract, ListingContract, ThreadContract):
    """What is done otherwise there: batches, and everything that goes over all threads."""

    where = "cluster"


class TestReplica(replica._OneDevice, PullContract, SyncContract):
    """What is done at the remote."""

    def remote(self) -> Backend:
        url = self.request.getfixturevalue("url")
        return RedisBackend(url, prefix=self.request.getfixturevalue("prefix"))


@pytest.mark.slow
class TestOlderWhole(_OnRedis, BackendContract):
    """Everything."""

    where = "older_server"


@pytest.mark.slow
class TestClusterWhole(_OnRedis, BackendContract):
    """Everything."""

    where = "cluster"


@pytest.mark.slow
class TestReplicaDeltas(TestReplica, DeltaContract):
    """What needs much of the remote."""
