"""The migration: what is said without it, and that it is what Supabase's tools take."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from typing import NamedTuple

import pytest

from charm_checkpoint.backend import ThreadQuery
from charm_checkpoint.cli import main
from charm_checkpoint.errors import BackendReadOnly, ConfigError
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.testing.colours import place
from charm_checkpoint.testing.rows import (
    chain,
    head,
    keys,
)
from charm_memory_postgres import PostgresMemory
from charm_memory_supabase import SupabaseMemory
from tests.postgres.server import Server, installations
from tests.supabase.conftest import Project, open_project
from tests.supabase.gateway import SERVICE_KEY
from tests.supabase.project import prepare
from tests.supabase.support import (
    ALICE,
    PATIENT,
    assert_no_keys,
    open_as,
    open_service,
    user,
)

pytestmark = pytest.mark.usefixtures("no_keys_in_logs")

# -- a project that is not prepared ------------------------------------------------------------------------------------


def test_without_the_migration(bare_project: Project) -> None:
    for made in (open_service(bare_project), open_as(bare_project, user(ALICE))):
        saver = CheckpointSaver(made, retry=PATIENT)
        with pytest.raises(BackendReadOnly, match="charm-checkpoint sql supabase") as missing:
            saver.get_tuple(place())
        assert "supabase/migrations" in str(missing.value)
        assert_no_keys(missing.value)
        assert len(bare_project.gateway.calls) == 1, "to ask again would be in vain"
        bare_project.gateway.calls.clear()
        saver.close()


def test_as_soon_as_the_migration_is_there(bare_project: Project, script: str) -> None:
    """The same object goes on, and PostgREST has been told."""
    backend = open_service(bare_project)
    with pytest.raises(BackendReadOnly):
        head(backend)
    bare_project.apply(script)
    chain(backend, "1")
    assert head(backend) == "1"


def test_psql_takes_it_and_takes_it_again(
    bare_project: Project, script: str, server: Server
) -> None:
    psql = next(iter(installations().values())) / "psql"
    for _ in range(2):
        done = subprocess.run(
            [psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", bare_project.postgres_url],
            input=script.encode(),
            capture_output=True,
            check=False,
            env={**os.environ, "PGCLIENTENCODING": "LATIN1"},
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    backend = open_service(bare_project)
    chain(backend, "1")


def test_run_again_it_changes_no_row(project: Project, script: str) -> None:
    device = open_as(project, user(ALICE))
    chain(device, "1", "2")
    chain(open_service(project), "1", thread="the server's")
    before = project.dump()
    project.apply(script)
    assert project.dump() == before
    assert head(device) == "2"


def test_over_threads_that_are_there(bare_project: Project, script: str) -> None:
    """Of a store over psycopg: they are nobody's, until somebody gives them to a user."""
    config = {"url": bare_project.postgres_url, "schema": "charm"}
    with PostgresMemory(config) as store:
        store.save_messages("talk", [{"role": "user", "content": "one"}])
    bare_project.apply(script)
    device = open_as(bare_project, user(ALICE))
    assert head(open_service(bare_project), "talk")
    assert head(device, "talk") is None
    with bare_project.connect("postgres") as owner:
        owner.execute("UPDATE charm.charm_threads SET owner = %s", (ALICE,))
    assert head(device, "talk")
    [row] = device.threads(ThreadQuery())
    assert row.thread_id == "talk"
    assert keys(device)


def test_an_older_postgres(script: str) -> None:
    found = list(installations().values())
    if len(found) < 2:
        pytest.skip("only one version of Postgres here: apt-get install postgresql")
    with Server(found[-1]) as older:
        prepare(older)
        with open_project(older) as old:
            old.apply(script)
            for backend in (open_service(old), open_as(old, user(ALICE))):
                chain(backend, "1", "2", thread=f"{id(backend)}")
                assert head(backend, f"{id(backend)}") == "2"


@pytest.mark.parametrize("schema", ["public", "graphql_public", "storage"])
def test_a_schema_that_the_rest_interface_reaches(schema: str) -> None:
    with pytest.raises(ConfigError, match="one of their own"):
        SupabaseMemory.script(schema=schema)


def test_another_schema(bare_project: Project) -> None:
    bare_project.apply(SupabaseMemory.script(schema="of 'its' \"own\" $$ 100% Ünï"))
    backend = open_as(bare_project, user(ALICE))
    chain(backend, "1", "2")
    assert head(backend) == "2"
    assert not any(table.startswith("charm.") for table in bare_project.dump())


def test_functions_that_forget_where() -> None:
    """Supabase loads pg_safeupdate for requests: a statement that changes all rows of a table is refused."""
    script = SupabaseMemory.script()
    reached = re.sub(
        r"CREATE OR REPLACE FUNCTION charm_checkpoints_truncated.*?\$\$;",
        "",
        script,
        flags=re.DOTALL,
    )
    bodies = re.findall(r"AS \$\$(.*?)\$\$", reached, flags=re.DOTALL)
    statements = [
        s for body in bodies for s in re.findall(r"(?:DELETE FROM|UPDATE [\w.]+)[^;]*", body)
    ]
    assert statements
    assert [s for s in statements if not re.search(r"\bWHERE\b|DO UPDATE", s)] == []


# -- `charm-checkpoint doctor` -----------------------------------------------------------------------------------------


class Diagnosed(NamedTuple):
    code: int
    checks: dict[str, tuple[str, str]]
    """Verdict and detail by name."""
    text: str


@pytest.fixture
def doctor(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Diagnosed]:
    def run(project: Project, key: str = SERVICE_KEY) -> Diagnosed:
        monkeypatch.setenv("SUPABASE_KEY", key)
        store = project.url.replace("http://", "supabase://")
        code = main(["doctor", "--store", store, "--json"])
        printed = capsys.readouterr()
        checks = json.loads(printed.out)["checks"]
        found = {check["name"]: (check["status"], check["detail"]) for check in checks}
        return Diagnosed(code, found, printed.out + printed.err)

    return run


def test_doctor_of_a_project_that_is_well(
    project: Project, doctor: Callable[..., Diagnosed]
) -> None:
    chain(open_service(project), "1")
    code, checks, text = doctor(project)
    assert code == 0, text
    assert checks["store"][0] == "ok"
    assert {verdict for verdict, _ in checks.values()} <= {"ok", "warn"}
    assert SERVICE_KEY not in text


def test_doctor_without_the_migration(
    bare_project: Project, doctor: Callable[..., Diagnosed]
) -> None:
    code, checks, text = doctor(bare_project)
    assert code == 1
    assert "charm-checkpoint sql supabase" in checks["store"][1]
    assert SERVICE_KEY not in text


@pytest.mark.parametrize(
    ("exposed", "told"),
    [
        ("GRANT EXECUTE ON FUNCTION public.charm_rest_read_v1 TO anon", "charm_rest_read_v1"),
        ("GRANT SELECT ON charm.checkpoints TO anon; GRANT USAGE ON SCHEMA charm TO anon", "anon"),
        ("ALTER TABLE charm.charm_heads DISABLE ROW LEVEL SECURITY", "charm_heads"),
    ],
)
def test_doctor_of_a_project_that_stands_open(
    exposed: str, told: str, bare_project: Project, script: str, doctor: Callable[..., Diagnosed]
) -> None:
    bare_project.apply(f"{script};{exposed};NOTIFY pgrst")
    code, checks, text = doctor(bare_project)
    assert code == 1, text
    assert any(verdict == "fail" and told in detail for verdict, detail in checks.values()), checks


def test_doctor_with_a_key_that_is_refused(
    project: Project, doctor: Callable[..., Diagnosed]
) -> None:
    code, checks, text = doctor(project, "nonsense-of-a-key")
    assert code == 1
    assert checks["store"][0] == "fail"
    assert "nonsense-of-a-key" not in text
