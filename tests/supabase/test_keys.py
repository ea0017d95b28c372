"""Keys and tokens: what is refused, what expires, and that none is ever told."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

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
from tests.supabase.gateway import ANON_KEY, SERVICE_KEY
from tests.supabase.support import (
    ALICE,
    PATIENT,
    assert_no_keys,
    memory,
    open_as,
    user,
)

pytestmark = pytest.mark.usefixtures("no_keys_in_logs")


@pytest.mark.parametrize(
    ("key", "token", "told"),
    [
        ("nonsense", None, "key"),
        (user(ALICE), None, "key"),
        (ANON_KEY, user(ALICE, exp=1), "expired"),
        (ANON_KEY, "nonsense", "token"),
    ],
    ids=["a bad key", "a token for a key", "an expired token", "a bad token"],
)
def test_keys_that_are_refused(key: str, token: str | None, told: str, project: Project) -> None:
    """Final: to repeat such a call helps nobody."""
    backend = SupabaseBackend(project.url, key=key, access_token=token)
    project.opened.callback(backend.close)
    with pytest.raises(BackendError, match=told) as refused:
        read(backend, None)
    assert not isinstance(refused.value, BackendUnavailable)
    assert_no_keys(refused.value, key, token or "")
    assert len(project.gateway.calls) == 1


def test_a_token_that_expires_in_the_middle_of_a_run(project: Project) -> None:
    now, handed = int(time.time()), []

    def fresh() -> str:
        handed.append(user(ALICE, exp=now + 600 + 3600 * len(handed)))
        return handed[-1]

    backend = open_as(project, fresh)
    saver = CheckpointSaver(backend, retry=PATIENT)
    graph = chat(saver)
    graph.invoke(turn("first"), place())
    assert len(handed) == 1
    original = backend.write

    def late(units: Any) -> Any:
        project.postgrest.skew = 1800.0
        return original(units)

    backend.write = late  # type: ignore[method-assign]
    graph.invoke(turn("second"), place())
    assert len(handed) == 2
    assert 401 in [call.status for call in project.gateway.calls]
    assert graph.get_state(place()).values["items"][-1] == "said second"
    assert len(list(saver.list(place()))) == 8
    saver.close()


def test_a_token_that_is_refused_again(project: Project) -> None:
    """Refreshed once, then it is an error."""
    handed = []

    def stale() -> str:
        handed.append(user(ALICE, exp=1, n=len(handed)))
        return handed[-1]

    backend = open_as(project, stale)
    saver = CheckpointSaver(backend, retry=PATIENT)
    with pytest.raises(BackendError, match="expired") as refused:
        saver.get_tuple(place())
    assert not isinstance(refused.value, BackendUnavailable)
    assert len(handed) == 2
    assert len(project.gateway.calls) == 2
    assert_no_keys(refused.value, *handed)
    saver.close()


def test_who_hands_out_tokens_may_fail(project: Project) -> None:
    def broken() -> str:
        raise OSError("signed out")

    backend = open_as(project, broken)
    with pytest.raises(BackendError, match="access_token") as refused:
        read(backend, None)
    assert isinstance(refused.value.__cause__, OSError)


def test_devices_that_share_a_store_refresh_it_once(project: Project) -> None:
    """All callers of one store meet the same expired token."""
    now, handed = int(time.time()), []

    def fresh() -> str:
        handed.append(user(ALICE, exp=now + 600 + 3600 * len(handed)))
        return handed[-1]

    backend = open_as(project, fresh)
    chain(backend, "1")
    project.postgrest.skew = 1800.0
    hold = project.faults.order("stall", times=4)
    with ThreadPoolExecutor(4) as pool:
        told = [pool.submit(head, backend) for _ in range(4)]
        while hold.left:
            time.sleep(0.005)
        hold.go.set()
        assert [each.result() for each in told] == ["1"] * 4
    assert len(handed) == 2


def test_nothing_tells_a_key(project: Project) -> None:
    secret = user(ALICE)
    with memory(project) as store, memory(project, key=ANON_KEY, access_token=secret) as device:
        for each in (store, device):
            each.save_messages(f"talk of {id(each)}", [{"role": "user", "content": "hi"}])
            backend = each.get_langgraph_checkpointer().engine.backend
            told = f"{each!r} {each} {backend!r} {backend} {backend.name}"
            assert SERVICE_KEY not in told
            assert secret not in told
            assert ANON_KEY not in told
