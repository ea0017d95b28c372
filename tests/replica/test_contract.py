"""A replica keeps the contract, for every backend behind it: for processes of one device, and for several devices."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from charm_checkpoint.backend import Backend, Outcome, Unit
from charm_checkpoint.replica import ReplicaBackend
from charm_checkpoint.sqlite import SqliteBackend
from charm_checkpoint.testing import (
    BackendContract,
    DeltaContract,
    FencingContract,
    ListingContract,
    MessageFaceContract,
    PullContract,
    SyncContract,
    ThreadContract,
)
from charm_memory_postgres import PostgresBackend
from tests.core.support import WAIT


class _OneDevice:
    """`reopen` opens another process of the same device."""

    @pytest.fixture
    def backend(self, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ReplicaBackend]:
        self.folder = tmp_path
        self.request = request
        backend = self.reopen(None)
        yield backend
        backend.close()

    def remote(self) -> Backend:
        return SqliteBackend(self.folder / "remote.db")

    def reopen(self, backend: Backend | None) -> ReplicaBackend:
        return ReplicaBackend(self.folder / "replica.db", self.remote())


class _OverPostgres(_OneDevice):
    def remote(self) -> Backend:
        return PostgresBackend(self.request.getfixturevalue("database"))


class _Prompt(ReplicaBackend):
    """Answers when the remote has it, too: what the kit does on one device, it expects to see on another at once."""

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        outcomes = super().write(units)
        assert self.flush(WAIT)
        return outcomes

    def delete(self, thread_id: str, *, at: float) -> bool:
        existed = super().delete(thread_id, at=at)
        assert self.flush(WAIT)
        return existed


class _SeveralDevices(_OneDevice):
    """`reopen` opens another device."""

    def reopen(self, backend: Backend | None) -> ReplicaBackend:
        self.numbers = self.numbers if backend else itertools.count()
        return _Prompt(self.folder / f"{next(self.numbers)}.db", self.remote())

    # A device writes to its own file, and hears only later that another was first: see test_conflicts, test_deletion.
    test_a_fresh_run_starts_a_deleted_thread_anew = None
    test_a_late_save_does_not_overwrite = None
    test_a_run_that_is_overtaken_ends_in_a_conflict = None
    test_a_run_whose_thread_is_deleted_ends_and_the_thread_stays_deleted = None
    test_after_a_conflict_the_turn_can_be_repeated = None
    test_late_writes_to_a_deleted_thread = None
    test_namespaces_are_fenced_each_for_itself = None
    test_of_two_devices_one_wins_each_step = None
    test_of_two_devices_that_append_both_are_kept = None
    test_policies = None
    test_the_second_of_two_writers_is_told = None
    test_two_begin_one_thread = None
    test_writes_of_a_refused_checkpoint_are_refused = None


class TestOverSqlite(_OneDevice, BackendContract):
    """Everything."""


class TestOverPostgres(
    _OverPostgres, ListingContract, ThreadContract, PullContract, SyncContract, DeltaContract
):
    """What is done at the remote, or needs much of it."""


@pytest.mark.slow
class TestOverPostgresWhole(_OverPostgres, BackendContract):
    """Everything."""


class TestSeveralDevices(_SeveralDevices, FencingContract, MessageFaceContract):
    """What the kit does on more than one device."""


@pytest.mark.slow
class TestSeveralDevicesWhole(_SeveralDevices, BackendContract):
    """Everything."""
