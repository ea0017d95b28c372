"""Random histories: against InMemorySaver, and taking turns with LangGraph's PostgresSaver on the same tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import initialize, run_state_machine_as_test
from langgraph.checkpoint.base import WRITES_IDX_MAP, BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.postgres import PostgresSaver
from psycopg.rows import dict_row

from charm_checkpoint import CheckpointSaver
from charm_checkpoint.backend import Backend
from charm_memory_postgres import PostgresBackend, backend, bases, steps
from tests import test_differential as in_general
from tests.postgres.conftest import empty
from tests.test_differential import SameAsMemory


class OverPostgres(SameAsMemory):
    url: str
    tables: psycopg.Connection

    def open_backend(self) -> Backend:
        empty(self.tables)
        return PostgresBackend(self.url)


class OverPostgresDeltas(OverPostgres):
    """Everything goes as a change or a quotation where it can, however small."""


def _in_order(found: CheckpointTuple | None) -> CheckpointTuple | None:
    """JSONB does not keep the order of keys."""
    if found is None:
        return None
    body = {
        key: _sorted(value) for key, value in found.checkpoint.items() if key != "channel_values"
    }
    body["channel_values"] = found.checkpoint["channel_values"]
    return found._replace(checkpoint=body)  # type: ignore[arg-type]


def _sorted(value: Any) -> Any:
    return {k: _sorted(v) for k, v in sorted(value.items())} if isinstance(value, dict) else value


class TakingTurns:
    """Hands each call to one saver or the other, and has both read."""

    def __init__(self, ours: CheckpointSaver, official: BaseCheckpointSaver[Any]) -> None:
        self.ours, self.official = ours, official
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ours, name)

    def _next(self, official_can: bool = True) -> BaseCheckpointSaver[Any]:
        self.calls += 1
        return self.official if self.calls % 2 and official_can else self.ours

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        saver = self._next(all(map(_official_keeps, checkpoint["channel_values"].values())))
        return saver.put(config, checkpoint, metadata, new_versions)

    def put_writes(self, config: Any, writes: Sequence[Any], task: str, path: str) -> None:
        # The official saver does not replace special writes that come together with plain ones.
        special = {channel in WRITES_IDX_MAP for channel, _ in writes}
        self._next(len(special) == 1).put_writes(config, writes, task, path)

    def delete_thread(self, thread_id: str) -> None:
        self._next().delete_thread(thread_id)

    def get_tuple(self, config: Any) -> CheckpointTuple | None:
        found = self.ours.get_tuple(config)
        assert in_general.shown(self.official.get_tuple(config)) == in_general.shown(found)
        return found


def _official_keeps(value: Any) -> bool:
    """Whether a plain value survives in JSONB."""
    if isinstance(value, str):
        return "\x00" not in value
    return not isinstance(value, float) or ("e" not in repr(value) and repr(value) != "-0.0")


class TurnsWithPostgresSaver(OverPostgres):
    official: PostgresSaver

    @initialize()
    def begin(self) -> None:
        super().begin()
        self.ours = TakingTurns(self.ours, self.official)  # type: ignore[assignment]


@pytest.fixture
def official(database: str) -> Iterator[PostgresSaver]:
    with psycopg.connect(
        database, autocommit=True, prepare_threshold=0, row_factory=dict_row
    ) as connection:
        yield PostgresSaver(connection)


@pytest.mark.parametrize("machine", [OverPostgres, OverPostgresDeltas, TurnsWithPostgresSaver])
def test_histories(
    machine: type[OverPostgres],
    database: str,
    shared_database: psycopg.Connection,
    official: PostgresSaver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "url", database, raising=False)
    monkeypatch.setattr(machine, "tables", shared_database, raising=False)
    monkeypatch.setattr(machine, "official", official, raising=False)
    original = in_general.shown
    monkeypatch.setattr(in_general, "shown", lambda found: original(_in_order(found)))
    if machine is not OverPostgres:
        monkeypatch.setattr(backend, "_FAR", 0.0)
        monkeypatch.setattr(steps, "_MIN_BYTES", 1)
    if machine is OverPostgresDeltas:
        monkeypatch.setattr(bases, "_MIN_BYTES", 1)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=30,
            stateful_step_count=25,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
