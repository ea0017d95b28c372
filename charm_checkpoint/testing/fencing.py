"""Order, fencing and deletion, as two devices on one thread meet them."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Any

import pytest
from langgraph.checkpoint.base import id as uuid_module
from langgraph.checkpoint.base.id import uuid6

from charm_checkpoint.backend import OnConflict
from charm_checkpoint.errors import ThreadConflictError, ThreadDeletedError
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.testing.colours import (
    DURABILITIES,
    Colour,
    ColourFixtures,
    Driver,
    Durability,
    Saver,
    face_of,
    grow,
    id_of,
    listed,
    newest,
    place,
)
from charm_checkpoint.testing.scenarios import chat, meddling, turn

_HOUR = 3600 * 10**9  # nanoseconds


class _Clock:
    """A device's own clock. LangGraph's ids are monotonic in one process, so two devices need two of its counters."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
        self._monkeypatch = monkeypatch
        self._skew = hours * _HOUR
        self._last: int | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Make ids as this device does."""
        real = time.time_ns
        with self._monkeypatch.context() as patch:
            patch.setattr(time, "time_ns", lambda: real() + self._skew)
            patch.setattr(uuid_module, "_last_v6_timestamp", self._last)
            yield
            self._last = uuid_module._last_v6_timestamp


def _step(saver: CheckpointSaver) -> int | None:
    found = saver.get_tuple(place())
    return found.metadata["step"] if found else None


class FencingContract(ColourFixtures):
    """What a saver over the backend promises when it is not alone."""

    # -- order -----------------------------------------------------------------------------------------------------

    @pytest.mark.asyncio
    async def test_pending_writes_are_in_task_order(self, face: Saver) -> None:
        config = await grow(face, place())
        for task, path in (("b", "~2"), ("z", "~10"), ("é", "~2"), ("a", "~2"), ("c", "")):
            await face.aput_writes(config, [("x", f"{task}0"), ("y", f"{task}1")], task, path)
        expected = [f"{task}{n}" for task in ("c", "z", "a", "b", "é") for n in (0, 1)]
        found = (await newest(face)).pending_writes
        assert [w[2] for w in found or ()] == expected
        [first] = [t async for t in face.alist(place())]
        assert first.pending_writes == found

    @pytest.mark.asyncio
    async def test_special_writes_replace_and_others_stay(self, face: Saver) -> None:
        config = await grow(face, place())
        for round in ("first", "second"):
            await face.aput_writes(config, [("x", round), ("__interrupt__", round)], "task")
            await face.aput_writes(config, [("__error__", round)], "task")
        found = (await newest(face)).pending_writes or ()
        assert {w[1]: w[2] for w in found} == {
            "x": "first",
            "__interrupt__": "second",
            "__error__": "second",
        }

    @pytest.mark.asyncio
    @pytest.mark.parametrize("hours", [1, -1])
    async def test_a_device_whose_clock_is_off(
        self, face: Saver, phone_face: Saver, monkeypatch: pytest.MonkeyPatch, hours: int
    ) -> None:
        """No turn of either device is lost, and both list them in the order they were made."""
        devices = [(face, _Clock(monkeypatch, 0)), (phone_face, _Clock(monkeypatch, hours))]
        written: list[str] = []
        for n in range(6):
            device, clock = devices[n % 2]
            with clock.running():
                config = (await newest(device)).config if written else place()
                written.append(id_of(await grow(device, config)))
        assert written == sorted(written)
        for device, clock in devices:
            with clock.running():
                assert id_of((await newest(device)).config) == written[-1]
            assert await listed(device) == written[::-1]
            assert await listed(device, before=place("thread", written[2])) == written[1::-1]

    @pytest.mark.asyncio
    async def test_what_begins_anew_sorts_behind_what_was_deleted(
        self, face: Saver, phone_face: Saver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with _Clock(monkeypatch, 1).running():
            deleted = id_of(await grow(phone_face, place()))
            await phone_face.adelete_thread("thread")
        with _Clock(monkeypatch, 0).running():
            assert await face.aget_tuple(place()) is None
            assert id_of(await grow(face, place())) > deleted

    # -- two writers -----------------------------------------------------------------------------------------------

    @pytest.mark.asyncio
    async def test_the_second_of_two_writers_is_told(self, face: Saver, phone_face: Saver) -> None:
        start = await grow(face, place())
        await newest(face)
        await newest(phone_face)
        before = time.time()
        won = await grow(phone_face, start, {"a": "phone"})
        with pytest.raises(ThreadConflictError) as caught:
            await grow(face, start, {"a": "laptop"})
        error = caught.value
        assert (error.thread_id, error.namespace) == ("thread", "")
        assert (error.expected, error.actual) == (id_of(start), id_of(won))
        assert error.device == "phone"
        assert before <= error.moved_at <= time.time()
        for fact in ("thread", "phone", id_of(start), id_of(won)):
            assert fact in str(error)
        assert await listed(face) == [id_of(won), id_of(start)]
        assert (await newest(face)).checkpoint["channel_values"] == {"a": "phone"}

    @pytest.mark.asyncio
    async def test_after_a_conflict_the_turn_can_be_repeated(
        self, face: Saver, phone_face: Saver
    ) -> None:
        start = await grow(face, place())
        await grow(phone_face, start)
        with pytest.raises(ThreadConflictError):
            await grow(face, start)
        config = await grow(face, (await newest(face)).config)
        assert id_of((await newest(phone_face)).config) == id_of(config)

    @pytest.mark.asyncio
    async def test_two_begin_one_thread(self, face: Saver, phone_face: Saver) -> None:
        for device in (face, phone_face):
            assert await device.aget_tuple(place()) is None
        won = await grow(phone_face, place())
        with pytest.raises(ThreadConflictError) as caught:
            await grow(face, place())
        assert (caught.value.expected, caught.value.actual) == (None, id_of(won))
        assert await listed(face) == [id_of(won)]

    @pytest.mark.asyncio
    async def test_who_never_read_is_not_fenced(self, face: Saver, phone_face: Saver) -> None:
        await grow(phone_face, place())
        config = await grow(face, place())
        assert id_of((await newest(face)).config) == id_of(config)

    @pytest.mark.asyncio
    async def test_namespaces_are_fenced_each_for_itself(
        self, face: Saver, phone_face: Saver
    ) -> None:
        start = await grow(face, place(namespace="sub"))
        await grow(phone_face, place())
        await grow(phone_face, start)
        with pytest.raises(ThreadConflictError) as caught:
            await grow(face, start)
        assert caught.value.namespace == "sub"
        assert "sub" in str(caught.value)

    @pytest.mark.asyncio
    async def test_the_same_put_again_is_no_conflict(self, face: Saver, phone_face: Saver) -> None:
        start = await grow(face, place())
        config = await grow(face, start, {"a": 1})
        later = await grow(phone_face, config)
        again = await grow(face, start, {"a": 1}, checkpoint_id=id_of(config))
        assert again == config
        assert id_of((await newest(face)).config) == id_of(later)

    @pytest.mark.asyncio
    async def test_policies(
        self,
        face: Saver,
        tablet: CheckpointSaver,
        colour: Colour,
        on_conflict: OnConflict,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        start = await grow(face, place())
        won = id_of(await grow(face, start, {"a": "laptop"}))
        device = face_of(tablet, colour)
        written = {id_of(start), won}
        with caplog.at_level(logging.WARNING, "charm_checkpoint"):
            if on_conflict == "raise":
                with pytest.raises(ThreadConflictError):
                    await grow(device, start, {"a": "tablet"})
                latest, logged = won, False
            else:
                config = await grow(device, start, {"a": "tablet"})
                await device.aput_writes(config, [("b", 1)], "task")
                found = await newest(face, config)
                assert found.checkpoint["channel_values"] == {"a": "tablet"}
                assert found.pending_writes == [("task", "b", 1)]
                written.add(id_of(config))
                logged = on_conflict == "branch"
                latest = won if logged else id_of(config)
        assert id_of((await newest(face)).config) == latest
        assert set(await listed(face)) == written
        assert (
            any("thread" in message and "laptop" in message for message in caplog.messages)
            == logged
        )

    @pytest.mark.asyncio
    async def test_writes_of_a_refused_checkpoint_are_refused(
        self, face: Saver, phone_face: Saver
    ) -> None:
        """Whether they come before it or after it."""
        start = await grow(face, place())
        await grow(phone_face, start)
        checkpoint_id = str(uuid6(clock_seq=-1))
        await face.aput_writes(place("thread", checkpoint_id), [("a", 1)], "early")
        with pytest.raises(ThreadConflictError):
            await grow(face, start, checkpoint_id=checkpoint_id)
        with pytest.raises(ThreadConflictError):
            await face.aput_writes(place("thread", checkpoint_id), [("a", 1)], "late")
        head = await newest(phone_face)
        assert not head.pending_writes
        await grow(phone_face, head.config, checkpoint_id=checkpoint_id)
        assert not (await newest(phone_face)).pending_writes

    @pytest.mark.asyncio
    async def test_an_asked_for_past_may_be_forked(self, face: Saver, phone_face: Saver) -> None:
        first = await grow(face, place())
        third = await grow(phone_face, await grow(phone_face, first))
        asked_for = (await newest(face, first)).config
        fork = await grow(face, asked_for, {"a": "fork"})
        assert id_of((await newest(phone_face)).config) == id_of(fork)
        with pytest.raises(ThreadConflictError):
            await grow(phone_face, third)

    @pytest.mark.asyncio
    async def test_a_look_at_the_past_does_not_lift_the_fence(
        self, face: Saver, phone_face: Saver
    ) -> None:
        start = await grow(face, place())
        began = (await newest(face)).config
        await grow(phone_face, start)
        await newest(face, start)
        with pytest.raises(ThreadConflictError):
            await grow(face, began)

    # -- graphs ----------------------------------------------------------------------------------------------------

    @pytest.mark.asyncio
    @pytest.mark.parametrize("durability", DURABILITIES)
    async def test_a_run_that_is_overtaken_ends_in_a_conflict(
        self, saver: CheckpointSaver, phone: CheckpointSaver, colour: Colour, durability: Durability
    ) -> None:
        other = chat(phone)

        def meddle() -> None:
            # With "async", the step that this one grows from may still be on its way; whoever comes second loses.
            while durability != "exit" and _step(phone) != 0:
                time.sleep(0.001)
            # Not within the node's context, which would make it a subgraph.
            Context().run(other.invoke, turn("phone"), place())

        slow = Driver(meddling(saver, meddle), colour, durability)
        with pytest.raises(ThreadConflictError) as caught:
            await slow.invoke(turn("laptop"))
        assert caught.value.device == "phone"
        fast = Driver(other, colour, durability)
        assert (await fast.state()).values["items"][-2:] == ["phone", "said phone"]
        assert (await fast.invoke(turn("again")))["items"][-2:] == ["again", "said again"]

    @pytest.mark.asyncio
    @pytest.mark.parametrize("durability", DURABILITIES)
    async def test_a_run_whose_thread_is_deleted_ends_and_the_thread_stays_deleted(
        self, saver: CheckpointSaver, phone: CheckpointSaver, colour: Colour, durability: Durability
    ) -> None:
        chatting = Driver(chat(saver), colour, durability)
        await chatting.invoke(turn("before"))

        driver = Driver(meddling(saver, lambda: phone.delete_thread("thread")), colour, durability)
        with pytest.raises(ThreadDeletedError):
            await driver.invoke(turn("laptop"))
        for device in (saver, phone):
            assert device.get_tuple(place()) is None
            assert list(device.list(place())) == []
        assert (await chatting.invoke(turn("fresh")))["items"] == ["fresh", "said fresh"]

    # -- deletion --------------------------------------------------------------------------------------------------

    @pytest.mark.asyncio
    async def test_late_writes_to_a_deleted_thread(self, face: Saver, phone_face: Saver) -> None:
        start = await grow(face, place())
        sub = await grow(face, place(namespace="sub:1"), parents={"": id_of(start)})
        await face.aput_writes(start, [("a", 1)], "before")
        before = time.time()
        await phone_face.adelete_thread("thread")
        lates: list[Callable[[], Awaitable[Any]]] = [
            lambda: grow(face, start),
            lambda: grow(face, sub),
            lambda: grow(face, place(namespace="sub:2"), parents={"": id_of(start)}),
            lambda: face.aput_writes(start, [("a", 1)], "after"),
            lambda: face.aput_writes(sub, [("a", 1)], "after"),
        ]
        for late in lates:
            with pytest.raises(ThreadDeletedError) as caught:
                await late()
            assert caught.value.thread_id == "thread"
            assert before <= caught.value.deleted_at <= time.time()
            assert "thread" in str(caught.value)
        for namespace in ("", "sub:1", "sub:2"):
            assert await face.aget_tuple(place(namespace=namespace)) is None
        assert await listed(face) == []

    @pytest.mark.asyncio
    async def test_a_fresh_run_starts_a_deleted_thread_anew(
        self, face: Saver, phone_face: Saver
    ) -> None:
        old = await grow(face, place(), {"a": "old"})
        await phone_face.adelete_thread("thread")
        assert await face.aget_tuple(place()) is None
        config = await grow(face, place(), {"a": "new"})
        await face.aput_writes(config, [("a", 1)], "task")
        config = await grow(face, config)
        assert await listed(phone_face) != []
        with pytest.raises(ThreadDeletedError):
            await grow(phone_face, old)
        assert id_of((await newest(phone_face)).config) == id_of(config)
