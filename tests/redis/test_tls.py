"""`rediss://`. The servers of the tests are built without TLS: a small proxy that ends it is a stand-in for one."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from charm_checkpoint import open_store
from charm_checkpoint.errors import BackendError, BackendUnavailable
from charm_checkpoint.testing.colours import place
from charm_checkpoint.testing.scenarios import chat, turn
from tests.redis.server import Server


class _Authority(NamedTuple):
    """One that signs certificates, and a file with its own."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    file: Path


def _authority(folder: Path, name: str) -> _Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = _certificate(own, own, key, key, is_authority=True)
    file = folder / f"{name}.pem"
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return _Authority(key, certificate, file)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    *,
    is_authority: bool,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.timezone.utc)
    usage = x509.KeyUsage(
        **dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
        ),
        **dict.fromkeys(("encipher_only", "decipher_only"), False),
        digital_signature=True,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA256())
    )


class _TlsProxy:
    """Ends TLS before a server. Use as a context manager."""

    def __init__(self, upstream: int, context: ssl.SSLContext) -> None:
        self._upstream = upstream
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> _TlsProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with (
            suppress(OSError),
            plain,
            self._context.wrap_socket(plain, server_side=True) as client,
            socket.create_connection(("127.0.0.1", self._upstream)) as server,
        ):
            back = threading.Thread(target=_pump, args=(server, client), daemon=True)
            back.start()
            _pump(client, server)
            back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[_Authority, _Authority]:
    folder = tmp_path_factory.mktemp("authorities")
    return _authority(folder, "right"), _authority(folder, "wrong")


@pytest.fixture
def tls(
    server: Server, authorities: tuple[_Authority, _Authority], tmp_path: Path
) -> Iterator[_TlsProxy]:
    authority, key = authorities[0], ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
    made = _certificate(name, authority.certificate.subject, key, authority.key, is_authority=False)
    file = tmp_path / "server.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with _TlsProxy(server.port, context) as proxy:
        yield proxy


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
def test_a_server_whose_authority_is_known(
    scheme: str, tls: _TlsProxy, authorities: tuple[_Authority, _Authority], prefix: str
) -> None:
    url = f"{scheme}://127.0.0.1:{tls.port}?ssl_ca_certs={authorities[0].file}"
    with open_store(url, prefix=prefix) as memory:
        graph = chat(memory.get_langgraph_checkpointer())
        graph.invoke(turn("hi"), place())
        assert graph.get_state(place()).values["items"] == ["hi", "said hi"]


@pytest.mark.parametrize("known", ["another", "none"])
def test_a_server_whose_authority_is_not_known(
    known: str, tls: _TlsProxy, authorities: tuple[_Authority, _Authority], prefix: str
) -> None:
    """It is told at once, with what to do: to ask again does not help."""
    options = f"?ssl_ca_certs={authorities[1].file}" if known == "another" else ""
    url = f"rediss://:s3cret@127.0.0.1:{tls.port}{options}"
    with open_store(url, prefix=prefix) as memory:
        with pytest.raises(BackendError, match=r"certificate.*ssl_ca_certs") as refused:
            memory.load_messages("thread")
        assert not isinstance(refused.value, BackendUnavailable), "it would be asked again"
        assert "s3cret" not in str(refused.value)


def test_a_server_without_tls(server: Server, prefix: str) -> None:
    url = f"rediss://:s3cret@127.0.0.1:{server.port}"
    with open_store(url, prefix=prefix, timeout=1, retry_timeout=0) as memory:
        with pytest.raises(BackendUnavailable, match="cannot be reached") as refused:
            memory.load_messages("thread")
        assert "s3cret" not in str(refused.value)
