"""A TCP proxy that understands just enough of RESP to count round trips and to cut at a chosen command."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

Fault = Literal["before", "after"]
_Fault = tuple[Fault, Callable[[bytes], bool]]

_NOTHING_DONE = (b"-NOSCRIPT", b"$4\r\nbase\r\n")
_GREETINGS = frozenset((b"AUTH", b"CLIENT", b"HELLO", b"SELECT"))


class Proxy:
    """Stands before a server. Use as a context manager.

    Attributes:
        upstream: The server's port, for connections from now on.
    """

    def __init__(self, port: int) -> None:
        self.upstream = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.commands: list[bytes] = []
        """Names of what clients sent, greetings left out."""
        self.trips = 0
        """How often a client waited for an answer, greetings left out."""
        self.sent = 0
        """Bytes from clients."""
        self.attempts = 0
        """Connections that clients made."""
        self.fired = 0
        """Faults that happened."""
        self._fault: _Fault | None = None
        self._lines: set[_Line] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"redis://127.0.0.1:{self.port}"

    def reset(self) -> None:
        """Count from zero."""
        self.trips = self.sent = self.attempts = 0
        self.commands = []

    def break_at(self, fault: Fault, matches: Callable[[bytes], bool]) -> None:
        """Cut the line over which such a command comes next: before the server has it, or after it has done it."""
        self._fault = (fault, matches)

    def mend(self) -> None:
        """Cut nothing, if it did not come to that."""
        self._fault = None

    def cut(self) -> None:
        """Cut all lines."""
        with self._lock:
            lines = list(self._lines)
        for line in lines:
            line.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.attempts += 1
            try:
                server = socket.create_connection(("127.0.0.1", self.upstream))
            except OSError:  # it is down
                client.close()
                continue
            line = _Line(client, server)
            with self._lock:
                self._lines.add(line)
            for run in (self._upwards, self._downwards):
                threading.Thread(target=self._pump, args=(run, line), daemon=True).start()

    def _pump(self, run: Callable[[_Line], None], line: _Line) -> None:
        with suppress(OSError):
            run(line)
        line.close()  # first: a line that `cut` does not find has to be closed
        with self._lock:
            self._lines.discard(line)

    def _upwards(self, line: _Line) -> None:
        buffered = bytearray()
        while data := line.client.recv(1 << 20):
            buffered += data
            while end := _end_of_command(buffered):
                command = bytes(buffered[:end])
                del buffered[:end]
                name = command.split(b"\r\n", 3)[2].upper()
                with self._lock:
                    self.sent += len(command)
                    if name not in _GREETINGS:
                        self.commands.append(name)
                        self.trips += not line.awaited
                        line.awaited = True
                    fault = self._fault
                    if fault and fault[1](command):
                        self._fault = None
                        if fault[0] == "before":
                            self.fired += 1
                            return
                        line.fault = fault
                line.server.sendall(command)

    def _downwards(self, line: _Line) -> None:
        while data := line.server.recv(1 << 20):
            if line.fault:
                if not data.startswith(_NOTHING_DONE):
                    self.fired += 1
                    return  # the server has answered; the client never hears it
                # It will be told the script, or the whole values.
                self._fault, line.fault = line.fault, None
            line.awaited = False
            line.client.sendall(data)


class _Line:
    """One client's, with what is known of it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.awaited = False
        self.fault: _Fault | None = None
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        for each in (self.client, self.server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def _end_of_command(buffered: bytearray) -> int:
    """Where the first command ends, 0 if it is not all there: an array of bulk strings."""
    at = buffered.find(b"\r\n") + 2
    if at < 2:
        return 0
    for _ in range(int(buffered[1 : at - 2])):
        end = buffered.find(b"\r\n", at) + 2
        if end < 2:
            return 0
        at = end + int(buffered[at + 1 : end - 2]) + 2
        if at > len(buffered):
            return 0
    return at
