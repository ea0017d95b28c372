"""Whose threads are: of who began them, of whom a server acts for, of whom they were given to."""

from __future__ import annotations

import base64
import gc
import json
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from charm_checkpoint.backend import Scan, ThreadQuery
from charm_checkpoint.errors import BackendError, BackendReadOnly
from charm_checkpoint.replica.store import default_path
from charm_checkpoint.testing.rows import chain, head, pending, put
from charm_memory_postgres import wire
from charm_memory_supabase import SupabaseBackend
from tests.supabase.conftest import Project
from tests.supabase.gateway import ANON_KEY
from tests.supabase.requests import ask
from tests.supabase.support import ALICE, BOB, open_as, open_service, user


@pytest.fixture
def alice(project: Project) -> Iterator[SupabaseBackend]:
    with_token = open_as(project, user(ALICE))
    yield with_token
    with_token.close()


@pytest.fixture
def service(project: Project) -> Iterator[SupabaseBackend]:
    with_key = open_service(project)
    yield with_key
    with_key.close()


def threads(backend: SupabaseBackend, **query: object) -> list[str]:
    return [row.thread_id for row in backend.threads(ThreadQuery(**query))]  # type: ignore[arg-type]


def scanned(backend: SupabaseBackend) -> set[str]:
    return {entry.thread_id for entry in backend.scan(Scan()).entries}


def test_a_server_that_acts_for_a_user(project: Project, alice: SupabaseBackend) -> None:
    for_alice, for_bob = open_service(project, owner=ALICE), open_service(project, owner=BOB)
    chain(for_alice, "1")
    chain(alice, "1", "2")
    assert threads(for_alice) == threads(alice) == ["thread"]
    assert threads(for_bob) == []
    with pytest.raises(BackendReadOnly, match="somebody else"):
        chain(for_bob, "9")
    assert not for_bob.delete("thread", at=1.0)
    for each in (for_alice, for_bob):
        each.close()


def test_an_id_that_was_taken_beforehand(alice: SupabaseBackend, service: SupabaseBackend) -> None:
    """What a server begins is not whoever's that took its id before, without a checkpoint."""
    alice.write([put("2", "missing", thread="taken"), pending("1", thread="written")])
    for thread in ("taken", "written"):
        chain(service, "1", "2", thread=thread)
        assert alice.read(thread, "", None).checkpoint is None
        assert not alice.delete(thread, at=1.0)
    assert threads(alice) == []
    chain(alice, "1", thread="own")
    chain(service, "1", "2", thread="own")
    assert head(alice, thread="own") == "2", "a server goes on with whose thread it is"


@pytest.mark.parametrize(
    "odd",
    [
        {"checkpoint": {"v": "x", "channel_versions": {}}},
        {"checkpoint": {"v": 4, "channel_versions": 5}},
        {"at": "NaN"},
        {"metadata": []},
    ],
)
def test_a_user_cannot_spoil_what_a_server_reads(
    odd: dict[str, object], project: Project, service: SupabaseBackend
) -> None:
    checkpoint = {"v": 4, "id": "1", "channel_values": {}, "channel_versions": {}}
    unit = {
        "thread": "odd",
        "id": "1",
        "device": "d",
        "at": 1.0,
        "metadata": {},
        "checkpoint": checkpoint,
    }
    for sent, status in (({**unit, **odd}, 400), (unit, 200)):
        data = json.dumps([sent]).encode()
        body = {"units": len(data), "moves": [], "data": base64.b64encode(data).decode()}
        told = ask(
            project,
            "rpc/charm_rest_write_v1",
            {"request": body},
            key=ANON_KEY,
            bearer=user(ALICE),
        )
        assert told.status == status, told
        assert status == 200 or told.body["code"] == "22000"
        assert len(service.scan(Scan()).entries) == (status == 200)


def test_what_a_server_left_is_not_to_be_claimed(
    alice: SupabaseBackend, service: SupabaseBackend
) -> None:
    """Also where it is no thread yet."""
    service.write([pending("1", thread="written"), put("1", thread="aside", on_conflict="beside")])
    for thread in ("written", "aside"):
        with pytest.raises(BackendReadOnly, match="somebody else"):
            chain(alice, "5", thread=thread)
        assert not alice.delete(thread, at=1.0)
    assert len(service.read("written", "", "1").writes) == 0
    chain(service, "1", thread="written")
    assert len(service.read("written", "", "1").writes) == 1


def test_a_user_cannot_act_for_another(project: Project, alice: SupabaseBackend) -> None:
    """Whatever a request says: only a service key's `owner` counts."""
    chain(alice, "1")
    bob = open_as(project, user(BOB))
    for function in ("read", "threads", "scan"):
        asked = {"thread": "thread", "ns": "", "limit": 10, "values": True, "owner": ALICE}
        with pytest.raises(BackendReadOnly, match="only a service key"):
            bob._project.call(f"charm_rest_{function}_v1", asked)
    bob.close()


def test_what_a_server_begins_can_be_given(
    project: Project, service: SupabaseBackend, alice: SupabaseBackend
) -> None:
    service.write([put("1", thread="thread", metadata=b'{"topic":"trip"}')])
    assert (threads(alice), scanned(alice)) == ([], set())
    with project.connect("postgres") as owner:
        owner.execute("UPDATE charm.charm_threads SET owner = %s", (ALICE,))
    assert threads(alice, labels={"topic": "trip"}) == ["thread"]
    assert scanned(alice) == {"thread"}
    chain(alice, "1", "2")
    chain(service, "1", "2", "3")
    assert head(alice) == "3"
    assert len(alice.scan(Scan()).entries) == 3


@pytest.fixture
def writing(project: Project, service: SupabaseBackend) -> Iterator[psycopg.Connection]:
    """A server in the middle of a write, to a thread that has a step."""
    service.write([put("1", metadata=b'{"topic":"trip"}')])
    with project.connect() as writer:
        writer.execute("BEGIN")
        # Beside: it does not meet whoever gives the thread away at the thread's row, too.
        message = wire.encode([put("2", "1", on_conflict="beside")], None)
        writer.execute("SELECT charm.charm_write_v1(%s::jsonb, %b)", message)
        yield writer


def test_a_thread_that_is_written_is_given_after_that(
    project: Project, alice: SupabaseBackend, writing: psycopg.Connection
) -> None:
    give = "SELECT charm.charm_give_v1(%s, %s)"
    with project.connect("postgres") as owner, ThreadPoolExecutor(1) as pool:
        giving = pool.submit(owner.execute, give, ("thread", ALICE))
        waiting = "SELECT FROM pg_locks WHERE NOT granted"
        while not writing.execute(waiting).rowcount:
            assert not giving.done(), giving.result()
        writing.execute("COMMIT")
        assert giving.result().fetchone() == (True,)
        assert owner.execute(give, ("nowhere", ALICE)).fetchone() == (False,)
        assert len(alice.scan(Scan()).entries) == 2
        assert threads(alice, labels={"topic": "trip"}) == ["thread"]
        owner.execute(give, ("thread", None))
        assert (threads(alice), scanned(alice)) == ([], set())


def test_a_thread_that_is_written_is_not_given_by_hand(
    project: Project, alice: SupabaseBackend, writing: psycopg.Connection
) -> None:
    """What is added meanwhile would not go along. A moment later it would."""
    give = "UPDATE charm.charm_threads SET owner = %s"
    with project.connect("postgres") as owner:
        with pytest.raises(psycopg.errors.LockNotAvailable, match="charm_give_v1"):
            owner.execute(give, (ALICE,))
        writing.execute("COMMIT")
        owner.execute(give, (ALICE,))
    assert len(alice.scan(Scan()).entries) == 2


def test_a_copy_is_its_owner_s(service: SupabaseBackend, alice: SupabaseBackend) -> None:
    chain(alice, "1")
    service.copy("thread", "copy", at=2.0)
    alice.copy("copy", "again", at=3.0)
    assert set(threads(alice)) == scanned(alice) == {"thread", "copy", "again"}


def test_replicas_of_two_users_of_a_device_are_apart(project: Project) -> None:
    names = set()
    for made in (
        open_service(project),
        open_service(project, owner=ALICE),
        open_as(project, user(BOB)),
        open_as(project, lambda: user("carol")),
    ):
        made.settle_name(list)
        names.add(default_path(made.name))
        made.close()
    assert len(names) == 4


def test_a_store_stays_one_user_s(project: Project) -> None:
    """Who signs out, and another in, does not get the threads or send them as somebody else."""
    signed_in = [user(ALICE, exp=1), user(BOB)]
    backend = open_as(project, lambda: signed_in.pop(0))
    with pytest.raises(BackendError, match="another user"):
        head(backend)
    backend.close()
    named = open_as(project, user(BOB), owner=ALICE)
    with pytest.raises(BackendError, match="another user"):
        head(named)
    named.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_has_connections_of_its_own(service: SupabaseBackend) -> None:
    chain(service, "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the gateway's threads
        child = os.fork()
    if not child:
        os._exit(0 if head(service) == "1" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert head(service) == "1"


def test_whoever_forgets_to_close_leaves_nothing_open(project: Project) -> None:
    """Else each would be a warning, which these tests take for an error."""
    chain(open_service(project), "1")
    gc.collect()
