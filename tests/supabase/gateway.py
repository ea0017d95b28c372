"""What stands before PostgREST in a Supabase project: HTTP, the key of the project, and what goes wrong on the way."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.supabase.faults import JSON, Answer, Faults
from tests.supabase.postgrest import PostgREST, Request
from tests.supabase.tokens import token

__all__ = ["ANON_KEY", "SERVICE_KEY", "Call", "Gateway"]

ANON_KEY, SERVICE_KEY = token("anon"), token("service_role")

_ROOT = "/rest/v1/"


class Call(NamedTuple):
    """A request, and what became of it."""

    request: Request
    status: int
    """0 for none."""
    received: int
    """Bytes of the answer's body."""
    began: float
    ended: float
    """Seconds of `time.monotonic`."""

    @property
    def function(self) -> str:
        return self.request.path.removeprefix("rpc/")

    @property
    def sent(self) -> int:
        """Bytes of the request's body."""
        return len(self.request.body)


class Gateway:
    """A project at `url`. Use as a context manager."""

    def __init__(self, postgrest: PostgREST) -> None:
        self.postgrest = postgrest
        self.faults = Faults()
        self.calls: list[Call] = []
        """In the order of their answers."""
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Gateway:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.faults.clear()
        self._server.shutdown()
        self._thread.join()
        self._server.close()

    def answer(self, request: Request) -> Answer:
        key = request.headers.get("apikey")
        if not key:
            hint = (
                "No `apikey` request header or url param was found."  # the latter is not done here
            )
            return _refused("No API key found in request", hint)
        if key not in (ANON_KEY, SERVICE_KEY):
            hint = "Double check your Supabase `anon` or `service_role` API key."
            return _refused("Invalid API key", hint)
        return self.postgrest.answer(request)


def _refused(message: str, hint: str) -> Answer:
    return Answer(401, json.dumps({"message": message, "hint": hint}).encode(), JSON)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def close(self) -> None:
        """End, with all connections."""
        for each in list(self.open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.open.add(self.connection)

    def finish(self) -> None:
        self.server.open.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: tests are quiet."""

    def _serve(self) -> None:
        began, gateway = time.monotonic(), self.server.gateway
        parts = urlsplit(self.path)
        request = Request(
            self.command,
            unquote(parts.path.removeprefix(_ROOT)),
            parse_qsl(parts.query, keep_blank_values=True),
            {name.lower(): value for name, value in self.headers.items()},
            self.rfile.read(int(self.headers.get("Content-Length", 0))),
        )
        fault = gateway.faults.take(request.path.removeprefix("rpc/"))
        kind, answer = None, None
        if fault is not None:
            fault.hold()
            kind, answer = fault.kind, fault.instead()
        if not parts.path.startswith(_ROOT):
            answer = Answer(404, b'{"message":"no Route matched with those values"}', JSON)
        elif kind == "before":
            answer = Answer(0, b"")
        answer = answer or gateway.answer(request)
        call = Call(request, answer.status, len(answer.body), began, time.monotonic())
        gateway.calls.append(call)
        if kind not in ("before", "after"):
            self._tell(answer, half=kind == "half")
        if kind in ("before", "after", "half"):
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def _tell(self, answer: Answer, *, half: bool) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.status != 204:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if half else answer.body)
        self.wfile.flush()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _serve  # noqa: N815
