"""The contract kit over the real client, and over replicas with a project behind them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from charm_checkpoint.backend import Backend
from charm_checkpoint.testing import (
    BackendContract,
    FencingContract,
    PullContract,
    ReadContract,
    SyncContract,
    ThreadContract,
    WriteContract,
)
from charm_checkpoint.testing.rows import put, store
from charm_memory_supabase import SupabaseBackend
from tests.replica.test_contract import _OneDevice, _SeveralDevices
from tests.supabase.apart import Apart, real_project
from tests.supabase.conftest import Project
from tests.supabase.support import ALICE, BOB, open_as, open_service, user


class _AsServer:
    """At a real project, if the tests are given one."""

    @pytest.fixture
    def backend(self, request: pytest.FixtureRequest) -> Iterator[Backend]:
        self.real = real_project()
        if self.real is None:
            self.project: Project = request.getfixturevalue("project")
        backend = self.reopen(None)
        yield backend
        if isinstance(backend, Apart):
            backend.clear()
        backend.close()

    def reopen(self, backend: Backend | None) -> Backend:
        if self.real is None:
            return open_service(self.project)
        url, key = self.real
        again = SupabaseBackend(url, key=key)
        return Apart(again, backend.prefix if isinstance(backend, Apart) else None)


class _AsUser:
    """Beside another user's threads, which stay as they are."""

    @pytest.fixture
    def backend(self, project: Project) -> Iterator[Backend]:
        self.project = project
        bob = open_as(project, user(BOB))
        store(bob, *(put("5", thread=thread) for thread in ("!", "~")))
        before = [bob.pull(thread, ()) for thread in ("!", "~")]
        backend = self.reopen(None)
        yield backend
        backend.close()
        assert [bob.pull(thread, ()) for thread in ("!", "~")] == before

    def reopen(self, backend: Backend | None) -> Backend:
        return open_as(self.project, user(ALICE))


class _OverSupabase(_OneDevice):
    def remote(self) -> Backend:
        return open_service(self.request.getfixturevalue("project"))


class TestAsServer(
    _AsServer,
    WriteContract,
    ReadContract,
    ThreadContract,
    PullContract,
    SyncContract,
):
    """Every verb."""


class TestAsUser(_AsUser, WriteContract, ThreadContract):
    """What row level security could get in the way of."""


@pytest.mark.slow
class TestAsServerWhole(_AsServer, BackendContract):
    """Everything."""


@pytest.mark.slow
class TestAsUserWhole(_AsUser, BackendContract):
    """Everything."""


class TestReplica(_OverSupabase, SyncContract):
    """What is done at the remote."""


class TestSeveralDevices(_OverSupabase, _SeveralDevices, FencingContract):
    """What the kit does on more than one device."""


@pytest.mark.slow
class TestReplicaWhole(_OverSupabase, BackendContract):
    """Everything."""
