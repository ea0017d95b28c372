"""Random histories against LangGraph's own InMemorySaver: the same tuples, the same lists, the same filters."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver

from charm_checkpoint import CheckpointSaver
from charm_checkpoint.backend import Backend, ThreadQuery
from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.sqlite import SqliteBackend
from charm_checkpoint.sqlite import values as values_table

THREADS = ["t", "T", "naïve ☃", "a'; DROP TABLE checkpoints;--", "100%_x", "0"]
NAMESPACES = ["", "child", "child:1", "child:1|leaf:2"]
CHANNELS = ["messages", "notes", "branch:to:x", "__pregel_tasks", 'q"uote']
# Special channels, whose writes replace, and plain ones, whose first write stays.
WRITE_CHANNELS = [*CHANNELS, "__interrupt__", "__resume__", "__error__", "__scheduled__"]
METADATA_KEYS = ["source", "step", "run_id", "user", "it's", "a.b"]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.binary(max_size=20),
)
messages = st.builds(
    lambda cls, text, id: cls(text, id=id),
    st.sampled_from([HumanMessage, AIMessage]),
    st.text(max_size=20),
    st.text("abc", min_size=1, max_size=3),
)
values = st.recursive(
    scalars | messages,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
metadata_values = st.sampled_from(["loop", "input", "x", 0, 1, -1, True, 1.5, None])


def config(thread: str, namespace: str | None, checkpoint_id: str | None = None) -> Any:
    place = {"thread_id": thread, "checkpoint_ns": namespace, "checkpoint_id": checkpoint_id}
    return {"configurable": {k: v for k, v in place.items() if v is not None}}


def shown(found: CheckpointTuple | None) -> Any:
    """A tuple in comparable form: NaN-free values compare by `repr`, which tells 1 from True and messages apart."""
    if found is None:
        return None
    place = found.config["configurable"]
    parent = (found.parent_config or {}).get("configurable", {}).get("checkpoint_id")
    return repr(
        (
            (place["thread_id"], place.get("checkpoint_ns", ""), found.checkpoint["id"], parent),
            sorted(found.checkpoint["channel_values"].items(), key=lambda item: item[0]),
            sorted((k, v) for k, v in found.checkpoint.items() if k != "channel_values"),
            sorted(found.metadata.items()),
            found.pending_writes,
        )
    )


def by_id(listed: Iterator[CheckpointTuple]) -> list[str]:
    """A list over several namespaces has no order in common with InMemorySaver: compare it sorted."""
    return sorted(shown(found) for found in listed)


class SameAsMemory(RuleBasedStateMachine):
    """Puts, writes, reads, lists and deletes on both savers, compared at every step."""

    places = Bundle("places")
    folder: tempfile.TemporaryDirectory[str]

    def open_backend(self) -> Backend:
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        self.theirs = InMemorySaver()
        self.ours = CheckpointSaver(self.open_backend())
        self.heads: dict[tuple[str, str], str | None] = {}
        self.versions: dict[tuple[str, str], dict[str, str]] = {}
        self.seen: set[tuple[str, str]] = set()

    def teardown(self) -> None:
        if hasattr(self, "ours"):
            self.ours.close()

    @rule(
        target=places,
        thread=st.sampled_from(THREADS),
        namespace=st.sampled_from(NAMESPACES),
        changed=st.dictionaries(st.sampled_from(CHANNELS), values, max_size=3),
        emptied=st.sets(st.sampled_from(CHANNELS), max_size=2),
        metadata=st.dictionaries(st.sampled_from(METADATA_KEYS), metadata_values, max_size=4),
    )
    def put(
        self,
        thread: str,
        namespace: str,
        changed: dict[str, Any],
        emptied: set[str],
        metadata: dict[str, Any],
    ) -> Any:
        place = (thread, namespace)
        head = self.theirs.get_tuple(config(*place))
        carried = dict(head.checkpoint["channel_values"]) if head else {}
        versions = dict(self.versions.get(place, {}))
        new = {c: self.ours.get_next_version(versions.get(c), None) for c in {*changed, *emptied}}
        kept = {c: v for c, v in {**carried, **changed}.items() if c not in emptied}
        checkpoint: Any = {
            "v": 4,
            "id": str(uuid6()),
            "ts": "2026-01-01T00:00:00+00:00",
            "channel_values": {c: v for c, v in kept.items() if c in {**versions, **new}},
            "channel_versions": {**versions, **new},
            "versions_seen": {"node": dict(versions)},
            "updated_channels": sorted(new),
        }
        where = config(*place, self.heads.get(place))
        where["metadata"] = {"user": "u-1", "tags": ["not", "kept"]}
        made = self.ours.put(where, checkpoint, metadata, new)  # type: ignore[arg-type]
        assert made == self.theirs.put(where, checkpoint, metadata, new)  # type: ignore[arg-type]
        self.heads[place] = checkpoint["id"]
        self.versions[place] = checkpoint["channel_versions"]
        return multiple((*place, checkpoint["id"]))

    @rule(
        place=places,
        task=st.sampled_from(["task-1", "task-2", "Task", "z"]),
        path=st.sampled_from(["", "~__pregel_pull, a", "~__pregel_pull, b", "é", "z"]),
        writes=st.lists(st.tuples(st.sampled_from(WRITE_CHANNELS), values), min_size=1, max_size=4),
    )
    def put_writes(self, place: Any, task: str, path: str, writes: list[tuple[str, Any]]) -> None:
        if self.theirs.get_tuple(config(*place)) is None:
            return  # Deleted: a late write is refused here and comes back there.
        for saver in (self.ours, self.theirs):
            saver.put_writes(config(*place), writes, task, path)

    @rule(place=places)
    def read(self, place: Any) -> None:
        assert shown(self.ours.get_tuple(config(*place))) == shown(
            self.theirs.get_tuple(config(*place))
        )

    @rule(thread=st.sampled_from(THREADS), namespace=st.sampled_from(NAMESPACES))
    def read_newest(self, thread: str, namespace: str) -> None:
        where = config(thread, namespace)
        assert shown(self.ours.get_tuple(where)) == shown(self.theirs.get_tuple(where))

    @rule(
        place=places,
        filter=st.dictionaries(st.sampled_from(METADATA_KEYS), metadata_values, max_size=2),
        limit=st.none() | st.integers(0, 3),
        bounded=st.booleans(),
    )
    def list_namespace(
        self, place: Any, filter: dict[str, Any], limit: int | None, bounded: bool
    ) -> None:
        before = config(*place) if bounded else None
        args: Any = {"filter": filter, "before": before, "limit": limit}
        where = config(place[0], place[1])
        ours, theirs = self.ours.list(where, **args), self.theirs.list(where, **args)
        assert list(map(shown, ours)) == list(map(shown, theirs))

    @rule(
        thread=st.sampled_from([*THREADS, None]),
        filter=st.dictionaries(st.sampled_from(METADATA_KEYS), metadata_values, max_size=2),
    )
    def list_everything(self, thread: str | None, filter: dict[str, Any]) -> None:
        where = config(thread, None) if thread else None
        assert by_id(self.ours.list(where, filter=filter)) == by_id(
            self.theirs.list(where, filter=filter)
        )

    @rule(thread=st.sampled_from(THREADS))
    def delete(self, thread: str) -> None:
        for saver in (self.ours, self.theirs):
            saver.delete_thread(thread)
        for place in [p for p in self.heads if p[0] == thread]:
            self.heads[place] = None
            self.versions.pop(place, None)

    @invariant()
    def threads_agree(self) -> None:
        if not hasattr(self, "ours"):
            return
        there = {t for t, by_ns in self.theirs.storage.items() if any(by_ns.values())}
        rows = self.ours.engine.call(lambda backend: backend.threads(ThreadQuery(limit=100)))
        assert {row.thread_id for row in rows} == there


class OverMemory(SameAsMemory):
    def open_backend(self) -> Backend:
        return MemoryBackend()


class OverSqlite(SameAsMemory):
    def open_backend(self) -> Backend:
        self.folder = tempfile.TemporaryDirectory()
        return SqliteBackend(Path(self.folder.name) / "threads.db")

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "folder"):
            self.folder.cleanup()


class OverSqliteDeltas(OverSqlite):
    """Every value is stored as a delta where one can be made, however small."""


@pytest.mark.parametrize("machine", [OverMemory, OverSqlite, OverSqliteDeltas])
def test_same_as_in_memory_saver(
    machine: type[SameAsMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    if machine is OverSqliteDeltas:
        monkeypatch.setattr(values_table, "_MIN_BYTES", 1)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
