"""What an operator packed: its owner reads it and goes on from it over HTTPS, and nobody else meets it."""

from __future__ import annotations

import json
import time

from charm_checkpoint.testing.rows import THREAD, contents, read, store
from charm_memory_postgres import PostgresBackend
from tests.postgres.packed import Talk
from tests.supabase.conftest import Project
from tests.supabase.support import ALICE, BOB, open_as, user
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
