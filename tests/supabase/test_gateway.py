"""The gateway before the stand-in: its key, the faults that can be ordered, and the real client before it."""

from __future__ import annotations

import socket
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from postgrest.exceptions import APIError
from supabase import Client, create_client

from tests.postgres.server import Server
from tests.supabase.conftest import Project, open_project
from tests.supabase.gateway import SERVICE_KEY
from tests.supabase.requests import USER, ask
from tests.supabase.tokens import token


def test_the_gateway_wants_a_key_of_the_project(api: Project) -> None:
    """Supabase's docs, "Understanding API keys"; supabase/supabase, docker/volumes/api/kong.yml."""
    refused = ask(api, "rpc/me", {}, key=None)
    assert (refused.status, refused.body["message"]) == (401, "No API key found in request")
    refused = ask(api, "rpc/me", {}, key=token("authenticated", sub=USER))
    assert (refused.status, refused.body["message"]) == (401, "Invalid API key")


# -- the real client, and faults ---------------------------------------------------------------------------------------


@pytest.fixture
def client(api: Project) -> Iterator[Client]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it warns of its own doings
        made = create_client(api.url, SERVICE_KEY)
        assert made.postgrest
    yield made
    made.postgrest.aclose()
    made.auth.close()


def test_the_real_client(client: Client) -> None:
    assert client.rpc("echo", {"value": {"a": 1}}).execute().data == {"a": 1}
    assert client.rpc("add", {"a": 1}, get=True).execute().data == 11
    with pytest.raises(APIError) as refused:
        client.rpc("fail", {"state": "40001"}).execute()
    assert (refused.value.code, refused.value.message) == ("40001", "said")
    with pytest.raises(APIError) as refused:
        client.table("nosuch").select("*").execute()
    assert refused.value.code == "PGRST205"


def test_calls_are_counted(client: Client, api: Project) -> None:
    client.rpc("add", {"a": 1}).execute()
    [call] = api.gateway.calls
    assert (call.request.method, call.function, call.status) == ("POST", "add", 200)
    assert (call.sent, call.received) == (len(b'{"a":1}'), len(b"11"))
    assert call.began <= call.ended


@pytest.mark.parametrize("kind", ["502", "503", "429"])
def test_answers_in_the_project_s_place(kind: Any, client: Client, api: Project) -> None:
    fault = api.faults.order(kind, "keep", seconds=2)
    with pytest.raises(APIError) as refused:
        client.rpc("keep", {"id": 1, "text": "x"}).execute()
    assert refused.value.code == {"502": "502", "503": "PGRST001", "429": None}[kind]
    assert fault.fired == 1
    assert ask(api, "notes").body == []
    client.rpc("keep", {"id": 1, "text": "x"}).execute()
    api.faults.order(kind, "add", seconds=2)
    headers = ask(api, "rpc/add", {"a": 1}).headers
    if kind == "502":
        assert headers["Content-Type"] == "text/html"
    else:
        assert headers["Retry-After"] == "2"


@pytest.mark.parametrize(("kind", "kept"), [("before", 0), ("after", 1)])
def test_lost_calls(kind: Any, kept: int, client: Client, api: Project) -> None:
    api.faults.order(kind)
    with pytest.raises(httpx.RemoteProtocolError):
        client.rpc("keep", {"id": 1, "text": "x"}).execute()
    assert len(ask(api, "notes").body) == kept


def test_half_an_answer(client: Client, api: Project) -> None:
    api.faults.order("half")
    with pytest.raises(httpx.RemoteProtocolError):
        client.rpc("echo", {"value": "x" * 999}).execute()


def test_a_call_that_comes_late(api: Project) -> None:
    """Its client has gone when it is done."""
    fault = api.faults.order("stall", "keep")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{api.url}/rest/v1/rpc/keep",
            json={"id": 1, "text": "late"},
            headers={"apikey": SERVICE_KEY, "Authorization": f"Bearer {SERVICE_KEY}"},
            timeout=0.1,
        )
    assert fault.arrived.is_set()
    assert ask(api, "notes").body == []
    fault.go.set()
    deadline = time.monotonic() + 30
    while not ask(api, "notes").body:
        assert time.monotonic() < deadline


def test_delays_are_side_by_side(api: Project) -> None:
    fault = api.faults.order("delay", times=8, seconds=30)
    threads = [
        threading.Thread(target=ask, args=(api, "rpc/add", {"a": 1})) for _ in range(fault.left)
    ]
    for each in threads:
        each.start()
    while fault.left:
        time.sleep(0.005)
    fault.go.set()
    for each in threads:
        each.join()
    begun = max(call.began for call in api.gateway.calls)
    assert all(call.ended > begun for call in api.gateway.calls)


def test_it_ends_with_connections_open(server: Server) -> None:
    with (
        open_project(server) as fresh,
        socket.create_connection(("127.0.0.1", int(fresh.url.rpartition(":")[2]))) as idle,
    ):
        idle.sendall(b"GET / HTTP/1.1\r\n")
