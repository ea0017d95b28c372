"""How calls are told, and where to; what answers mean."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from charm_checkpoint.errors import (
    BackendCorrupt,
    BackendError,
    BackendFull,
    BackendReadOnly,
    BackendUnavailable,
    ConfigError,
)
from charm_memory_postgres.wire import VERSION
from charm_memory_supabase import SupabaseMemory
from charm_memory_supabase.errors import BaseLost, Refusal, TooSlow, is_expired, translate
from charm_memory_supabase.packing import pack
from charm_memory_supabase.schema import FUNCTIONS
from tests.supabase.conftest import Project


@pytest.fixture(scope="module")
def database(shared_project: Project) -> Iterator[psycopg.Connection]:
    with shared_project.connect() as connection:
        yield connection


def unpacked(database: psycopg.Connection, data: bytes) -> bytes:
    packed = pack(data)
    query = "SELECT charm.charm_unpack_v1(decode(%s, 'base64'), %s::jsonb)"
    told = base64.b64encode(packed.data).decode(), json.dumps(packed.moves)
    row = database.execute(query, told).fetchone()
    assert row is not None
    return bytes(row[0])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"\x00" * 100_000,
        b"abcdefghijkl" * 2,
        b"abcdefghijklm" * 6000,
        bytes(range(256)) * 3,
        b"no repetition at all" + bytes(range(256)),
        b"head" + b"0123456789abcdef" * 4096 + bytes(70_000),
    ],
)
def test_packed_bytes_are_unpacked(data: bytes, database: psycopg.Connection) -> None:
    assert unpacked(database, data) == data


def test_any_bytes_are_unpacked(database: psycopg.Connection) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    for _ in range(150):
        words = [rng.randbytes(rng.randrange(1, 60)) for _ in range(rng.randrange(1, 12))]
        data = b"".join(rng.choices(words, k=rng.randrange(1, 400)))
        assert unpacked(database, data) == data, f"seed {seed}"


def test_what_is_said_twice_is_sent_once() -> None:
    said = random.Random(1).randbytes(5000)
    packed = pack(b"<" + said + b"><" + said + b">")
    assert len(packed.data) < 5100
    assert len(packed.moves) == 3


def test_copies_of_copies_have_an_end(database: psycopg.Connection) -> None:
    """Else a few numbers would take all the server's memory."""
    moves, made = [16, 0, 16], 32
    for _ in range(25):
        moves += [0, 0, made]
        made *= 2
    with pytest.raises(psycopg.errors.DataException):
        database.execute(
            "SELECT charm.charm_unpack_v1(%s, %s::jsonb)", (b"x" * 16, json.dumps(moves))
        )


REFUSALS: list[tuple[int, str, type[BackendError], str]] = [
    (400, "CH001", BaseLost, "CH001"),
    (400, "CH002", BackendReadOnly, "another thread id"),
    (404, "PGRST202", BackendReadOnly, "charm-checkpoint sql supabase"),
    (406, "PGRST106", BackendReadOnly, "charm-checkpoint sql supabase"),
    (401, "PGRST303", BackendError, "access_token"),
    (401, "", BackendError, "key"),
    (401, "42501", BackendReadOnly, "sign"),
    (403, "42501", BackendReadOnly, "42501"),
    (405, "25006", BackendReadOnly, "25006"),
    (500, "57014", TooSlow, "57014"),
    (500, "40P01", BackendUnavailable, "40P01"),
    (503, "53100", BackendFull, "53100"),
    (503, "PGRST001", BackendUnavailable, "PGRST001"),
    (504, "PGRST003", BackendUnavailable, "PGRST003"),
    (429, "", BackendUnavailable, "429"),
    (502, "", BackendUnavailable, "502"),
    (540, "", BackendUnavailable, "540"),
    (413, "", BackendError, "max_request"),
    (404, "", BackendError, "URL"),
    (403, "", BackendError, "403"),
    (301, "", BackendUnavailable, "URL"),
    (300, "PGRST203", BackendError, "PGRST203"),
    (400, "22P05", BackendError, "22P05"),
    (500, "XX001", BackendCorrupt, "XX001"),
]


@pytest.mark.parametrize(("status", "code", "kind", "told"), REFUSALS)
def test_what_an_answer_means(status: int, code: str, kind: type[BackendError], told: str) -> None:
    error = translate(Refusal(status, code, "said so", 7.0), "https://x.supabase.co")
    assert type(error) is kind
    assert told in str(error)
    assert "https://x.supabase.co" in str(error)
    if kind is BackendUnavailable and status >= 400:
        assert error.retry_after == 7.0


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, BackendUnavailable),
        (302, BackendUnavailable),
        (401, BackendUnavailable),
        (403, BackendUnavailable),
        (404, BackendUnavailable),
        (511, BackendUnavailable),
        (413, BackendError),
    ],
)
def test_what_a_page_means(status: int, kind: type[BackendError]) -> None:
    """It is not the project's: that one is away. What stands before the project refuses large requests like this."""
    refusal = Refusal(status, "", "", is_json=False)
    assert type(translate(refusal, "https://x.supabase.co")) is kind
    assert not is_expired(refusal)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("https://x.supabase.co/", "https://x.supabase.co"),
        ("supabase://x.supabase.co", "https://x.supabase.co"),
        ("x.supabase.co", "https://x.supabase.co"),
        ("supabase://127.0.0.1:54321", "http://127.0.0.1:54321"),
        ("supabase://localhost:54321", "http://localhost:54321"),
        ("supabase://[::1]:54321", "http://[::1]:54321"),
        ("http://kong:8000", "http://kong:8000"),
        ("http://192.168.1.5:8000", "http://192.168.1.5:8000"),
        ("HTTPS://x.supabase.co", "https://x.supabase.co"),
    ],
)
def test_where_a_project_is(given: str, url: str) -> None:
    with SupabaseMemory({"url": given, "key": "a-key"}) as store:
        assert store.get_langgraph_checkpointer().engine.backend.name == url


@pytest.mark.parametrize(
    "config",
    [
        {"url": "http://x.supabase.co"},
        {"url": "https://user:secret@x.supabase.co"},
        {"url": "https://x.supabase.co?key=secret"},
        {"url": "ftp://x.supabase.co"},
        {"url": "https://"},
        {"url": "https://x:port"},
        {"key": ""},
        {"key": 7},
        {"access_token": 7},
        {"access_token": " "},
        {"owner": ""},
        {"owner": 7},
        {"schema": "charm"},
        {"timeout": 0},
        {"url": "postgresql://u:secret@h/d"},
        {"colour": "red"},
    ],
)
def test_configurations_that_cannot_be(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as told:
        SupabaseMemory({"url": "https://x.supabase.co", "key": "a-key", **config})
    assert "secret" not in str(told.value)


def test_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (
        "SUPABASE_URL",
        "NEXT_PUBLIC_SUPABASE_URL",
        "SUPABASE_SERVICE_ROLE_KEY",
        "SUPABASE_KEY",
    )
    for name in names:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="SUPABASE_URL or NEXT_PUBLIC_SUPABASE_URL"):
        SupabaseMemory()
    monkeypatch.setenv("NEXT_PUBLIC_SUPABASE_URL", "https://second.supabase.co")
    with pytest.raises(ConfigError, match="SUPABASE_SERVICE_ROLE_KEY or SUPABASE_KEY"):
        SupabaseMemory()
    monkeypatch.setenv("SUPABASE_KEY", "second")
    with SupabaseMemory() as store:
        assert store.get_langgraph_checkpointer().engine.backend.name.endswith("second.supabase.co")
    monkeypatch.setenv("SUPABASE_URL", "https://first.supabase.co")
    with SupabaseMemory({"owner": "a-user"}) as store:
        name = store.get_langgraph_checkpointer().engine.backend.name
        assert name == "https://first.supabase.co (a-user)"


@pytest.mark.parametrize("schema", ["public", "graphql_public"])
def test_no_migration_into_what_everybody_reaches(schema: str) -> None:
    with pytest.raises(ConfigError, match="REST"):
        SupabaseMemory.script(schema=schema)


def test_releases_are_told_alike_here_and_there(database: psycopg.Connection) -> None:
    row = database.execute("SELECT public.charm_rest_about_v1('{}')").fetchone()
    assert row is not None
    assert (row[0]["tables"], row[0]["functions"]) == (VERSION, FUNCTIONS)
