"""`doctor`: is this installation, this store and this clock fit to keep threads?"""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from rich.console import Console
from rich.table import Table

from charm_checkpoint import clock
from charm_checkpoint.backend import Backend, CheckpointRow, Scan
from charm_checkpoint.cli.output import amount, local, printable, size
from charm_checkpoint.cli.reports import Check, Diagnosis
from charm_checkpoint.cli.stores import is_made, not_made, store_name
from charm_checkpoint.cli.sync import entries_of, status, told
from charm_checkpoint.cli.transfer import reach
from charm_checkpoint.cli.versions import version_of
from charm_checkpoint.errors import BackendError, BackendUnavailable, TypeNotAllowedError
from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.replica import ReplicaBackend, ReplicaStore
from charm_checkpoint.replica.lock import ProcessLock
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.sqlite import SqliteBackend
from charm_checkpoint.store import CheckpointStore

__all__ = ["gather", "render"]

_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}
_LITTLE_ROOM = 200 * 2**20
_NO_ROOM = 10 * 2**20
_CHECK_SECONDS = 30.0
# Less is what clocks that are set over the network differ by.
_AHEAD_SECONDS = 1.0
# 100 ns ticks from 1582-10-15, where UUIDs begin to count, to 1970-01-01.
_UNIX_EPOCH = 0x01B21DD213814000
_TICKS = 10_000_000


def gather(store: CheckpointStore) -> Diagnosis:
    """Run every check; none of them changes the store."""
    checks = [*_installation(), *_order(), *_store(store)]
    return {
        "store": store_name(store),
        "ok": all(check["status"] != "fail" for check in checks),
        "checks": checks,
    }


def _check(name: str, status: Literal["ok", "warn", "fail"], detail: str) -> Check:
    return {"name": name, "status": status, "detail": detail}


# -- the installation --------------------------------------------------------------------------------------------------


def _installation() -> Iterator[Check]:
    yield _check("python", "ok", f"{platform.python_version()} on {platform.system()}")
    for name in ("charm-checkpoint", "langgraph-checkpoint", "langchain-core"):
        version = version_of(name)
        found = version or "imported, but not installed: its entry points are not found"
        yield _check(name, "ok" if version else "warn", found)
    version = version_of("langgraph")
    yield _check("langgraph", "ok", version or "not installed; only agents that are graphs need it")
    yield _check("strict types", *_strictness())


def _strictness() -> tuple[Literal["ok", "warn"], str]:
    """Whether only known types are read back, and compiled graphs make theirs known."""
    if version_of("langgraph") and not _graph_tells_its_types():
        return "warn", (
            "this LangGraph does not tell stores the types of a graph's state, so they are refused: name them in "
            "allow=[…]"
        )
    if os.environ.get("LANGGRAPH_STRICT_MSGPACK", "").lower() in ("1", "true", "yes"):
        return "ok", "always on for this project's stores; other savers, too"
    return "ok", (
        "always on for this project's stores; LANGGRAPH_STRICT_MSGPACK is not set: other savers in a program still "
        "read any type"
    )


@dataclass
class _Probe:
    """The state of a graph, of a type that no saver knows by itself."""

    number: int = 7


def _graph_tells_its_types() -> bool:
    from langgraph.graph import START, StateGraph

    saver = CheckpointSaver(MemoryBackend())
    builder = StateGraph(_Probe).add_node("probe", lambda state: {}).add_edge(START, "probe")
    told: Any = builder.compile(checkpointer=saver).checkpointer
    try:
        return bool(told.serde.loads_typed(told.serde.dumps_typed(_Probe())) == _Probe())
    except TypeNotAllowedError:
        return False
    finally:
        saver.close()


# -- order and clocks --------------------------------------------------------------------------------------------------


def _order() -> Iterator[Check]:
    from langgraph.checkpoint.base.id import uuid6

    now = int(time.time() * _TICKS) + _UNIX_EPOCH
    ahead = now + 3600 * _TICKS
    digits = f"{ahead:015x}"
    clock.observe(f"{digits[:8]}-{digits[8:12]}-6{digits[12:]}-8000-000000000000")
    follows = (clock.timestamp(str(uuid6())) or 0) > ahead
    yield _check(
        "checkpoint ids",
        "ok" if follows else "fail",
        "new ones sort after those of devices whose clock is ahead"
        if follows
        else "new ones can sort before what was read: use a langgraph-checkpoint that this release knows",
    )


def _clock(store: CheckpointStore) -> Iterator[Check]:
    query = Scan(limit=1, values=False)
    engine = store.get_langgraph_checkpointer().engine
    entries = engine.call(lambda backend: backend.scan(query)).entries
    newest: CheckpointRow | None = entries[0].snapshot.checkpoint if entries else None
    ticks = clock.timestamp(newest.checkpoint_id) if newest else None
    if newest is None or ticks is None:
        yield _check("clock", "ok", "no checkpoint to compare it with")
        return
    ahead = (ticks - _UNIX_EPOCH) / _TICKS - time.time()
    if ahead < _AHEAD_SECONDS:
        yield _check("clock", "ok", "no checkpoint is from the future")
        return
    yield _check(
        "clock",
        "warn",
        f"the newest checkpoint, written by {newest.device}, is {_duration(ahead)} ahead of this device's clock; no "
        "turn is lost by that, but times are not to be trusted: set the clocks",
    )


def _duration(seconds: float) -> str:
    for length, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if (count := round(seconds / length)) >= 2:
            return f"{count} {unit}"
    return f"{seconds:.0f} seconds"


# -- the store ---------------------------------------------------------------------------------------------------------


def _store(store: CheckpointStore) -> Iterator[Check]:
    saver = store.get_langgraph_checkpointer()
    yield _check("device", "ok", f"this one is called {saver.device}")
    if isinstance(store, ReplicaStore):
        yield from _replica(store)
    if not is_made(store):
        yield _check("store", "ok", f"{not_made(store)}: the first use makes what is missing")
        return
    try:
        count = len(list(store.threads(limit=1000)))
        number = "1000 threads or more" if count == 1000 else f"{count} thread{'s' * (count != 1)}"
        yield _check("store", "ok", f"{store_name(store)}: {number}")
        yield from _clock(store)
        backend = saver.engine.backend
        if isinstance(backend, (SqliteBackend, ReplicaBackend)):
            yield from _sqlite(backend)
        yield from _own(backend)
    except BackendError as error:
        yield _check("store", "fail", str(error))


def _own(backend: Backend) -> Iterator[Check]:
    """What a backend can tell about its database."""
    diagnose = getattr(backend, "diagnose", None)
    if diagnose is not None:
        for finding in diagnose():
            yield _check(*finding)


def _replica(store: ReplicaStore) -> Iterator[Check]:
    """Before anything is asked of the store, which would begin to send what waits."""
    behind = store_name(store.remote)
    if is_made(store):
        try:
            found = status(store, 1)
        except BackendError as error:
            yield _check("replica", "fail", str(error))
            return
        yield _check("replica", "ok", f"{found['path']}, in front of {behind}")
        yield _check("sender's lock", *_lock(Path(found["path"])))
        waiting = "everything is at the store behind"
        if found["entries"]:
            entries = entries_of(found["entries"], found["thread_count"])
            waiting = f"{entries} ({size(found['bytes'])}) since {local(found['since'])}"
        yield _check("to be sent", "warn" if found["entries"] else "ok", waiting)
        undecided = found["conflicts"]
        yield _check(
            "conflicts",
            "warn" if undecided else "ok",
            f"{amount(undecided, 'branch', 'branches')} that wait for somebody to decide: charm-checkpoint conflicts"
            if undecided
            else "none",
        )
    if not is_made(store.remote):
        missing = f"{not_made(store.remote)}: the first use makes what is missing"
        yield _check("store behind", "ok", missing)
        return
    try:
        reach(store)
        yield _check("store behind", "ok", f"{behind} answers")
        yield from _own(store.remote.get_langgraph_checkpointer().engine.backend)
    except BackendUnavailable as error:
        detail = f"it is away, and agents go on with what is here: {told(str(error))}"
        yield _check("store behind", "warn", detail)
    except BackendError as error:
        yield _check("store behind", "fail", str(error))


def _lock(path: Path) -> tuple[Literal["ok", "fail"], str]:
    """Whether only one process of this device can be the one that sends."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}-") as file:
            mine, other = ProcessLock(Path(file.name)), ProcessLock(Path(file.name))
            held = mine.acquire()
            shared = held and other.acquire()
            mine.release()
            other.release()
    except OSError as error:
        return "fail", f"{path.parent} cannot be written ({error.strerror})"
    if not held:
        return (
            "fail",
            f"files in {path.parent} cannot be locked, so nothing is sent: use a local disk",
        )
    if shared:
        return "fail", f"locks do not hold in {path.parent} (a network mount?): use a local disk"
    return "ok", "one process of this device sends at a time"


def _sqlite(backend: SqliteBackend | ReplicaBackend) -> Iterator[Check]:
    path = backend.path
    yield _check("sqlite", "ok", sqlite3.sqlite_version)
    yield _check(
        "journal",
        "ok" if backend.journal_mode == "wal" else "warn",
        "write-ahead log"
        if backend.journal_mode == "wal"
        else f"rollback journal ({backend.journal_mode}): readers and writers wait for each other; is this a network "
        "mount?",
    )
    yield from _guarded("writable", lambda: _writable(path))
    yield from _guarded("integrity", lambda: _integrity(path))
    if os.name == "posix":
        yield _check("file mode", *_privacy(path))
    yield _check("free space", *_room(path))


def _guarded(name: str, check: Callable[[], Check]) -> Iterator[Check]:
    try:
        yield check()
    except sqlite3.Error as error:
        yield _check(name, "fail", str(error))


def _connect(path: Path) -> sqlite3.Connection:
    # Never makes a file, and takes no part in transactions by itself.
    return sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, isolation_level=None)


def _writable(path: Path) -> Check:
    with closing(_connect(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    return _check("writable", "ok", "a write was begun and taken back")


def _integrity(path: Path) -> Check:
    deadline = time.monotonic() + _CHECK_SECONDS
    with closing(_connect(path)) as connection:
        connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
        try:
            found = [row[0] for row in connection.execute("PRAGMA quick_check(3)")]
        except sqlite3.OperationalError as error:
            if "interrupted" not in str(error):
                raise
            return _check("integrity", "warn", f"not all looked at within {_CHECK_SECONDS:.0f} s")
    if found == ["ok"]:
        return _check("integrity", "ok", "SQLite's quick check found nothing")
    return _check("integrity", "fail", f"restore a backup: {'; '.join(map(str, found))}")


def _privacy(path: Path) -> tuple[Literal["ok", "warn"], str]:
    files = [path, *(Path(f"{path}{suffix}") for suffix in ("-wal", "-shm", "-journal"))]
    exposed = [
        f"{file.name} is {stat.S_IMODE(file.stat().st_mode):04o}"
        for file in files
        if file.exists() and file.stat().st_mode & 0o077
    ]
    if exposed:
        return "warn", f"others can read or write it ({', '.join(exposed)}): chmod 600"
    return "ok", "0600, this user's alone"


def _room(path: Path) -> tuple[Literal["ok", "warn", "fail"], str]:
    free, taken = shutil.disk_usage(path.parent).free, path.stat().st_size
    text = f"{size(free)} on the disk; the file has {size(taken)}"
    if free < _NO_ROOM:
        return "fail", text
    return ("warn" if free < max(_LITTLE_ROOM, taken) else "ok"), text


# -- drawing -----------------------------------------------------------------------------------------------------------


def render(report: Diagnosis, console: Console) -> None:
    """One line per check, then the verdict."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in report["checks"]:
        status = check["status"]
        style = _STYLES[status] if status != "ok" else None
        table.add_row(status, check["name"], printable(check["detail"]), style=style)
    console.print(table)
    statuses = [check["status"] for check in report["checks"]]
    failed, warned = statuses.count("fail"), statuses.count("warn")
    if failed or warned:
        console.print(f"\n{failed} failed, {warned} to look at.")
    else:
        console.print("\nAll is well.")
