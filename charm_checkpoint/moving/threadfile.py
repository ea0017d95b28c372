"""Threads as one file: written from any source, and a source itself. `docs/file-format.md` describes the file.

Written and read in one go, with no more of a thread in memory than the last value of each channel.
"""

from __future__ import annotations

import base64
import binascii
import errno
import gzip
import hashlib
import json
import math
import tempfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import IO, Any, BinaryIO, NamedTuple, cast

from charm_checkpoint import delta
from charm_checkpoint.backend import BlobRow, CheckpointRow, Entry, HeadRow, Snapshot, WriteRow
from charm_checkpoint.codec import valid_id
from charm_checkpoint.errors import (
    BackendCorrupt,
    BackendError,
    BackendFull,
    InvalidIdError,
    ThreadNotFoundError,
)
from charm_checkpoint.moving.copying import ROUNDS, CopyReport, OnExisting, copy_threads
from charm_checkpoint.moving.source import Key, Place, Source, Thread, key_of, source_of

__all__ = ["ExportReport", "export_threads", "import_threads", "opened_file"]

FORMAT = "charm-checkpoint threads"
VERSION = 1

# Namespaces whose last values both sides remember: those of subgraphs' calls come and do not come again.
_NAMESPACES = 32
_SPOOLED_BYTES, _COPIED_BYTES = 16 * 1024 * 1024, 1024 * 1024
_GZIP = b"\x1f\x8b"


class ExportReport(NamedTuple):
    """What `export_threads` wrote."""

    source: str
    threads: tuple[str, ...]
    checkpoints: int
    bytes: int
    """Of the file."""


def export_threads(
    source: Place,
    file: BinaryIO,
    threads: Iterable[str] | None = None,
    *,
    progress: Callable[[int, int], object] | None = None,
) -> ExportReport:
    """Write threads with their whole history into a file.

    Args:
        source: As for `copy_threads`.
        file: Open for writing; need not seek, and is not closed.
        threads: Their ids; `None` for all.
        progress: Called with how many threads are done, and how many there are.

    Raises:
        ThreadNotFoundError: There is no such thread; the file is not complete.
        BackendError: The source failed, or lost checkpoints of a thread faster than they could be read; likewise.
        BackendFull: There is no room for the file, or to put a thread together; likewise.
        BrokenPipeError: Whoever reads the file has ended.
    """
    origin = source_of(source)
    names = list(origin.threads() if threads is None else dict.fromkeys(threads))
    counted = _Counting(file)
    checkpoints = 0
    with gzip.GzipFile(
        fileobj=cast("BinaryIO", counted), mode="wb", filename="", mtime=0
    ) as zipped:
        lines = _Lines(zipped)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        lines.write({"format": FORMAT, "version": VERSION, "written_at": now})
        done = []
        for count, name in enumerate(names):
            if progress is not None:
                progress(count, len(names))
            written = _write_thread(lines, origin, valid_id(name, "thread_id"))
            if written is None:
                if threads is None:
                    continue  # deleted since it was listed
                raise ThreadNotFoundError(f"there is no thread {name!r} in {origin.name}")
            checkpoints += written
            done.append(name)
        end = {"threads": len(done), "checkpoints": checkpoints, "sha256": lines.digest}
        lines.write({"end": end})
    if progress is not None:
        progress(len(names), len(names))
    return ExportReport(origin.name, tuple(done), checkpoints, counted.size)


@contextmanager
def _on_disk(what: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        told = "there is no room left" if full else error.strerror or str(error)
        raise (BackendFull if full else BackendError)(f"{what}: {told}") from error


class _Counting:
    def __init__(self, file: BinaryIO | IO[bytes]) -> None:
        self._file = file
        self.size = 0

    def write(self, data: bytes) -> int:
        self.size += len(data)
        with _on_disk("the file cannot be written"):
            return self._file.write(data)

    def flush(self) -> None:
        with _on_disk("the file cannot be written"):
            self._file.flush()


class _Lines:
    def __init__(self, file: _Counting | gzip.GzipFile) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """Of every byte so far, in hex."""
        return self._hash.hexdigest()

    def write(self, line: dict[str, Any]) -> None:
        self.add(json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def add(self, data: bytes) -> None:
        """Write what lines were made of."""
        self._hash.update(data)
        self._file.write(data)


def _write_thread(lines: _Lines, source: Source, name: str) -> int | None:
    """Write a thread once it is known to be whole; tells how many checkpoints it has, `None` if it is not there."""
    for _ in range(ROUNDS):
        with _on_disk(f"{source.name} cannot be read"):
            thread = source.thread(name)
        if thread is None or not thread.heads:
            return None
        with tempfile.SpooledTemporaryFile(_SPOOLED_BYTES) as spool:
            lines_ = _Lines(_Counting(cast("IO[bytes]", spool)))
            seen = _write_entries(lines_, thread, _entries(source, name))
            if all((head.checkpoint_id, head.namespace) in seen for head in thread.heads):
                spool.seek(0)
                while data := spool.read(_COPIED_BYTES):
                    lines.add(data)
                return len(seen)
        # It was deleted while it was read, or went on, and what was its newest was pruned.
    raise BackendError(
        f"thread {name!r} lost checkpoints each of the {ROUNDS} times that it was read; export it again when nothing "
        "prunes it"
    )


def _entries(source: Source, name: str) -> Iterator[Entry]:
    with _on_disk(f"{source.name} cannot be read"):
        yield from source.entries(name)


def _write_entries(lines: _Lines, thread: Thread, entries: Iterator[Entry]) -> set[Key]:
    lines.write(
        {
            "thread": {
                "thread_id": thread.thread_id,
                "created_at": thread.created_at,
                "heads": [head._asdict() for head in thread.heads],
            }
        }
    )
    last: OrderedDict[str, dict[str, BlobRow]] = OrderedDict()
    seen: set[Key] = set()
    for entry in entries:
        seen.add(key_of(entry))
        before = last.setdefault(entry.namespace, {})
        last.move_to_end(entry.namespace)
        if len(last) > _NAMESPACES:
            lines.write({"forget": last.popitem(last=False)[0]})
        for blob in entry.snapshot.blobs:
            known = before.get(blob.channel)
            if known is None or known.version != blob.version:
                lines.write({"value": _told(entry.namespace, blob, known)})
                before[blob.channel] = blob
        row = entry.snapshot.checkpoint
        assert row is not None
        told = row._asdict()
        told.update(body=row.body.decode(), metadata=row.metadata.decode())
        writes = [{**write._asdict(), "data": _text(write.data)} for write in entry.snapshot.writes]
        line = {"namespace": entry.namespace, **told, "versions": dict(row.versions)}
        lines.write({"checkpoint": {**line, "writes": writes}})
    return seen


def _told(namespace: str, blob: BlobRow, before: BlobRow | None) -> dict[str, Any]:
    told = {
        "namespace": namespace,
        "channel": blob.channel,
        "version": blob.version,
        "type": blob.type,
    }
    parts = delta.parts(before.data, blob.data) if before is not None else None
    if parts is None:
        return {**told, "data": _text(blob.data)}
    return {**told, "parts": [_text(p) if isinstance(p, bytes) else list(p) for p in parts]}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


# -- reading -----------------------------------------------------------------------------------------------------------


@contextmanager
def opened_file(file: BinaryIO, name: str) -> Iterator[Source]:
    """Check a file from its first byte to its last, and give it as a source.

    Nothing in it is executed, and no value is loaded. What was unpacked lies in a temporary file meanwhile, which only
    this process can see.

    Args:
        file: Open for reading; need not seek, and is not closed.
        name: What to call it in messages.

    Raises:
        BackendCorrupt: It is no such file, damaged, cut short, or of a newer version.
        BackendFull: There is no room to unpack it.
    """
    with tempfile.SpooledTemporaryFile(_SPOOLED_BYTES) as spool:
        with _on_disk(f"{name} cannot be unpacked"):
            parts = _unpack(file, spool, name)
        yield _FileSource(name, spool, parts)


def import_threads(
    file: BinaryIO,
    target: Place,
    threads: Iterable[str] | None = None,
    *,
    name: str = "the file",
    on_existing: OnExisting = "fail",
    dry_run: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> CopyReport:
    """Copy threads out of a file that `export_threads` wrote, as `copy_threads` does.

    The whole file is checked before anything is copied.

    Args:
        file: Open for reading; need not seek, and is not closed.
        target: As for `copy_threads`, and so are the others.
        threads: Their ids; `None` for all.
        name: What to call the file in messages.
        on_existing: What to do about a thread that the target has in another state.
        dry_run: Only tell what would be done.
        progress: Called with how many threads are done, and how many there are.

    Raises:
        BackendCorrupt: It is no such file, damaged, cut short, or of a newer version; nothing was copied.
        BackendFull: There is no room to unpack it; likewise.
        CheckpointStoreError: As `copy_threads`.
    """
    with opened_file(file, name) as source:
        return copy_threads(
            source, target, threads, on_existing=on_existing, dry_run=dry_run, progress=progress
        )


class _Part(NamedTuple):
    thread: Thread
    offset: int


class _FileSource:
    def __init__(self, name: str, spool: IO[bytes], parts: dict[str, _Part]) -> None:
        self.name = name
        self._spool = spool
        self._parts = parts

    def threads(self) -> Iterator[str]:
        return iter(self._parts)

    def thread(self, thread_id: str) -> Thread | None:
        part = self._parts.get(thread_id)
        return part.thread if part else None

    def entries(self, thread_id: str) -> Iterator[Entry]:
        offset = self._parts[thread_id].offset
        last: dict[str, dict[str, BlobRow]] = {}
        while True:
            self._spool.seek(offset)
            line = self._spool.readline()
            offset = self._spool.tell()
            with _understood(self.name):
                [(kind, told)] = json.loads(line).items()
                if kind in ("thread", "end"):
                    return
                if kind == "forget":
                    last.pop(told, None)
                    continue
                values = last.setdefault(_namespace(told["namespace"]), {})
                if kind == "value":
                    values[told["channel"]] = _blob(told, values.get(told["channel"]))
                    continue
                entry = _entry(thread_id, told, values)
            yield entry


def _unpack(file: BinaryIO, spool: IO[bytes], name: str) -> dict[str, _Part]:
    """Copy the lines of a file, and tell where each thread's begin."""
    parts: dict[str, _Part] = {}
    heads: set[Key] = set()
    checkpoints = 0
    hashed = hashlib.sha256()
    end: dict[str, Any] | None = None
    with _understood(name), gzip.GzipFile(fileobj=file) as lines:
        first = lines.readline()
        _check_version(first, name)
        hashed.update(first)
        spool.write(first)
        for line in lines:
            if end is not None:
                raise BackendCorrupt(f"{name} goes on behind its end; nothing was read from it")
            [(kind, told)] = json.loads(line).items()
            if kind in ("thread", "end") and heads:
                raise ValueError(
                    f"there is no checkpoint {min(heads)[0]!r}, which a thread goes on from"
                )
            if kind == "thread":
                thread = _thread(told)
                heads = {(head.checkpoint_id, head.namespace) for head in thread.heads}
                if thread.thread_id in parts:
                    raise ValueError(f"thread {thread.thread_id!r} is there twice")
                parts[thread.thread_id] = _Part(thread, spool.tell() + len(line))
            elif kind == "end":
                end = {**told, "found": hashed.hexdigest()}
            elif kind == "checkpoint":
                checkpoints += 1
                heads.discard((told["checkpoint_id"], told["namespace"]))
            elif kind not in ("value", "forget"):
                raise ValueError(f"a line of kind {kind!r}")
            hashed.update(line)
            spool.write(line)
    if end is None:
        raise BackendCorrupt(f"{name} is cut short; nothing was read from it")
    found = (len(parts), checkpoints, end["found"])
    if found != (end.get("threads"), end.get("checkpoints"), end.get("sha256")):
        raise BackendCorrupt(f"{name} is damaged: its checksum is wrong; nothing was read from it")
    return parts


def _check_version(line: bytes, name: str) -> None:
    head = json.loads(line or b"null")
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise BackendCorrupt(f"{name} is no file that charm-checkpoint export wrote")
    if not isinstance(head["version"], int) or head["version"] < 1:
        raise ValueError("a version is expected")
    if head["version"] > VERSION:
        raise BackendCorrupt(
            f"{name} has version {head['version']}, this release knows {VERSION}; nothing was read from it. Upgrade "
            "charm-checkpoint"
        )


@contextmanager
def _understood(name: str) -> Iterator[None]:
    try:
        yield
    except gzip.BadGzipFile as error:
        raise BackendCorrupt(
            f"{name} is no file that charm-checkpoint export wrote, or damaged ({error}); nothing was read from it"
        ) from error
    except EOFError as error:
        raise BackendCorrupt(f"{name} is cut short; nothing was read from it") from error
    except (
        zlib.error,
        binascii.Error,
        InvalidIdError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
        RecursionError,
    ) as error:
        raise BackendCorrupt(
            f"{name} is damaged, or was not written by charm-checkpoint export ({type(error).__name__}: {error})"
        ) from error


def _thread(told: Any) -> Thread:
    heads = [
        HeadRow(
            _namespace(head["namespace"]),
            valid_id(head["checkpoint_id"], "checkpoint id"),
            _string(head["device"]),
            _moment(head["moved_at"]),
        )
        for head in told["heads"]
    ]
    if not heads:
        raise ValueError("a thread without a newest checkpoint")
    if len({head.namespace for head in heads}) < len(heads):
        raise ValueError("a namespace with two newest checkpoints")
    thread_id = valid_id(told["thread_id"], "thread id")
    return Thread(thread_id, _moment(told["created_at"]), tuple(heads))


def _blob(told: Any, before: BlobRow | None) -> BlobRow:
    if "data" in told:
        data = base64.b64decode(told["data"], validate=True)
    else:
        base = memoryview(before.data if before else b"")
        pieces: list[bytes | memoryview] = []
        for part in told["parts"]:
            if isinstance(part, str):
                pieces.append(base64.b64decode(part, validate=True))
            else:
                start, length = part
                if not 0 <= start <= start + length <= len(base):
                    raise ValueError("a part lies outside of the value before")
                pieces.append(base[start : start + length])
        data = b"".join(pieces)
    return BlobRow(_string(told["channel"]), _string(told["version"]), _string(told["type"]), data)


def _entry(thread_id: str, told: Any, values: dict[str, BlobRow]) -> Entry:
    namespace = _namespace(told["namespace"])
    versions = {_string(channel): _string(v) for channel, v in told["versions"].items()}
    row = CheckpointRow(
        checkpoint_id=valid_id(told["checkpoint_id"], "checkpoint id"),
        parent_id=_optional(told["parent_id"]),
        format=_whole(told["format"]),
        body=_object(told["body"]),
        versions=versions,
        metadata=_object(told["metadata"]),
        run_id=_optional(told["run_id"]),
        root_id=_optional(told["root_id"]),
        device=_string(told["device"]),
        created_at=_moment(told["created_at"]),
    )
    blobs = [
        values[c] for c, version in versions.items() if c in values and values[c][1] == version
    ]
    writes = [
        WriteRow(
            valid_id(write["task_id"], "task id"),
            _whole(write["idx"]),
            _string(write["channel"]),
            _string(write["task_path"]),
            _string(write["type"]),
            base64.b64decode(write["data"], validate=True),
        )
        for write in told["writes"]
    ]
    return Entry(thread_id, namespace, Snapshot(row, blobs, writes))


def _namespace(value: Any) -> str:
    return valid_id(value, "namespace", limit=16 * 1024) if value != "" else ""


def _optional(value: Any) -> str | None:
    return None if value is None else _string(value)


def _whole(value: Any) -> int:
    """A number that any database takes."""
    if not isinstance(value, int) or not -(2**31) <= value < 2**31:
        raise ValueError("a whole number of 32 bits is expected")
    return int(value)


def _moment(value: Any) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError("seconds are expected")
    return float(value)


def _string(value: Any) -> str:
    """Text that any database takes."""
    if not isinstance(value, str):
        raise TypeError(f"text is expected, not {type(value).__name__}")
    value.encode()
    if "\x00" in value:
        raise ValueError("a name holds a NUL")
    return value


def _object(value: Any) -> bytes:
    text = _string(value)
    if not isinstance(json.loads(text), dict):
        raise TypeError("an object is expected")
    return text.encode()
