"""Networks that are there and lead nowhere: the project counts as away, and a replica goes on."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from charm_checkpoint import open_store
from charm_checkpoint.backend import ThreadQuery
from charm_checkpoint.errors import BackendError, BackendUnavailable
from charm_checkpoint.replica import ReplicaStore
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.testing.colours import place
from charm_checkpoint.testing.rows import chain, head
from charm_checkpoint.testing.scenarios import chat, turn
from charm_memory_supabase import SupabaseBackend
from tests.core.support import WAIT
from tests.replica.support import until
from tests.supabase.conftest import Project
from tests.supabase.gateway import ANON_KEY, SERVICE_KEY
from tests.supabase.support import (
    ALICE,
    BOB,
    PATIENT,
    assert_no_keys,
    memory,
    open_as,
    open_service,
    user,
)

pytestmark = pytest.mark.usefixtures("no_keys_in_logs")

PORTALS: Any = ["200", "302", "403"]


def said(store: Any) -> list[str]:
    return chat(store.get_langgraph_checkpointer()).get_state(place()).values["items"]  # type: ignore[no-any-return]


# -- a network that wants somebody to sign in --------------------------------------------------------------------------


@pytest.mark.parametrize("portal", PORTALS)
def test_a_page_in_the_project_s_place(
    portal: Any, backend: SupabaseBackend, project: Project
) -> None:
    """Nothing is told to wherever it leads."""
    chain(backend, "1")
    project.gateway.calls.clear()
    project.faults.order(portal)
    with pytest.raises(BackendUnavailable, match=f"{portal}.*sign in") as away:
        head(backend)
    assert "hotel" not in str(away.value)
    assert_no_keys(away.value)
    assert len(project.gateway.calls) == 1
    assert head(backend) == "1"


@pytest.mark.parametrize("portal", PORTALS)
def test_a_replica_in_a_hotel(portal: Any, project: Project, tmp_path: Path) -> None:
    """It goes on with what is here, and sends it when somebody has signed in."""
    with ReplicaStore(memory(project), {"replica": str(tmp_path / "device.db")}) as device:
        graph = chat(device.get_langgraph_checkpointer())
        graph.invoke(turn("at home"), place())
        assert device.flush(WAIT)
        project.faults.order(portal, times=1_000_000)
        graph.invoke(turn("in the hotel"), place())
        status = device.sync_status()
        assert status.offline_since is not None
        assert "sign in" in str(status.last_error)
        assert said(device)[-1] == "said in the hotel"
        project.faults.clear()
        assert device.flush(WAIT)
    with memory(project) as server:
        assert said(server)[-1] == "said in the hotel"


# -- a certificate of somebody else ------------------------------------------------------------------------------------


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[str]:
    """The URL of a server that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hotel")])
    today = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "hotel.pem"
    pem.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with (
                    suppress(OSError),
                    context.wrap_socket(connection, server_side=True) as secured,
                ):
                    heard.append(secured.recv(1))
                connection.close()

    heard: list[bytes] = []
    serving = threading.Thread(target=serve)
    serving.start()
    yield f"https://127.0.0.1:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    serving.join()
    assert not any(heard), "something was sent to it"


def test_a_certificate_that_nobody_vouches_for(stranger: str, tmp_path: Path) -> None:
    backend = SupabaseBackend(stranger, key=SERVICE_KEY)
    with pytest.raises(BackendUnavailable, match=r"certificate.*clock.*SSL_CERT_FILE") as away:
        head(backend)
    assert_no_keys(away.value)
    backend.close()


# -- no network at the start -------------------------------------------------------------------------------------------


class Session:
    """What a device's `access_token` asks: whoever is signed in, if there is a network to ask."""

    def __init__(self, who: str) -> None:
        self.who = who
        self.is_online = True

    def __call__(self) -> str:
        if not self.is_online:
            raise ConnectionError("no route to host")
        return user(self.who)


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARM_WORKSPACE_DIR", str(tmp_path / "workspace"))


def device(project: Project, session: Any, replica: Any = True, **config: Any) -> ReplicaStore:
    url = project.url.replace("http://", "supabase://")
    store = open_store(url, key=ANON_KEY, access_token=session, replica=replica, **config)
    assert isinstance(store, ReplicaStore)
    return store


@pytest.mark.parametrize("replica", [True, "device.db"], ids=["default path", "path"])
def test_a_device_that_starts_without_a_network(
    replica: Any, project: Project, tmp_path: Path
) -> None:
    """Whose its file is says the file; what is done is sent as that user, when there is a token again."""
    replica = replica is True or str(tmp_path / replica)
    session = Session(ALICE)
    with device(project, session, replica) as first:
        chat(first.get_langgraph_checkpointer()).invoke(turn("yesterday"), place())
        assert first.flush(WAIT)
    session.is_online = False
    project.faults.order("before", times=1_000_000)
    with device(project, session, replica) as again:
        assert said(again)[-1] == "said yesterday"
        chat(again.get_langgraph_checkpointer()).invoke(turn("today"), place())
        assert again.sync_status().remote.endswith(f"({ALICE})")
        project.faults.clear()
        session.is_online = True
        assert again.flush(WAIT)
    assert head(open_as(project, user(ALICE)))
    assert [t.thread_id for t in open_as(project, user(BOB)).threads(ThreadQuery())] == []


def test_somebody_else_has_signed_in_meanwhile(project: Project) -> None:
    """Who gets the file of the only user before there was a network sends nothing of it as another."""
    session = Session(ALICE)
    with device(project, session) as first:
        chat(first.get_langgraph_checkpointer()).invoke(turn("Alice's"), place())
        assert first.flush(WAIT)
    session.is_online = False
    with device(project, session) as again:
        chat(again.get_langgraph_checkpointer()).invoke(turn("still Alice's"), place())
        session.is_online, session.who = True, BOB
        assert not again.flush(1.0)
        [waiting] = again.sync_status().threads.values()
        assert "another user" in str(waiting.error)
    assert open_as(project, user(BOB)).threads(ThreadQuery()) == []


@pytest.mark.parametrize("users", [(), (ALICE, BOB)], ids=["nobody", "two"])
def test_it_is_not_guessed_whose_a_device_is(users: tuple[str, ...], project: Project) -> None:
    for who in users:
        with device(project, Session(who)) as each:
            each.save_messages(f"talk of {who}", [{"role": "user", "content": "hi"}])
            assert each.flush(WAIT)
    session = Session(BOB)
    session.is_online = False
    with pytest.raises(BackendUnavailable, match=r"whose replica.*owner") as unknown:
        device(project, session)
    assert isinstance(unknown.value.__cause__, BackendUnavailable)
    with device(project, session, owner=BOB) as named:
        assert [t.thread_id for t in named.threads()] == [
            f"talk of {who}" for who in users if who == BOB
        ]


def test_nobody_is_served_who_has_signed_out(project: Project) -> None:
    session = Session(ALICE)
    with device(project, session) as first:
        first.save_messages("talk", [{"role": "user", "content": "hi"}])
        assert first.flush(WAIT)
    with pytest.raises(BackendError, match="sign in again"):
        device(project, lambda: None)


# -- closing -----------------------------------------------------------------------------------------------------------


def test_closed_while_a_token_is_fetched(project: Project) -> None:
    """Closing does not wait for it, and what comes after that opens nothing."""
    asked, go = threading.Event(), threading.Event()

    def slow() -> str:
        asked.set()
        assert go.wait(WAIT)
        return user(ALICE)

    backend = open_as(project, slow)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(head, backend)
        assert asked.wait(WAIT)
        backend.close()
        go.set()
        with pytest.raises(BackendUnavailable, match="closed meanwhile"):
            reading.result(WAIT)
    assert project.gateway.calls == []
    assert backend._project._http is None


@pytest.mark.parametrize("refresh", [False, True], ids=["asking", "refreshing"])
def test_closed_while_it_asks(refresh: bool, project: Project) -> None:
    asked, go = threading.Event(), threading.Event()
    handed: list[str] = []

    def slow() -> str:
        if handed:
            asked.set()
            assert go.wait(WAIT)
        handed.append(user(ALICE, exp=1 if refresh and not handed else 2_000_000_000))
        return handed[-1]

    backend = open_as(project, slow)
    fault = project.faults.order("delay" if refresh else "stall")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(head, backend)
        assert (asked if refresh else fault.arrived).wait(WAIT)
        backend.close()
        go.set()
        fault.go.set()
        with pytest.raises(BackendUnavailable):
            reading.result(WAIT)
    until(lambda: project.gateway.calls)  # what is held up is let go of, and is not the next test's
    assert len(project.gateway.calls) == 1
    assert backend._project._http is None


def test_closed_while_a_call_is_repeated(project: Project) -> None:
    """It is not repeated after that."""
    backend = open_service(project)
    saver = CheckpointSaver(backend, retry=PATIENT)
    fault = project.faults.order("503", times=1_000_000)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(saver.get_tuple, place())
        assert fault.arrived.wait(WAIT)
        saver.close()
        with pytest.raises(BackendError):
            reading.result(WAIT)
    assert backend._project._http is None


def test_a_store_is_closed_whoever_it_is_of(project: Project) -> None:
    """Also one that never learnt it."""
    session = Session(ALICE)
    session.is_online = False
    store = memory(project, key=ANON_KEY, access_token=session, retry_timeout=0)
    with store, pytest.raises(BackendUnavailable, match="ConnectionError"):
        store.load_messages("talk")
