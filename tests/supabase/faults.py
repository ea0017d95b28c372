"""What can go wrong between a client and a project, on order."""

from __future__ import annotations

import threading
from typing import Literal, NamedTuple

__all__ = ["JSON", "Answer", "Fault", "Faults", "Kind"]

JSON = {"Content-Type": "application/json; charset=utf-8"}

Kind = Literal[
    "200", "302", "403", "502", "503", "429", "delay", "stall", "before", "after", "half"
]


class Answer(NamedTuple):
    """An HTTP response."""

    status: int
    body: bytes
    headers: dict[str, str] = {}  # noqa: RUF012 - never written to


class Fault:
    """What happens to the next `times` calls of a function, or to those of any, when `after` of them went well.

    Attributes:
        kind: `"{}"`: another service answers. `"200"`, `"302"`, `"403"`: a network wants somebody to sign in. `"502"`:
            a page of HTML, from what stands before the project. `"503"`: PostgREST has lost its database. `"429"`: too
            many requests. `"delay"`: seconds on the way. `"stall"`: held up on the way until `go` is set. `"before"`:
            the connection breaks on the way. `"after"`: it breaks after the commit, on the way back. `"half"`: like
            that, in the midst of the answer.
        seconds: The delay, or what `Retry-After` says.
        arrived: Set when it has happened once.
        fired: How often it has happened.
    """

    def __init__(
        self, kind: Kind, function: str | None, times: int, seconds: float, after: int
    ) -> None:
        self.kind = kind
        self.function = function
        self.seconds = seconds
        self.left = times
        self.after = after
        self.fired = 0
        self.arrived = threading.Event()
        self.go = threading.Event()

    def instead(self) -> Answer | None:
        """What is answered in the project's place, if it is."""
        if self.kind == "{}":
            return Answer(200, b"{}", JSON)
        if self.kind in ("200", "302", "403"):
            page = b"<html><body>Welcome to our hotel</body></html>"
            headers = {"Content-Type": "text/html", "Location": "/rest/v1/rpc/elsewhere"}
            return Answer(int(self.kind), page, headers)
        if self.kind == "502":
            page = (
                b"<html><head><title>502 Bad Gateway</title></head><body>cloudflare</body></html>"
            )
            return Answer(502, page, {"Content-Type": "text/html"})
        if self.kind == "503":
            body = (
                b'{"code":"PGRST001","details":null,"hint":null,"message":"Database client error."}'
            )
            return Answer(503, body, {**JSON, "Retry-After": f"{self.seconds:g}"})
        if self.kind == "429":
            body = b'{"message":"API rate limit exceeded"}'
            return Answer(429, body, {**JSON, "Retry-After": f"{self.seconds:g}"})
        return None

    def hold(self) -> None:
        """Let the call wait, if it has to."""
        if self.kind == "delay":
            self.go.wait(self.seconds)
        elif self.kind == "stall":
            self.go.wait()


class Faults:
    """Those that are ordered, the oldest first."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []
        self._lock = threading.Lock()

    def order(
        self,
        kind: Kind,
        function: str | None = None,
        *,
        times: int = 1,
        seconds: float = 0.0,
        after: int = 0,
    ) -> Fault:
        fault = Fault(kind, function, times, seconds, after)
        with self._lock:
            self._waiting.append(fault)
        return fault

    def clear(self) -> None:
        """Forget them, and let go of what is held up."""
        with self._lock:
            ordered, self._waiting = self._waiting, []
        for fault in ordered:
            fault.go.set()

    def take(self, function: str | None) -> Fault | None:
        """The one that this call meets."""
        with self._lock:
            for fault in self._waiting:
                if fault.left and fault.function in (None, function):
                    if fault.after:
                        fault.after -= 1
                        continue
                    fault.left -= 1
                    fault.fired += 1
                    fault.arrived.set()
                    return fault
        return None
