"""What an upgrade leaves as it was: who may do what, and what a newer release made."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres import PostgresSaver
from psycopg import sql

from charm_checkpoint.errors import BackendCorrupt
from charm_checkpoint.testing.colours import place
from charm_checkpoint.testing.rows import THREAD, blobs_of, contents, read, store
from charm_memory_postgres import PostgresBackend
from charm_memory_postgres.schema import VERSION, script
from tests.postgres.packed import Talk
from tests.postgres.test_script import Roles, roles

__all__ = ["roles"]

# What version 4 added.
ADDED = (
    "charm_delete_if_v1, charm_joined_v1, charm_kept_v1, charm_make_whole_v1, charm_own_v1, charm_pack_v1, "
    "charm_packable_v1, charm_packed_of_v1, charm_prune_packed_v1, charm_ranges_v1, charm_sizes_v1, charm_unpacked_v1"
)


def downgrade(owner: psycopg.Connection[Any]) -> None:
    """Make it a database of version 3."""
    owner.execute(f"DROP FUNCTION {ADDED}; DROP TABLE charm_packed".encode())
    owner.execute("UPDATE charm_migrations SET v = 3")


@pytest.mark.parametrize("how", ["setup", "script"])
def test_a_role_that_was_let_in_before(how: str, roles: Roles) -> None:
    """The owner upgrades without a word of it."""
    with psycopg.connect(roles.owner, autocommit=True) as owner:
        owner.execute(script(role=roles.app_name).encode())
        downgrade(owner)
        if how == "script":
            owner.execute(script().encode())
    with closing(PostgresBackend(roles.owner)) as backend:
        backend.setup()
    with closing(PostgresBackend(roles.app, migrate="check", pack_after=1)) as backend:
        backend.setup()
        talk = Talk()
        talk.go_on(backend, 6)
        done = backend.compact()
        assert done.after < done.before
        assert blobs_of(read(backend, "0001"))["messages"][2] == talk.values["0001"]
        store(backend, talk.step("0003"))
        assert backend.prune(THREAD, [("", "0002")]) == 1
        with PostgresSaver.from_conn_string(roles.app) as official:
            official.put(place("theirs"), empty_checkpoint(), {}, {})
        assert backend.delete(THREAD, at=1.0)


def test_rights_are_those_that_were_given(roles: Roles) -> None:
    """No more, and to nobody else; with the right to give them on where that was given."""
    app = sql.Identifier(roles.app_name)
    with psycopg.connect(roles.owner, autocommit=True) as owner:
        owner.execute(script().encode())
        owner.execute(
            sql.SQL(
                "GRANT SELECT ON charm_heads TO {}; GRANT INSERT ON charm_heads TO {} WITH GRANT OPTION"
            ).format(app, app)
        )
        owner.execute("GRANT SELECT ON charm_heads TO PUBLIC")
        downgrade(owner)
        owner.execute(script().encode())
        found = owner.execute(
            "SELECT coalesce(r.rolname, 'public'), a.privilege_type, a.is_grantable "
            "FROM pg_class c CROSS JOIN aclexplode(c.relacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee "
            "WHERE c.relname = 'charm_packed' AND a.grantee <> c.relowner ORDER BY 1, 2"
        ).fetchall()
        called = owner.execute(
            "SELECT count(*) FROM pg_proc p CROSS JOIN aclexplode(p.proacl) a "
            "WHERE p.proname LIKE 'charm%' AND a.grantee <> p.proowner"
        ).fetchone()
    assert sorted(found) == sorted(
        [
            (roles.app_name, "INSERT", True),
            (roles.app_name, "SELECT", False),
            ("public", "SELECT", False),
        ]
    )
    assert called == (0,)


def test_rights_that_were_taken_away_stay_away(roles: Roles) -> None:
    with psycopg.connect(roles.owner, autocommit=True) as owner:
        owner.execute(script(role=roles.app_name).encode())
        app = sql.Identifier(roles.app_name)
        owner.execute(sql.SQL("REVOKE DELETE ON charm_packed FROM {}").format(app))
        owner.execute(script().encode())
        found = owner.execute(
            "SELECT has_table_privilege(%s, 'charm_packed', 'DELETE')", [roles.app_name]
        ).fetchone()
    assert found == (False,)


def test_an_older_release_s_script(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would put functions back that find nothing of what is packed."""
    older = script()
    with (
        closing(PostgresBackend(empty_database, pack_after=1)) as backend,
        psycopg.connect(empty_database, autocommit=True) as owner,
    ):
        backend.setup()
        Talk().go_on(backend, 4)
        backend.compact()
        before = contents(backend, THREAD)
        owner.execute("INSERT INTO charm_migrations VALUES (%s)", (VERSION + 1,))
        owner.execute("DROP FUNCTION charm_prune_v1")  # which the script would make again
        with pytest.raises(psycopg.Error, match=f"newer release .version {VERSION + 1}") as refused:
            owner.execute(older.encode())
        assert refused.value.sqlstate == "CH003"
        owner.execute("ROLLBACK")
        owner.execute(
            "DELETE FROM checkpoint_migrations WHERE v = 9"
        )  # so that there is something to make
        with pytest.raises(BackendCorrupt, match="newer release"):
            backend.setup()
        assert owner.execute("SELECT to_regproc('charm_prune_v1')").fetchone() == (None,)
        assert contents(backend, THREAD) == before
