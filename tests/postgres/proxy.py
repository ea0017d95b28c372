"""A TCP proxy that understands just enough of Postgres's protocol to count round trips and to cut at a chosen point."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

Fault = Literal["before", "after"]

_QUERY, _SYNC = b"Q", b"S"


class Proxy:
    """Stands before a server. Use as a context manager; connect with `sslmode=disable gssencmode=disable`."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.trips = 0
        """Messages that a client waits for an answer to, logins left out."""
        self.sent = 0
        """Bytes from clients."""
        self.attempts = 0
        """Connections that clients made."""
        self.fired = 0
        """Faults that happened."""
        self._fault: tuple[Fault, bytes] | None = None
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    def reset(self) -> None:
        """Count from zero."""
        self.trips = self.sent = 0

    def break_at(self, fault: Fault, text: bytes) -> None:
        """Cut the connection that next sends `text`: before the server has it, or after it has answered."""
        self._fault = (fault, text)

    def cut(self) -> None:
        """Cut all connections."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._close(pair)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.attempts += 1
            try:
                server = socket.create_connection(("127.0.0.1", self._upstream))
            except OSError:  # it is down
                client.close()
                continue
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = (client, server)
            with self._lock:
                self._pairs.add(pair)
            mute = threading.Event()
            for run in (self._upwards, self._downwards):
                threading.Thread(target=self._pump, args=(run, pair, mute), daemon=True).start()

    def _pump(
        self,
        run: Callable[[socket.socket, socket.socket, threading.Event], None],
        pair: tuple[socket.socket, socket.socket],
        mute: threading.Event,
    ) -> None:
        with suppress(OSError):
            run(*pair, mute)
        self._close(pair)

    def _close(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            self._pairs.discard(pair)
        for each in pair:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _upwards(self, client: socket.socket, server: socket.socket, mute: threading.Event) -> None:
        buffered, started = b"", False
        while data := client.recv(1 << 20):
            if started:
                self.sent += len(data)
            buffered += data
            fault = self._fault
            if fault and fault[1] in data:
                self._fault = None
                self.fired += 1
                if fault[0] == "before":
                    return
                mute.set()
            while len(buffered) >= (5 if started else 4):
                kind = buffered[:1] if started else b""
                (size,) = struct.unpack_from(">i", buffered, len(kind))
                if len(buffered) < size + len(kind):
                    break
                started = True
                self.trips += kind in (_QUERY, _SYNC)
                buffered = buffered[size + len(kind) :]
            server.sendall(data)

    def _downwards(
        self, client: socket.socket, server: socket.socket, mute: threading.Event
    ) -> None:
        while data := server.recv(1 << 20):
            if mute.is_set():
                return  # the server has answered; the client never hears it
            client.sendall(data)
