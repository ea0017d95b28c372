"""What goes wrong on the way: a delay at most, else an error that says what it was; never a lost or doubled row."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from charm_checkpoint.backend import Scan, ThreadQuery
from charm_checkpoint.engine import RetryPolicy
from charm_checkpoint.errors import BackendError, BackendUnavailable
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.testing.colours import place
from charm_checkpoint.testing.rows import (
    chain,
    head,
    read,
)
from charm_checkpoint.testing.scenarios import chat, turn
from charm_memory_supabase import SupabaseBackend
from tests.supabase.conftest import Project
from tests.supabase.gateway import SERVICE_KEY
from tests.supabase.support import (
    ALICE,
    PATIENT,
    assert_no_keys,
    function_of,
    open_as,
    open_service,
    user,
)

pytestmark = pytest.mark.usefixtures("no_keys_in_logs")

GONE = RetryPolicy(budget=0.0)
"""Calls are tried once."""


# -- one lost call -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["before", "after", "half", "502", "503", "429"])
@pytest.mark.parametrize("which", [1, 4])
def test_a_turn_whose_write_is_lost(
    fault: Any, which: int, backend: SupabaseBackend, project: Project
) -> None:
    """Lost on the way, or stored with the answer lost: repeated, and stored once."""
    saver = CheckpointSaver(backend, retry=PATIENT)
    chat(saver).invoke(turn("first"), place())
    writes, ordered = 0, []

    def count(units: Any) -> Any:
        nonlocal writes
        writes += 1
        if writes == which:
            ordered.append(project.faults.order(fault, function_of(project, "write")))
        return original(units)

    original = backend.write
    backend.write = count  # type: ignore[method-assign]
    assert chat(saver).invoke(turn("second"), place())["items"][-1] == "said second"
    assert [each.fired for each in ordered] == [1]
    found = list(saver.list(place()))
    assert len(found) == 8
    assert [
        t.parent_config["configurable"]["checkpoint_id"] for t in found[:-1] if t.parent_config
    ] == [t.config["configurable"]["checkpoint_id"] for t in found[1:]]
    saver.close()


VERBS = ("read", "scan", "pull", "lineage", "threads", "delete", "prune")


@pytest.mark.parametrize("fault", ["before", "after", "502", "429"])
@pytest.mark.parametrize("verb", VERBS)
def test_every_other_verb_is_repeated(
    fault: Any, verb: str, backend: SupabaseBackend, project: Project
) -> None:
    saver = CheckpointSaver(backend, retry=PATIENT)
    chain(backend, "1", "2")
    ordered = project.faults.order(fault, function_of(project, verb))
    call = {
        "read": lambda b: b.read("thread", "", None),
        "scan": lambda b: b.scan(Scan()),
        "pull": lambda b: b.pull("thread", ()),
        "lineage": lambda b: b.lineage("thread", "", None, ["a"]),
        "threads": lambda b: b.threads(ThreadQuery()),
        "delete": lambda b: b.delete("thread", at=1.0),
        "prune": lambda b: b.prune("thread", [("", "1")]),
    }[verb]
    saver.engine.call(call)
    assert ordered.fired == 1
    saver.close()


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_copy_is_not_repeated(fault: Any, backend: SupabaseBackend, project: Project) -> None:
    saver = CheckpointSaver(backend, retry=PATIENT)
    chat(saver).invoke(turn("hi"), place())
    project.faults.order(fault, function_of(project, "copy"))
    with pytest.raises(BackendUnavailable):
        saver.copy_thread("thread", "copy")
    assert len(list(saver.list(place("copy")))) == (4 if fault == "after" else 0)
    saver.close()


# -- answers that say no -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["before", "half", "502", "503", "429"])
def test_what_lasts_is_an_error_that_says_what_it_was(fault: Any, project: Project) -> None:
    project.faults.order(fault, times=1000)
    backend = open_service(project)
    saver = CheckpointSaver(backend, retry=GONE)
    with pytest.raises(BackendUnavailable) as lost:
        saver.get_tuple(place())
    told = str(lost.value)
    assert project.url.removeprefix("http://") in told
    assert {"502": "502", "503": "PGRST001", "429": "429"}.get(fault, "") in told
    assert "<html" not in told, "a page is for browsers"
    assert lost.value.__cause__ is not None
    assert_no_keys(lost.value)
    saver.close()


def test_as_long_as_the_project_says_nothing_more_is_asked(
    backend: SupabaseBackend, project: Project
) -> None:
    saver = CheckpointSaver(backend, retry=PATIENT)
    chain(backend, "1")
    project.gateway.calls.clear()
    project.faults.order("429", seconds=1)
    assert saver.get_tuple(place()) is not None
    refused, answered, *_ = project.gateway.calls
    assert (refused.status, answered.status) == (429, 200)
    assert answered.began - refused.ended >= 1
    saver.close()


def test_a_project_that_wants_more_time_than_there_is(project: Project) -> None:
    backend = open_service(project)
    chain(backend, "1")
    saver = CheckpointSaver(backend, retry=RetryPolicy(budget=5.0))
    project.faults.order("429", times=1000, seconds=3600)
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match="429"):
        saver.get_tuple(place())
    assert time.monotonic() - began < 60, "it was waited for"
    saver.close()


def test_a_statement_that_takes_too_long(project: Project) -> None:
    """Here it waits for another writer; later the same call succeeds."""
    project.postgrest.cache.role_settings["authenticated"]["statement_timeout"] = "100ms"
    backend = open_as(project, user(ALICE))
    chain(backend, "1")
    with project.connect() as other, other.transaction():
        for schema, table in other.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE tablename = 'charm_heads'"
        ).fetchall():
            other.execute(f"LOCK TABLE {schema}.{table}")
        with pytest.raises(BackendUnavailable, match="57014") as late:
            chain(backend, "1", "2")
        assert_no_keys(late.value, user(ALICE))
    chain(backend, "1", "2")
    assert head(backend) == "2"


def test_a_client_that_waits_for_fractions_of_a_second(project: Project) -> None:
    backend = open_service(project, timeout=0.3)
    chain(backend, "1")
    fault = project.faults.order("stall")
    began = time.monotonic()
    with pytest.raises(BackendUnavailable) as late:
        read(backend, None)
    assert time.monotonic() - began >= 0.3
    assert isinstance(late.value.__cause__, httpx.TimeoutException)
    fault.go.set()
    assert head(backend) == "1"


def test_a_write_that_comes_after_its_repetition(project: Project) -> None:
    """Held up on the way until the thread has gone on: it changes nothing any more."""
    backend = open_service(project, timeout=0.5)
    saver = CheckpointSaver(backend, retry=PATIENT)
    graph = chat(saver)
    graph.invoke(turn("first"), place())
    fault = project.faults.order("stall", function_of(project, "write"))
    graph.invoke(turn("second"), place())
    assert fault.fired == 1
    before = [t.config for t in saver.list(place())], graph.get_state(place())
    made = len(project.gateway.calls)
    fault.go.set()
    deadline = time.monotonic() + 60
    while len(project.gateway.calls) == made:
        assert time.monotonic() < deadline
    assert ([t.config for t in saver.list(place())], graph.get_state(place())) == before
    saver.close()


def test_the_database_is_away(project: Project) -> None:
    """PostgREST answers, and has nobody to ask."""
    backend = open_service(project)
    chain(backend, "1")
    with project.connect() as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'authenticator' "
            "AND query NOT IN ('LISTEN pgrst', '') AND datname = current_database()"
        )
    saver = CheckpointSaver(backend, retry=PATIENT)
    assert saver.engine.call(head) == "1"
    saver.close()
    project.postgrest.reconnect()


def test_another_service_there(project: Project) -> None:
    """Final: it answers, and this was not the URL."""
    project.faults.order("{}", times=1000)
    saver = CheckpointSaver(open_service(project), retry=PATIENT)
    with pytest.raises(BackendError, match="URL of a Supabase project") as told:
        saver.get_tuple(place())
    assert not isinstance(told.value, BackendUnavailable)
    saver.close()


def test_no_project_there() -> None:
    backend = SupabaseBackend("http://127.0.0.1:9", key=SERVICE_KEY, timeout=0.5)
    with pytest.raises(BackendUnavailable, match=r"127\.0\.0\.1:9") as away:
        read(backend, None)
    backend.close()
    assert isinstance(away.value.__cause__, httpx.ConnectError)
    assert_no_keys(away.value)
