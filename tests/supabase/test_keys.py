"""Keys and tokens: what is refused, what expires, and that none is ever told."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from supabase import AuthApiError, Client
from supabase_auth.errors import AuthRetryableError

from charm_checkpoint.errors import BackendError, BackendUnavailable
from charm_checkpoint.replica import ReplicaStore
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.testing.colours import place
from charm_checkpoint.testing.rows import (
    chain,
    head,
    read,
)
from charm_checkpoint.testing.scenarios import chat, turn
from charm_memory_supabase import SupabaseBackend
from charm_memory_supabase.bearer import Bearer
from tests.core.support import WAIT
from tests.replica.support import until
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


def test_a_call_shows_its_own_token(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread shows the one that is refused while this one repeats its call with the next."""
    handed = iter([user(ALICE, exp=1), user(ALICE)])
    backend = SupabaseBackend(project.url, key=ANON_KEY, access_token=lambda: next(handed))
    project.opened.callback(backend.close)
    holds, repeats, shows, is_done = (threading.Event() for _ in range(4))
    here, calls = threading.current_thread(), itertools.count()
    take, call = Bearer.token, Client.rpc

    def token(bearer: Bearer, refused: str | None = None) -> str | None:
        found = take(bearer, refused)
        if threading.current_thread() is not here and refused is None:
            holds.set()
            assert repeats.wait(WAIT)
        return found

    def rpc(*args: Any) -> Any:
        if threading.current_thread() is not here:
            shows.set()
            assert is_done.wait(WAIT)
        elif next(calls) == 1:
            repeats.set()
            assert shows.wait(WAIT)
        return call(*args)

    monkeypatch.setattr(Bearer, "token", token)
    monkeypatch.setattr(Client, "rpc", rpc)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(read, backend, None)
        assert holds.wait(WAIT)
        try:
            assert read(backend, None).head is None
        finally:
            repeats.set()
            is_done.set()
        assert other.result().head is None
    assert [each.status for each in project.gateway.calls].count(401) == 2


def test_who_hands_out_tokens_may_fail(project: Project) -> None:
    """Mostly there is no network, which passes."""

    def broken() -> str:
        raise OSError("no network")

    backend = open_as(project, broken)
    with pytest.raises(BackendUnavailable, match=r"access_token.*OSError") as refused:
        read(backend, None)
    assert isinstance(refused.value.__cause__, OSError)


class Session:
    """Who is signed in, as a device's `access_token` asks."""

    def __init__(self) -> None:
        self.now: Any = user(ALICE, exp=int(time.time()) + 600)
        self.asked = 0

    def __call__(self) -> Any:
        self.asked += 1
        if isinstance(self.now, Exception):
            raise self.now
        return self.now


SIGNED_OUT = {
    "nothing": None,
    "an empty text": "",
    "no session": AttributeError("'NoneType' object has no attribute 'access_token'"),
    "revoked": AuthApiError("Invalid Refresh Token", 400, "session_not_found"),
    "our own error": BackendError("signed out"),
}


@pytest.mark.parametrize("told", SIGNED_OUT)
def test_a_user_who_signs_out_and_in_again(told: str, project: Project) -> None:
    """Each call in between is an error at once, and asks the project nothing."""
    session = Session()
    backend = open_as(project, session)
    saver = CheckpointSaver(backend, retry=PATIENT)
    graph = chat(saver)
    graph.invoke(turn("first"), place())
    project.postgrest.skew = 1800.0
    session.now, session.asked = SIGNED_OUT[told], 0
    project.gateway.calls.clear()
    for _ in range(2):
        with pytest.raises(BackendError, match="sign in again") as refused:
            graph.invoke(turn("signed out"), place())
        assert not isinstance(refused.value, BackendUnavailable)
    assert (session.asked, [call.status for call in project.gateway.calls]) == (2, [401])
    session.now = user(ALICE)
    assert graph.invoke(turn("second"), place())["items"][-1] == "said second"
    saver.close()


@pytest.mark.parametrize("error", [AuthRetryableError("bad gateway", 502), TimeoutError()])
def test_an_auth_server_that_is_away(error: Exception, project: Project) -> None:
    session = Session()
    backend = open_as(project, session)
    chain(backend, "1")
    project.postgrest.skew = 1800.0
    session.now = error
    with pytest.raises(BackendUnavailable, match="access_token"):
        head(backend)
    session.now = user(ALICE)
    assert head(backend) == "1"


def test_a_token_that_is_refused_and_handed_out_again(project: Project) -> None:
    """As by a device whose clock is slow: it goes on when another one is handed out."""
    session = Session()
    backend = open_as(project, session)
    saver = CheckpointSaver(backend, retry=PATIENT)
    chain(backend, "1")
    project.postgrest.skew = 1800.0
    project.gateway.calls.clear()
    with pytest.raises(BackendError, match="expired"):
        saver.engine.call(head)
    assert len(project.gateway.calls) == 1, "to show it twice would be in vain"
    session.now = user(ALICE)
    assert saver.engine.call(head) == "1"
    saver.close()


def test_a_project_whose_secret_is_changed(project: Project) -> None:
    """Every token there was is refused."""
    session = Session()
    backends = open_as(project, session), open_as(project, session.now)
    chain(backends[0], "1")
    assert [head(backend) for backend in backends] == ["1", "1"]
    project.postgrest.secret = b"another-secret-of-this-project-in-these-tests"
    session.now = user(ALICE, secret=project.postgrest.secret)
    assert head(backends[0]) == "1"
    with pytest.raises(BackendError, match="PGRST301") as refused:
        head(backends[1])
    assert not isinstance(refused.value, BackendUnavailable)


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_a_device_whose_clock_is_wrong(
    ahead: int, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a token expires says the project's clock alone."""
    session = Session()
    backend = open_as(project, session)
    now = time.time
    monkeypatch.setattr("time.time", lambda: now() + ahead)
    project.postgrest.skew = float(-ahead)  # it is this process, too
    chain(backend, "1")
    assert head(backend) == "1"
    assert session.asked == 1


def test_a_replica_whose_user_signs_out_for_a_while(project: Project, tmp_path: Path) -> None:
    """A run that is under way ends, and nothing is lost: it is sent when the user has signed in again."""
    session = Session()
    store = memory(project, key=ANON_KEY, access_token=session)
    with ReplicaStore(store, {"replica": str(tmp_path / "device.db")}) as device:
        graph = chat(device.get_langgraph_checkpointer())
        graph.invoke(turn("first"), place())
        assert device.flush(WAIT)
        stall = project.faults.order("stall", "charm_rest_write_v1")
        graph.invoke(turn("second"), place())
        assert stall.arrived.wait(WAIT)
        project.postgrest.skew = 1800.0
        session.now = None
        stall.go.set()
        with pytest.raises(BackendError, match="sign in again") as refused:
            graph.invoke(turn("third"), place())
        assert not isinstance(refused.value, BackendUnavailable)
        assert not device.flush(0.1)
        session.now = user(ALICE)
        graph.invoke(turn("third"), place())
        assert device.flush(WAIT)
        here = graph.get_state(place())
    with memory(project) as server:
        there = chat(server.get_langgraph_checkpointer()).get_state(place())
    assert there.values == here.values
    assert [said for said in here.values["items"] if said in ("second", "third")] == [
        "second",
        "third",
    ]


def test_a_user_who_was_signed_out_while_offline(
    project: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Told once in the log, and to who goes on; not that the network is away, which it is not any more."""
    session = Session()
    store = memory(project, key=ANON_KEY, access_token=session)
    with ReplicaStore(store, {"replica": str(tmp_path / "device.db")}) as device:
        graph = chat(device.get_langgraph_checkpointer())
        graph.invoke(turn("first"), place())
        assert device.flush(WAIT)
        project.postgrest.skew = 1800.0
        session.now = ConnectionError("no network")
        graph.invoke(turn("offline"), place())
        session.now = None
        until(lambda: device.flush(0.01) or device.sync_status().threads["thread"].error)
        assert device.sync_status().offline_since is None
        with pytest.raises(BackendError, match="sign in again"):
            graph.invoke(turn("signed out"), place())
        session.now = user(ALICE)
        assert device.flush(WAIT)
        assert graph.invoke(turn("second"), place())["items"][-1] == "said second"
    told = [record for record in caplog.records if record.name.startswith("charm_checkpoint")]
    assert len([record for record in told if record.levelname == "ERROR"]) == 1


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
