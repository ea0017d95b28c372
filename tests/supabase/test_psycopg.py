"""One thread, by psycopg and by HTTPS: what either writes the other goes on with, and sees the same."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import quote

import pytest
from langgraph.channels import DeltaChannel
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt
from typing_extensions import TypedDict

from charm_checkpoint.backend import ThreadQuery
from charm_checkpoint.errors import BackendReadOnly
from charm_checkpoint.store import CheckpointStore
from charm_checkpoint.testing.colours import place
from charm_checkpoint.testing.rows import contents
from charm_memory_postgres import PostgresMemory
from charm_memory_supabase import SupabaseMemory
from tests.supabase.conftest import Project
from tests.supabase.support import memory

SCHEMA = "charm"


@pytest.fixture
def over_psycopg(project: Project) -> Iterator[PostgresMemory]:
    config = {"url": project.postgres_url, "schema": SCHEMA, "migrate": "check"}
    with PostgresMemory(config) as store:
        yield store


@pytest.fixture
def over_https(project: Project) -> Iterator[CheckpointStore]:
    with memory(project) as store:
        yield store


def extend(state: list[Any], writes: Any) -> list[Any]:
    return [*state, *(item for write in writes for item in write)]


class State(TypedDict):
    turns: Annotated[list[str], operator.add]
    log: Annotated[list[str], DeltaChannel(extend, snapshot_frequency=5)]


def agent(store: CheckpointStore) -> Any:
    """Asks in each turn, and keeps a log that is stored as changes."""

    def ask(state: State) -> Any:
        answer = interrupt(f"{state['turns'][-1]}?")
        return {"turns": [answer], "log": [f"{len(state['turns'])} {answer}"]}

    def note(state: State) -> Any:
        return {"log": [f"noted {state['turns'][-1]}"]}

    builder = StateGraph(State)
    builder.add_node("ask", ask)
    builder.add_node("note", note)
    builder.add_edge(START, "ask")
    builder.add_edge("ask", "note")
    return builder.compile(checkpointer=store.get_langgraph_checkpointer())


@pytest.mark.parametrize("first", [0, 1], ids=["psycopg-first", "https-first"])
def test_a_thread_that_changes_sides_at_every_call(
    first: int, over_psycopg: PostgresMemory, over_https: CheckpointStore
) -> None:
    """A question asked on one side is answered on the other; both see the same at every time."""
    sides = [agent(over_psycopg), agent(over_https)]
    log: list[str] = []
    for n in range(6):
        asking, answering = sides[(n + first) % 2], sides[(n + first + 1) % 2]
        asked = asking.invoke({"turns": [f"turn {n}"], "log": []}, place())
        assert [each.value for each in asked["__interrupt__"]] == [f"turn {n}?"]
        told = answering.invoke(Command(resume=f"answer {n}"), place())
        log += [f"{n * 2 + 1} answer {n}", f"noted answer {n}"]
        assert told["log"] == log
    states = [side.get_state(place()) for side in sides]
    assert states[0] == states[1]
    assert states[0].values["turns"] == [t for n in range(6) for t in (f"turn {n}", f"answer {n}")]
    assert list(sides[0].get_state_history(place())) == list(sides[1].get_state_history(place()))


def test_every_row_is_the_same_from_both_sides(
    over_psycopg: PostgresMemory, over_https: CheckpointStore
) -> None:
    graph = agent(over_https)
    for n in range(4):
        graph.invoke({"turns": [f"turn {n} é \x00 \ud800"], "log": []}, place())
        graph.invoke(Command(resume="yes"), place())
    backends = [
        store.get_langgraph_checkpointer().engine.backend for store in (over_psycopg, over_https)
    ]
    one, other = (contents(backend, "thread") for backend in backends)
    assert one == other
    assert one
    queries = [ThreadQuery(), ThreadQuery(status="idle"), ThreadQuery(thread_id="thread")]
    for query in queries:
        assert list(backends[0].threads(query)) == list(backends[1].threads(query))


def test_messages(over_psycopg: PostgresMemory, over_https: CheckpointStore) -> None:
    over_psycopg.save_messages("talk", [{"role": "user", "content": "one"}])
    over_https.append_messages("talk", [{"role": "assistant", "content": "two"}])
    over_psycopg.append_messages("talk", [{"role": "user", "content": "three"}])
    told = [m["content"] for m in over_https.load_messages("talk")]
    assert (
        told
        == [m["content"] for m in over_psycopg.load_messages("talk")]
        == ["one", "two", "three"]
    )


def test_deletions(over_psycopg: PostgresMemory, over_https: CheckpointStore) -> None:
    over_psycopg.save_messages("talk", [{"role": "user", "content": "one"}])
    over_https.delete("talk")
    assert over_psycopg.thread("talk") is None
    assert over_psycopg.load_messages("talk") == []


def test_a_projects_postgres_url_is_taken_too(
    project: Project, over_https: CheckpointStore
) -> None:
    """`provider: supabase` with a `postgresql://` URL goes over psycopg, to the same threads."""
    over_https.save_messages("talk", [{"role": "user", "content": "one"}])
    with SupabaseMemory({"url": project.postgres_url}) as store:
        assert [m["content"] for m in store.load_messages("talk")] == ["one"]
        assert store.get_langgraph_checkpointer().engine.backend.name.startswith("postgresql://")


@pytest.fixture
def role(project: Project) -> Iterator[str]:
    """One that an operator made for a program, with no rights yet."""
    name = "a program"
    with project.connect() as admin:
        admin.execute(f'CREATE ROLE "{name}" LOGIN')
        yield name
        admin.execute(f'DROP OWNED BY "{name}"; DROP ROLE "{name}"'.encode())


RIGHTS = """
GRANT USAGE ON SCHEMA charm TO "a program";
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA charm TO "a program";
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA charm TO "a program";
"""


def test_a_role_that_would_see_nothing_is_told_so(
    project: Project, over_https: CheckpointStore, role: str
) -> None:
    """Row level security hides rows without a word; an agent would begin every thread anew."""
    over_https.save_messages("talk", [{"role": "user", "content": "one"}])
    url = project.server.url(project.database, role=quote(role))
    with SupabaseMemory({"url": url}) as store, project.connect() as admin:
        with pytest.raises(BackendReadOnly, match="permission denied for schema charm"):
            store.load_messages("talk")
        admin.execute(RIGHTS.encode())
        with pytest.raises(BackendReadOnly, match=r"'a program' would find no thread.*BYPASSRLS"):
            store.load_messages("talk")
        admin.execute('ALTER ROLE "a program" BYPASSRLS')
        assert len(store.load_messages("talk")) == 1
