"""What an operator packed: its owner reads it and goes on from it over HTTPS, and nobody else meets it."""

from __future__ import annotations

import json
import time

import pytest

from charm_checkpoint.errors import BackendReadOnly, ConfigError
from charm_checkpoint.testing.rows import THREAD, contents, put, read, store
from charm_memory_postgres import PostgresBackend
from charm_memory_supabase import SupabaseMemory
from tests.postgres.packed import Talk
from tests.supabase.conftest import Project
from tests.supabase.support import ALICE, BOB, memory, open_as, user
from tests.supabase.tokens import claims_of


def _seen(project: Project, who: str) -> int:
    """How many packed values a signed-in user would find if the schema were exposed."""
    with project.connect("authenticator") as connection:
        claims = json.dumps(claims_of(user(who), now=time.time()))
        connection.execute("SELECT set_config('request.jwt.claims', %s, false)", (claims,))
        connection.execute("SET ROLE authenticated")
        found = connection.execute("SELECT count(*) FROM charm.charm_packed").fetchone()
        assert found is not None
        return int(found[0])


def test_a_user_s_packed_thread(project: Project) -> None:
    alice, talk = open_as(project, user(ALICE)), Talk()
    for _ in range(12):
        store(alice, talk.step())
    before = contents(alice, THREAD)
    operator = PostgresBackend(project.postgres_url, schema="charm", migrate="check", pack_after=1)
    operator.setup()
    done = operator.compact()
    assert done.after < done.before / 2
    assert contents(operator, THREAD) == before
    operator.close()

    assert contents(alice, THREAD) == before
    assert (_seen(project, ALICE), _seen(project, BOB)) == (11, 0)
    store(alice, talk.step("0003"))
    assert read(alice, None).blobs[0].data == talk.values["0013"]
    assert alice.prune(THREAD, [("", f"{n:04}") for n in (11, 12)]) == 2
    assert contents(alice, THREAD).keys() == {("", f"{n:04}") for n in (*range(1, 11), 13)}
    assert read(alice, "0010").blobs[0].data == talk.values["0010"]
    assert alice.delete(THREAD, at=1.0)
    assert _seen(project, ALICE) == 0


def test_packed_values_without_a_thread(project: Project) -> None:
    """What an operator left of somebody's thread is not whoever's that takes its id."""
    operator = PostgresBackend(project.postgres_url, schema="charm", migrate="check", pack_after=1)
    talk = Talk()
    talk.go_on(operator, 4)
    operator.compact()
    operator.close()
    with project.connect() as owner:
        owner.execute("SET session_replication_role = replica")  # as a restore of some tables does
        for table in (
            "checkpoints",
            "charm_checkpoints",
            "charm_heads",
            "charm_threads",
            "checkpoint_blobs",
        ):
            owner.execute(f"DELETE FROM charm.{table}".encode())
    alice = open_as(project, user(ALICE))
    with pytest.raises(BackendReadOnly, match="somebody else"):
        alice.write([put("0001", thread=THREAD)])


def test_packed_by_the_project_s_own_store(project: Project) -> None:
    """Over a connection; over HTTPS there is nothing to pack with."""
    alice, talk = open_as(project, user(ALICE)), Talk()
    for _ in range(12):
        store(alice, talk.step())
    before = contents(alice, THREAD)
    with SupabaseMemory({"url": project.postgres_url, "pack_after": 3}) as operator:
        done = operator.compact()
    assert done.after < done.before
    assert _seen(project, ALICE) == 9
    assert contents(alice, THREAD) == before
    with pytest.raises(ConfigError, match="pack_after is for postgresql"):
        memory(project, pack_after=3)
