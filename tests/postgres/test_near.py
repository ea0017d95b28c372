"""What is told otherwise to a server that is far away: as little as possible, and all that it lacks."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from charm_checkpoint.backend import PutCheckpoint, ThreadQuery
from charm_checkpoint.rules import labels_of
from charm_checkpoint.testing.rows import blob, pending, put, read, statuses, store, write
from charm_memory_postgres import PostgresBackend, backend
from tests.postgres.proxy import Proxy

MESSAGE = random.Random(1).randbytes(600)
GONE = object()


@pytest.fixture
def proxy(shared_database: psycopg.Connection) -> Iterator[Proxy]:
    with Proxy(shared_database.info.port) as running:
        yield running


@pytest.fixture
def behind(database: str, proxy: Proxy) -> Iterator[PostgresBackend]:
    url = psycopg.conninfo.make_conninfo(
        database, host="127.0.0.1", port=proxy.port, sslmode="disable", gssencmode="disable"
    )
    opened = PostgresBackend(url)
    opened.setup()
    yield opened
    opened.close()


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """However soon it answers."""
    monkeypatch.setattr(backend, "_FAR", 0.0)


def _step(n: int, **changes: Any) -> PutCheckpoint:
    """A checkpoint as LangGraph makes them: the nth of a graph with many channels and nodes."""
    versions = {f"branch:to:{c}": f"{1:032}.{c}" for c in range(20)}
    seen = {f"node {c}": {f"branch:to:{c}": f"{1:032}.{c}"} for c in range(20)}
    versions["branch:to:0"] = versions["messages"] = f"{n:032}.0"
    seen["node 0"] = {"branch:to:0": f"{n - 1:032}.0"}
    seen.update(changes.pop("seen", {}))
    body = {"ts": "2026-01-01T00:00:00+00:00", "versions_seen": seen, "updated_channels": ["ß"]}
    metadata = {"source": "loop", "step": n, "parents": {}, "tags": ["a" * 300], "user": "u1"}
    for fields, name in ((body, "body"), (metadata, "metadata")):
        fields.update(changes.pop(name, {}))
        for key in [key for key, value in fields.items() if value is GONE]:
            del fields[key]
    unit = put(
        f"{n}",
        f"{n - 1}" if n > 1 else None,
        blob("messages", versions["messages"], f"{n}".encode() + MESSAGE + b"later"),
        blob("branch:to:0", versions["branch:to:0"], b""),
        metadata=json.dumps(metadata).encode(),
    )
    versions.update(changes.pop("versions", {}))
    for channel in changes.pop("without", ()):
        del versions[channel]
    return unit._replace(row=unit.row._replace(body=json.dumps(body).encode(), versions=versions))


def _as_stored(backend: PostgresBackend, step: PutCheckpoint) -> Any:
    """A checkpoint as it is read and as it was put, comparable."""
    found = read(backend, step.row.checkpoint_id)
    assert found.checkpoint is not None
    shown = []
    for row, blobs in ((found.checkpoint, found.blobs), (step.row, step.blobs)):
        new = {b.channel: b for b in blobs if b.channel in {s.channel for s in step.blobs}}
        texts = (json.dumps(json.loads(t), sort_keys=True) for t in (row.body, row.metadata))
        fields = dict(zip(("body", "metadata"), texts, strict=True))
        shown.append({**row._asdict(), **fields, "versions": dict(row.versions), "new": new})
    return shown


CHANGES: dict[str, dict[str, Any]] = {
    "nothing unusual": {},
    "a channel that is new": {"versions": {"ß": "00000000000000000000000000000002.0"}},
    "several versions": {"versions": {"branch:to:7": "5"}},
    "a channel that is gone": {"without": ["branch:to:7"]},
    "a node that is gone": {"body": {"versions_seen": {"node 1": {}}}},
    "a node that saw less": {"seen": {"node 7": {}}},
    "a node that saw what is not there": {"seen": {"node 0": {"x": "1"}}},
    "nothing was seen": {"body": {"versions_seen": GONE}},
    "a NUL": {"body": {"nul": "\\x00", "\x00": "\ud800"}},
    "fields that are null and false": {"body": {"updated_channels": None, "flag": False}},
    "metadata that is less": {"metadata": {"tags": GONE}},
    "metadata that differs in kind": {"metadata": {"step": 1.0, "user": True}},
    "a NUL in metadata": {"metadata": {"user": "\x00"}},
}


@pytest.mark.parametrize("unusual", CHANGES)
@pytest.mark.usefixtures("far")
def test_a_checkpoint_told_as_a_change(unusual: str, behind: PostgresBackend) -> None:
    """It is stored as it is, whatever the one before was."""
    steps = [_step(1), _step(2, **CHANGES[unusual]), _step(3), _step(4, **CHANGES[unusual])]
    for step in steps:
        store(behind, step, pending(step.row.checkpoint_id, write(data=b"w" + MESSAGE)))
    for step in steps:
        found, expected = _as_stored(behind, step)
        assert found == expected
    [row] = behind.threads(ThreadQuery())
    assert row.labels == labels_of(steps[-1].row.metadata)


@pytest.mark.parametrize("distance", ["near", "far"])
def test_how_much_a_step_sends(
    distance: str, behind: PostgresBackend, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a server that is near all is sent: that takes less time than to find out what could be left out."""
    monkeypatch.setattr(backend, "_FAR", 0.0 if distance == "far" else float("inf"))
    store(behind, _step(1))
    store(behind, pending("1", write(data=b"again" + MESSAGE)))
    store(behind, _step(2))
    store(behind, pending("3", write(data=b"the third" + MESSAGE)))
    proxy.reset()
    store(behind, _step(3))
    assert proxy.trips == 1
    assert proxy.sent > 3000 if distance == "near" else proxy.sent < 700


HARM = {
    "the checkpoint is gone": "DELETE FROM checkpoints WHERE checkpoint_id = '1'",
    "the checkpoint was replaced": "UPDATE checkpoints SET checkpoint = checkpoint || '{\"versions_seen\": {}}'",
    "the value is gone": "DELETE FROM checkpoint_blobs",
    "the value was replaced": "UPDATE checkpoint_blobs SET blob = set_byte(blob, 70, 1) WHERE channel = 'messages'",
    "the value is null": "UPDATE checkpoint_blobs SET blob = NULL",
    "the write is gone": "DELETE FROM checkpoint_writes",
    "the write was replaced": "UPDATE checkpoint_writes SET blob = substring(blob FROM 5)",
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.usefixtures("far")
def test_what_was_known_is_not_so_any_more(
    harm: str, behind: PostgresBackend, proxy: Proxy, shared_database: psycopg.Connection
) -> None:
    """Everything is sent whole, in one more trip."""
    first = _step(1)
    if "write" in harm:
        first = first._replace(blobs=())
        store(behind, first, pending("1", write(data=b"w" + MESSAGE)))
    store(behind, first)
    shared_database.execute(HARM[harm].encode())
    second = _step(2)
    proxy.reset()
    expected = ["deleted"] if harm == "the checkpoint is gone" else ["stored"]
    assert statuses(behind.write([second])) == expected
    if expected == ["stored"]:
        assert proxy.trips == 2
        found, put_so = _as_stored(behind, second)
        assert found == put_so


@pytest.mark.parametrize(("far", "parallel"), [(float("inf"), 1), (0.0, 8)], ids=["near", "far"])
def test_writes_side_by_side(
    far: float, parallel: int, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is known where the server is, it is taken to be far."""
    monkeypatch.setattr(backend, "_FAR", far)
    opened = PostgresBackend(database)
    assert opened.parallel_writes == 8
    read(opened, None)
    assert opened.parallel_writes == parallel
    opened.close()
