"""What each limit means, which threads none holds for, and what a policy can say."""

from __future__ import annotations

import math
from typing import Any

import pytest
from langgraph.types import Command

from charm_checkpoint import RetentionPolicy, open_store
from charm_checkpoint.errors import ConfigError, InvalidIdError, ThreadNotFoundError
from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.retention import Pruned
from charm_checkpoint.store import CheckpointStore
from tests.core.support import place
from tests.retention.agents import agent
from tests.retention.conftest import DAY, MakeStore, later


def talk(store: CheckpointStore, thread_id: str, turns: int = 3, **metadata: Any) -> Any:
    graph = agent(store.get_langgraph_checkpointer())
    thread = place(thread_id)
    thread["metadata"] = metadata
    for turn in range(turns):
        graph.invoke({"said": [f"say {turn}"]}, thread)
    return graph


def count(store: CheckpointStore, thread_id: str) -> int:
    return len(list(store.history(thread_id)))


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "sqlite", "replica"])
def test_idle_threads_go_whole(
    make_store: MakeStore, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(kind)
    talk(store, "old")
    later(monkeypatch, 5)
    assert store.prune({"idle_ttl": "6d"}).threads == ()
    done = store.prune({"idle_ttl": "4d"})
    assert [(t.thread_id, t.deleted) for t in done.threads] == [("old", True)]
    assert done.checkpoints > 10
    assert store.thread("old") is None


class Awake(MemoryBackend):
    """A thread is gone on with right after it was listed."""

    def __init__(self) -> None:
        super().__init__()
        self.between: Any = None

    def scan(self, query: Any) -> Any:
        go_on, self.between = self.between, None
        if go_on is not None:
            go_on()
        return super().scan(query)


def test_a_thread_that_wakes_up_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    from charm_checkpoint.saver import CheckpointSaver
    from charm_checkpoint.store import store_from_saver

    backend = Awake()
    store = store_from_saver(CheckpointSaver(backend))
    assert isinstance(store, CheckpointStore)
    talk(store, "t")
    later(monkeypatch, 5)
    backend.between = lambda: talk(store, "t", 1)
    assert store.prune({"idle_ttl": "4d"}).threads == ()
    assert store.thread("t") is not None
    store.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_thread_takes_no_more_than_max_bytes(make_store: MakeStore, kind: str) -> None:
    store = make_store(kind)
    for turn in range(30):
        store.append_messages("t", [{"role": "user", "content": f"{turn} " + "word " * 400}])
    had = count(store, "t")
    assert store.prune({"max_bytes": "100MB"}).checkpoints == 0
    done = store.prune({"max_bytes": 500_000 if kind == "memory" else 85_000})
    assert 0 < done.checkpoints < had - 1
    assert count(store, "t") == had - done.checkpoints
    store.prune({"max_bytes": 0})
    assert count(store, "t") == 1, "the head stays, however much it takes"
    assert len(store.load_messages("t")) == 30


def test_says_what_it_freed(store: CheckpointStore) -> None:
    for turn in range(30):
        store.append_messages("t", [{"role": "user", "content": f"{turn} " + "word " * 400}])
    about = store.prune({"keep_last": 3}, dry_run=True)
    done = store.prune({"keep_last": 3})
    assert about.dry_run
    assert not done.dry_run
    assert about.checkpoints == done.checkpoints == 27
    assert done.looked_at == 1
    assert about.bytes is not None
    assert done.bytes is not None
    assert 0.8 * about.bytes < done.bytes < 1.2 * about.bytes


def test_where_nobody_can_tell_the_bytes(make_store: MakeStore) -> None:
    store = make_store("memory")
    talk(store, "t")
    done = store.prune({"keep_last": 1})
    assert done.checkpoints
    assert done.bytes is None


# -- which threads -----------------------------------------------------------------------------------------------------


def test_a_thread_that_waits_for_an_answer_stays(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = talk(store, "t")
    graph.invoke({"said": ["ask"]}, place("t"))
    had = count(store, "t")
    later(monkeypatch, 5)
    done = store.prune({"keep_last": 1, "idle_ttl": 1, "max_age": 1})
    assert done.threads == (Pruned("t", kept="it waits for an answer"),)
    assert count(store, "t") == had
    graph.invoke(Command(resume="yes"), place("t"))
    assert store.prune({"keep_last": 1}).checkpoints


@pytest.mark.parametrize(
    ("label", "left"), [("keep", None), ("forever", None), (0, None), (True, None), (2, 2)]
)
def test_a_thread_has_its_own_way(store: CheckpointStore, label: Any, left: int | None) -> None:
    for text in ("one", "two", "three", "four"):
        config: Any = place("t")
        config["metadata"] = {"retention": label}
        graph = talk(store, "t", 1, retention=label)
        assert graph, text
    had = count(store, "t")
    done = store.prune({"keep_last": 1})
    if left is None:
        [told] = done.threads
        assert told.kept
        assert str(label) in told.kept
        assert count(store, "t") == had
    else:
        assert done.checkpoints
        # DeltaChannels need some more.
        assert left <= count(store, "t") < had


def test_only_some_threads_with_progress(store: CheckpointStore) -> None:
    for name in ("a", "b", "c"):
        talk(store, name, 2)
    had = count(store, "c")
    told: list[tuple[int, int]] = []
    done = store.prune(
        RetentionPolicy(keep_last=1),
        threads=["a", "b", "a"],
        on_progress=lambda *at: told.append(at),
    )
    assert {t.thread_id for t in done.threads} == {"a", "b"}
    assert told == [(1, 2), (2, 2)]
    assert count(store, "c") == had
    with pytest.raises(ThreadNotFoundError, match="'nowhere'"):
        store.prune({"keep_last": 1}, threads=["nowhere"])
    with pytest.raises(InvalidIdError):
        store.prune({"keep_last": 1}, threads=[""])


# -- policies ----------------------------------------------------------------------------------------------------------


def test_the_configured_one(make_store: MakeStore) -> None:
    store = make_store("sqlite", retention={"keep_last": "1", "max_age": None})
    talk(store, "t")
    assert store.prune().checkpoints
    replica = make_store("replica", retention={"keep_last": 1})
    talk(replica, "t")
    assert replica.prune().checkpoints


def test_it_is_opened_with_one(tmp_path: Any) -> None:
    with open_store(f"sqlite:///{tmp_path}/x.db", retention={"idle_ttl": "30d"}) as store:
        assert isinstance(store, CheckpointStore)
        assert store.prune().looked_at == 0


def test_without_any_limit(store: CheckpointStore) -> None:
    for nothing in (None, {}, RetentionPolicy()):
        with pytest.raises(ConfigError, match="what to keep"):
            store.prune(nothing)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"max_age": 90}, 90),
        ({"max_age": "90"}, 90),
        ({"max_age": "15m"}, 900),
        ({"max_age": " 1.5 H "}, 5400),
        ({"idle_ttl": "2w"}, 14 * DAY),
        ({"max_bytes": "100MB"}, 100_000_000),
        ({"max_bytes": "1 GiB"}, 2**30),
        ({"keep_last": "20"}, 20),
    ],
)
def test_what_it_can_say(given: dict[str, Any], found: float) -> None:
    [name] = given
    assert getattr(RetentionPolicy.of(given), name) == found


@pytest.mark.parametrize(
    "given",
    [
        {"keep_last": 0},
        {"keep_last": -1},
        {"keep_last": 1.5},
        {"keep_last": "1.5"},
        {"keep_last": True},
        {"max_age": "soon"},
        {"max_age": "-1d"},
        {"max_age": -1},
        {"max_age": math.nan},
        {"max_age": math.inf},
        {"max_age": 10**400},
        {"idle_ttl": 10**5000},
        {"max_age": "9" * 400},
        {"idle_ttl": "9" * 400 + "d"},
        {"keep_last": "9" * 400},
        {"keep_last": 2**63},
        {"max_bytes": "9" * 400 + "GB"},
        {"max_bytes": f"{2**62}TB"},
        {"max_age": "3 fortnights"},
        {"max_bytes": "much"},
        {"max_bytes": [1]},
        {"keep": 5},
        {1: 2},
        "30d",
        [20],
    ],
)
def test_what_it_cannot_say(given: Any, make_store: MakeStore) -> None:
    with pytest.raises(ConfigError):
        RetentionPolicy.of(given)
    with pytest.raises(ConfigError):
        make_store("sqlite", retention=given)
