"""Devices whose clocks disagree: no turn is lost, all read the same newest, listings keep the causal order."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any
from uuid import uuid1, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.base import CheckpointMetadata
from langgraph.checkpoint.base import id as ids
from langgraph.checkpoint.base.id import uuid6

from charm_checkpoint import clock
from tests.core.support import Process, chat_graph, checkpoint_of, id_of, opened, place, put

HOUR = 3600 * 10**7
"""In the 100 ns ticks of a UUID."""
FORGED = "ffffffff-ffff-6fff-bfff-ffffffffffff"
"""The greatest version 6 UUID: one tick later there is none."""

timestamps = st.integers(0, (1 << 60) - 1)


def uuid_at(timestamp: int, rest: int = 0) -> ids.UUID:
    """LangGraph's own id for a time."""
    high, low = timestamp >> 12, timestamp & 0xFFF
    return ids.UUID(int=high << 80 | low << 64 | rest, version=6)


def set_clock(timestamp: int) -> int:
    """Set what LangGraph counts on from."""
    module: Any = ids
    module._last_v6_timestamp = timestamp
    return timestamp


@pytest.fixture(autouse=True)
def _own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test makes this process's ids follow is forgotten after it."""
    monkeypatch.setattr(ids, "_last_v6_timestamp", ids._last_v6_timestamp)


class TestTwoDevices:
    @pytest.mark.parametrize(("laptop_hours", "phone_hours"), [(1, -1), (-1, 1)])
    def test_lose_no_turn(self, tmp_path: Path, laptop_hours: int, phone_hours: int) -> None:
        path, seed = tmp_path / "threads.db", random.randrange(10**6)
        print("seed", seed)
        rng = random.Random(seed)
        with (
            Process("device", path, "laptop", laptop_hours) as laptop,
            Process("device", path, "phone", phone_hours) as phone,
        ):
            ahead = laptop.ask("clock", "") - phone.ask("clock", "")
            assert ahead == pytest.approx((laptop_hours - phone_hours) * HOUR, abs=HOUR / 60)
            said: list[str] = []
            # Both go first and second, and after the other; then as it comes.
            turns = [laptop, phone, laptop, laptop, phone, phone]
            turns += [rng.choice([laptop, phone]) for _ in range(6)]
            for number, device in enumerate(turns):
                durability = rng.choice(["sync", "async", "exit"])
                device.ask("turn", ["trip", f"turn {number}", durability])
                said += [f"turn {number}", f"re turn {number}"]
                newest = laptop.ask("latest", "trip")
                assert newest == phone.ask("latest", "trip")
                assert newest[1] == said, f"after turn {number} with {durability}"

        with opened(path) as saver:
            listed = list(saver.list(place("trip")))
            names = [id_of(t.config) for t in listed]
            parents = [t.parent_config and id_of(t.parent_config) for t in listed]
        assert names[0] == newest[0], "the newest is listed first"
        assert parents == [*names[1:], None], "each is listed right before the one it grew from"
        assert names == sorted(names, reverse=True)

    def test_begin_anew_a_thread_that_the_faster_one_deleted(self, tmp_path: Path) -> None:
        path = tmp_path / "threads.db"
        with Process("device", path, "laptop", 1) as laptop:
            laptop.ask("turn", ["trip", "old", "sync"])
        with opened(path) as saver:
            saver.delete_thread("trip")
        with Process("device", path, "phone", -1) as phone:
            phone.ask("turn", ["trip", "new", "sync"])
            assert phone.ask("latest", "trip")[1] == ["new", "re new"]


class TestFollowing:
    """`clock` steers a private name of LangGraph's: these fail on the day that LangGraph changes it."""

    def test_langgraph_counts_on_from_where_it_is_told(self) -> None:
        ahead = set_clock(uuid6().time + HOUR)
        assert uuid6().time == ahead + 1
        assert uuid6().time == ahead + 2

    def test_what_was_read_sorts_before_what_is_made_next(self) -> None:
        read = str(uuid_at(uuid6().time + HOUR, rest=(1 << 62) - 1))
        assert str(uuid6()) < read
        clock.observe(read)
        made = [str(uuid6()) for _ in range(1000)]
        assert [read, *made] == sorted({read, *made})

    def test_an_older_id_does_not_set_the_clock_back(self) -> None:
        ahead = set_clock(uuid6().time + HOUR)
        clock.observe(str(uuid_at(ahead - 1)))
        assert uuid6().time == ahead + 1

    def test_a_fork_sorts_behind_the_head_that_it_leaves(self, path: Path) -> None:
        with opened(path) as saver:
            old = put(saver, place("t"), n=1)
            checkpoint, versions = checkpoint_of(n=2)
            ahead = str(uuid_at(uuid6().time + HOUR))
            saver.put(old, {**checkpoint, "id": ahead}, {"source": "loop", "step": 1}, versions)
            asked = saver.get_tuple(place("t", id_of(old)))
            assert asked is not None
            fork = put(saver, asked.config, n=3)
            assert [id_of(t.config) for t in saver.list(place("t"))] == [
                id_of(fork),
                ahead,
                id_of(old),
            ]

    def test_a_thread_begun_anew_is_not_taken_for_the_deleted(self, path: Path) -> None:
        """Writes may come before their checkpoint, and a late writer's are told from them by the id alone."""
        with opened(path) as saver:
            checkpoint, versions = checkpoint_of(n=1)
            ahead = str(uuid_at(uuid6().time + HOUR))
            saver.put(place("t"), {**checkpoint, "id": ahead}, {"source": "loop"}, versions)
            saver.delete_thread("t")
            ids._last_v6_timestamp = None
            assert saver.get_tuple(place("t")) is None
            fresh = place("t", str(uuid6()))
            saver.put_writes(fresh, [("n", 2)], "task")

    @pytest.mark.parametrize(
        "nothing",
        [
            *(None, "", "1", "latest"),
            pytest.param(str(uuid4()), id="random"),
            pytest.param(str(uuid1()), id="version 1"),
        ],
    )
    def test_only_its_own_kind_of_id(self, nothing: str | None) -> None:
        before = ids._last_v6_timestamp
        clock.observe(nothing)
        assert ids._last_v6_timestamp == before

    @given(timestamps, st.integers(0, (1 << 62) - 1))
    def test_reads_the_time_as_langgraph_does(self, timestamp: int, rest: int) -> None:
        uuid = uuid_at(timestamp, rest)
        assert clock.timestamp(str(uuid)) == uuid.time == timestamp

    @given(timestamps, timestamps)
    def test_ids_compare_as_their_times(self, one: int, other: int) -> None:
        if one != other:
            assert (str(uuid_at(one)) < str(uuid_at(other))) == (one < other)

    @given(st.text("0123456789abcdef-6_+ ١x", min_size=36, max_size=36), st.booleans())
    def test_no_text_breaks_it(self, text: str, like_a_uuid: bool) -> None:
        if like_a_uuid:
            text = f"{text[:8]}-{text[9:13]}-6{text[15:]}"
        kept = ids._last_v6_timestamp
        try:
            clock.observe(text)
            assert uuid6().version == 6
        finally:
            ids._last_v6_timestamp = kept


class TestForgedIds:
    """A row that somebody else wrote may carry any id; it must not stop this process from naming its own."""

    def test_the_greatest_id_is_not_followed(self) -> None:
        before = uuid6().time
        clock.observe(FORGED)
        assert before < uuid6().time < before + HOUR

    @given(st.integers(1, 1 << 53))
    def test_ids_stay_valid_behind_any_that_is_followed(self, from_the_end: int) -> None:
        kept = ids._last_v6_timestamp
        try:
            clock.observe(str(uuid_at((1 << 60) - from_the_end)))
            made = [uuid6() for _ in range(10)]
        finally:
            ids._last_v6_timestamp = kept
        assert {uuid.version for uuid in made} == {6}
        assert made == sorted(made)

    @pytest.mark.parametrize("forged", [FORGED, "ff", "ffffffff-ffff-4fff-bfff-ffffffffffff"])
    def test_a_thread_goes_on_from_one(self, tmp_path: Path, forged: str) -> None:
        with opened(tmp_path / "threads.db") as saver:
            checkpoint, versions = checkpoint_of(turns=["old"])
            metadata: CheckpointMetadata = {"source": "update", "step": 0}
            saver.put(place("t"), {**checkpoint, "id": forged}, metadata, versions)
            graph = chat_graph(saver)
            graph.invoke({"turns": ["new"]}, place("t"))
            found = graph.invoke({"turns": ["newer"]}, place("t"))
            assert found["turns"] == ["old", "new", "re new", "newer", "re newer"]
            assert graph.get_state(place("t")).values == found

    def test_a_forged_id_elsewhere_leaves_a_thread_alone(self, tmp_path: Path) -> None:
        with opened(tmp_path / "threads.db") as saver:
            first = put(saver, place("mine"), n=1)
            checkpoint, versions = checkpoint_of(n=0)
            saver.put(place("theirs"), {**checkpoint, "id": FORGED}, {"source": "loop"}, versions)
            assert saver.get_tuple(place("theirs")) is not None
            second = put(saver, first, n=2)
            assert id_of(second) > id_of(first)
            newest = saver.get_tuple(place("mine"))
            assert newest is not None
            assert newest.config == second
