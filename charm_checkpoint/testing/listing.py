"""`threads`: listing them by recency, status and labels."""

from __future__ import annotations

import json
import random
from typing import get_args

import pytest

from charm_checkpoint.backend import Backend, Labels, Status, ThreadCursor, ThreadQuery, Unit
from charm_checkpoint.testing.fixtures import BackendFixtures
from charm_checkpoint.testing.rows import AT, THREAD, chain, move, pending, put, store, write

_LATER = AT + 1000


def thread_ids(backend: Backend, *, labels: Labels | None = None) -> list[str]:
    return [row.thread_id for row in backend.threads(ThreadQuery(limit=1000, labels=labels))]


def _statuses(backend: Backend) -> dict[str, str]:
    """Of all threads; listed by their status, each is found once."""
    found: dict[str, str] = {row.thread_id: row.status for row in backend.threads(ThreadQuery())}
    for status in get_args(Status):
        listed = [row.thread_id for row in backend.threads(ThreadQuery(status=status))]
        assert sorted(listed) == sorted(name for name, is_ in found.items() if is_ == status)
    return found


class ListingContract(BackendFixtures):
    """`Backend.threads` row by row."""

    def test_no_threads(self, ready: Backend) -> None:
        assert list(ready.threads(ThreadQuery(limit=10))) == []
        assert list(ready.threads(ThreadQuery(limit=1, thread_id="unknown"))) == []

    def test_threads_by_recency(self, ready: Backend) -> None:
        for thread, at in (("a", 1.0), ("b", 5.0), ("é", 3.0), ("A", 3.0), ("z", 3.0)):
            store(ready, put("1", thread=thread, at=at))
        assert thread_ids(ready) == ["b", "é", "z", "A", "a"]
        store(ready, put("2", "1", thread="a", at=6.5))
        assert thread_ids(ready) == ["a", "b", "é", "z", "A"]
        [row] = ready.threads(ThreadQuery(limit=9, thread_id="a"))
        assert (row.created_at, row.updated_at) == (1.0, 6.5)

    @pytest.mark.parametrize("limit", [1, 2, 5, 6])
    def test_pages_of_threads(self, ready: Backend, limit: int) -> None:
        for n in range(5):
            store(ready, put("1", thread=f"t{n}", at=AT + n // 2 + 1 / 3))
        found = list(ready.threads(ThreadQuery(limit=limit)))
        while len(
            page := ready.threads(
                ThreadQuery(limit=limit, after=(found[-1].updated_at, found[-1].thread_id))
            )
        ):
            assert len(page) <= limit
            found += page
        assert [row.thread_id for row in found] == ["t4", "t3", "t2", "t1", "t0"]

    def test_heads_of_a_thread(self, ready: Backend) -> None:
        chain(ready, "1", namespace="a")
        chain(ready, "1", "2")
        store(ready, put("3", namespace="\U0001d11e", device="phone", at=_LATER))
        [row] = ready.threads(ThreadQuery(limit=9))
        assert [(h.namespace, h.checkpoint_id) for h in row.heads] == [
            ("", "2"),
            ("a", "1"),
            ("\U0001d11e", "3"),
        ]
        assert (row.heads[2].device, row.heads[2].moved_at) == ("phone", _LATER)

    @pytest.mark.parametrize(("first", "second"), [("puts", "writes"), ("writes", "puts")])
    def test_status_is_that_of_the_root_head(self, ready: Backend, first: str, second: str) -> None:
        asks, fails = write(idx=-3, channel="__interrupt__"), write(idx=-1, channel="__error__")
        units: dict[str, list[Unit]] = {
            "puts": [
                *(put(id, str(n) if n else None) for n, id in enumerate("12")),
                *(put("1", thread=name) for name in ("asks", "fails", "works")),
                put("1", namespace="sub"),
            ],
            "writes": [
                pending("1", asks, fails),
                pending("1", asks, namespace="sub"),
                pending("1", write(channel="a"), thread="works"),
                pending("1", fails, thread="fails"),
                pending("1", fails, thread="asks"),
                pending("1", write("other", -3, "__interrupt__"), thread="asks"),
            ],
        }
        store(ready, *units[first], *units[second])
        expected = {THREAD: "idle", "asks": "interrupted", "fails": "failed", "works": "idle"}
        assert _statuses(ready) == expected
        store(ready, put("2", "1", thread="asks"), pending("2", asks))
        assert _statuses(ready) == {**expected, "asks": "idle", THREAD: "interrupted"}
        ready.prune(THREAD, [("", "2")])
        ready.delete("fails", at=_LATER)
        store(ready, put("9", thread="fails"))
        assert _statuses(ready) == {
            **expected,
            "asks": "idle",
            THREAD: "interrupted",
            "fails": "idle",
        }
        ready.copy(THREAD, "copy", at=_LATER)
        store(ready, put("2", "1"), move("1", "2"))
        assert _statuses(ready) == {
            **dict.fromkeys((THREAD, "copy"), "interrupted"),
            **dict.fromkeys(("asks", "works", "fails"), "idle"),
        }

    def test_labels_are_of_the_root_heads_metadata(self, ready: Backend) -> None:
        labels: dict[str, str | int | bool] = {
            "text": "é \U0001d11e'\"%_\\",
            "number": -(2**63),
            "flag": False,
            "": "",
            "x" * 200: "y" * 200,
        }
        rest: dict[str, object] = {
            "step": 1,
            "source": "loop",
            "parents": {"": "1"},
            "writes": "w",
            "none": None,
            "float": 1.0,
            "list": [1],
            "large": 2**63,
            "x" * 201: 1,
            "long": "y" * 201,
            "nul": "\x00",
            "surrogate": "\ud800",
            "\x00": 1,
            "infinite": float("inf"),
        }
        store(
            ready,
            put("1", metadata=json.dumps({"old": 1}).encode()),
            put("2", "1", metadata=json.dumps({**labels, **rest}).encode()),
            put("3", metadata=b'{"sub":1}', namespace="sub"),
            put("4", "2", metadata=b'{"branch":1}', on_conflict="beside"),
            put("1", thread="rootless", metadata=b'{"sub":1}', namespace="sub"),
        )
        found = {row.thread_id: row.labels for row in ready.threads(ThreadQuery())}
        assert found == {THREAD: labels, "rootless": {}}
        for name, value in labels.items():
            assert thread_ids(ready, labels={name: value}) == [THREAD]
        assert thread_ids(ready, labels=labels) == [THREAD]
        others: dict[str, str | int | bool] = {
            "old": 1,
            "sub": 1,
            "branch": 1,
            "float": 1,
            "text": "é",
            "flag": 0,
        }
        for name, value in others.items():
            assert thread_ids(ready, labels={name: value}) == [], name
        store(ready, move("4", "2", at=_LATER))
        assert thread_ids(ready, labels={"branch": 1}) == [THREAD]
        assert thread_ids(ready, labels={"flag": False}) == []
        ready.copy(THREAD, "copy", at=_LATER)
        ready.prune(THREAD, [("", "4")])
        assert thread_ids(ready, labels={"branch": 1}) == ["copy"]
        assert thread_ids(ready, labels=labels) == [THREAD]
        ready.delete(THREAD, at=_LATER)
        store(ready, put("9"))
        assert thread_ids(ready, labels={"number": -(2**63)}) == []

    @pytest.mark.parametrize("limit", [1, 2, 100])
    def test_pages_of_some_threads(self, ready: Backend, limit: int) -> None:
        """Of many threads, by what they are and by what they are labelled with."""
        rng = random.Random(limit)
        threads: dict[str, tuple[float, Status, dict[str, str | int | bool]]] = {}
        statuses: tuple[Status, ...] = get_args(Status)
        for n in range(40):
            labels: dict[str, str | int | bool] = {
                "user": f"u{rng.randrange(3)}",
                "n": rng.randrange(2),
            }
            status = rng.choice(statuses)
            threads[f"t{n}"] = (AT + rng.randrange(5), status, labels)
            channel = {"idle": "a", "interrupted": "__interrupt__", "failed": "__error__"}[status]
            first = put("1", thread=f"t{n}", at=AT, metadata=b'{"user":"u0","n":true}')
            head = put(
                "2",
                "1",
                thread=f"t{n}",
                at=threads[f"t{n}"][0],
                metadata=json.dumps(labels).encode(),
            )
            store(ready, first, head, pending("2", write(channel=channel), thread=f"t{n}"))
        wanted: list[tuple[Status | None, dict[str, str | int | bool]]] = [
            ("interrupted", {}),
            ("idle", {}),
            (None, {"user": "u1"}),
            ("failed", {"n": 1}),
            (None, {"user": "u2", "n": 0}),
            ("idle", {"user": "u0", "n": 1}),
            (None, {"user": "u9"}),
        ]
        for asked, labels in wanted:
            expected = sorted(
                (
                    (at, name)
                    for name, (at, is_, has) in threads.items()
                    if asked in (None, is_) and labels.items() <= has.items()
                ),
                reverse=True,
            )
            found: list[ThreadCursor] = []
            after = None
            while page := ready.threads(ThreadQuery(limit, after, status=asked, labels=labels)):
                assert len(page) <= limit
                found += [(row.updated_at, row.thread_id) for row in page]
                after = found[-1]
            assert found == expected, (asked, labels)
        named = ThreadQuery(thread_id="t1", status=threads["t1"][1], labels=threads["t1"][2])
        assert [row.thread_id for row in ready.threads(named)] == ["t1"]
        assert not ready.threads(named._replace(labels={"user": "nobody"}))

    def test_a_thread_begins_with_its_first_checkpoint(self, ready: Backend) -> None:
        store(ready, pending("1"))
        assert thread_ids(ready) == []
        store(ready, put("1", at=AT))
        [row] = ready.threads(ThreadQuery(limit=9))
        assert (row.created_at, row.updated_at) == (AT, AT)
