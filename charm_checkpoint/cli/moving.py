"""`copy`, `export`, `import` and `fork`: threads from one place to another."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from rich.console import Console

from charm_checkpoint.cli.output import amount, iso, printable, progress, size
from charm_checkpoint.cli.reports import Copied, Copy, Export, Fork
from charm_checkpoint.cli.stores import is_made, known_thread, store_name
from charm_checkpoint.cli.threads import list_threads
from charm_checkpoint.config import mask
from charm_checkpoint.errors import BackendError, ConfigError, ThreadNotFoundError
from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.moving import (
    CopyReport,
    copy_threads,
    export_threads,
    import_threads,
)
from charm_checkpoint.moving.copying import OnExisting
from charm_checkpoint.store import CheckpointStore

__all__ = [
    "copy",
    "export",
    "fork",
    "import_file",
    "render_copy",
    "render_export",
    "render_fork",
]


def copy(
    source: CheckpointStore,
    target: CheckpointStore,
    threads: Sequence[str] | None,
    on_existing: str,
    *,
    dry_run: bool,
) -> Copy:
    """Copy threads from store to store; none named means all.

    Raises:
        ConfigError: Both are the same store.
    """
    if store_name(source) == store_name(target):
        raise ConfigError(f"FROM and TO are both {store_name(source)}; fork copies within a store")
    into = MemoryBackend() if dry_run and not is_made(target) else target
    with progress("Copying", 0) as show:
        report = copy_threads(
            source.source(),
            into,
            threads,
            on_existing=cast("OnExisting", on_existing),
            dry_run=dry_run,
            progress=show,
        )
    return _copy(report, store_name(target))


def import_file(
    store: CheckpointStore,
    path: str,
    threads: Sequence[str] | None,
    on_existing: str,
    *,
    dry_run: bool,
) -> Copy:
    """Copy threads out of a file, or out of standard input for `-`."""
    into = MemoryBackend() if dry_run and not is_made(store) else store
    name = "standard input" if path == "-" else path
    with _reading(path) as file, progress("Importing", 0) as show:
        report = import_threads(
            file,
            into,
            threads,
            name=name,
            on_existing=cast("OnExisting", on_existing),
            dry_run=dry_run,
            progress=show,
        )
    return _copy(report, store_name(store))


def _copy(report: CopyReport, target: str) -> Copy:
    return {
        "source": str(mask(report.source)),
        "target": target,
        "dry_run": report.dry_run,
        "verified": not report.dry_run,
        "threads": [_copied(thread._asdict()) for thread in report.threads],
        "checkpoints": sum(thread.sent for thread in report.threads),
        "left": [thread.thread_id for thread in report.left],
    }


def _copied(fields: dict[str, object]) -> Copied:
    names = Copied.__annotations__
    return cast("Copied", {name: fields[name] for name in names})


def render_copy(report: Copy, console: Console) -> None:
    """Say what became of the threads."""
    would = " would be" if report["dry_run"] else ""
    target = printable(report["target"])
    for outcome, told in (
        ("copied", f"{would} copied to {target}" if would else f" copied to {target}"),
        ("updated", f"{would} brought up to date" if would else " brought up to date"),
        ("same", f" {'is' if _count(report, 'same') == 1 else 'are'} there already"),
    ):
        if count := _count(report, outcome):
            console.print(f"{amount(count, 'thread')}{told}.")
    if not report["threads"]:
        console.print(f"No threads in {printable(report['source'])}.")
    elif report["verified"] and len(report["threads"]) > len(report["left"]):
        console.print("Every checkpoint was read back and compared.")
    for thread in report["threads"]:
        if thread["thread_id"] in report["left"]:
            name, why = printable(thread["thread_id"]), printable(thread["detail"])
            console.print(f"Thread {name} was left as it is: {why}.", style="red")


def _count(report: Copy, outcome: str) -> int:
    return sum(thread["outcome"] == outcome for thread in report["threads"])


# -- export ------------------------------------------------------------------------------------------------------------


def export(
    store: CheckpointStore,
    path: str,
    threads: Sequence[str] | None,
    status: str | None,
    labels: Sequence[str],
    *,
    as_json: bool,
) -> Export:
    """Write threads into a file, which is there once it is complete; to standard output for `-`.

    Raises:
        ConfigError: The file is there already, or the threads are chosen in two ways.
    """
    if path == "-" and (as_json or sys.stdout.isatty()):
        raise ConfigError("the file is no text: send it to a file or a pipe, without --json")
    source = store.source()
    if threads and (status or labels):
        raise ConfigError("name threads, or choose them by --status and --label, not both")
    names = list(threads) if threads else None
    if status or labels:
        listed = list_threads(store, 0, status, labels)
        names = [thread["thread_id"] for thread in listed["threads"]]
    for name in threads or ():
        if source.thread(name) is None:
            raise ThreadNotFoundError(f"there is no thread {name!r} in {store_name(store)}")
    with _writing(path) as file, progress("Exporting", 0) as show:
        report = export_threads(source, file, names, progress=show)
    return {
        "source": str(mask(report.source)),
        "path": path,
        "threads": list(report.threads),
        "checkpoints": report.checkpoints,
        "bytes": report.bytes,
    }


def render_export(report: Export, console: Console) -> None:
    """Say what was written."""
    count = amount(len(report["threads"]), "thread")
    steps = amount(report["checkpoints"], "checkpoint")
    console.print(
        f"Wrote {count} ({steps}) to {printable(report['path'])}: {size(report['bytes'])}."
    )


@contextmanager
def _writing(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(path)
    if target.exists():
        raise ConfigError(f"{path} is there already; name another file, or remove it")
    try:
        # Of its owner only, as a store's own file is.
        file = tempfile.NamedTemporaryFile(dir=target.parent, prefix=".export-", delete=False)  # noqa: SIM115 - below
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror})") from error
    try:
        with file:
            yield cast("BinaryIO", file)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(target)
    except OSError as error:
        # Of writing the rest; export_threads has its own for what came before.
        raise BackendError(f"{path} cannot be written ({error.strerror})") from error
    finally:
        with suppress(OSError):
            Path(file.name).unlink()


@contextmanager
def _reading(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        yield sys.stdin.buffer
        return
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - below
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
    with file:
        yield file


# -- fork --------------------------------------------------------------------------------------------------------------


def fork(store: CheckpointStore, thread_id: str, new_id: str, at: str | None) -> Fork:
    """Make a new thread of a checkpoint's history."""
    known = known_thread(store, thread_id)
    info = store.fork(known.thread_id, new_id, at=at)
    return {
        "store": store_name(store),
        "source": known.thread_id,
        "thread_id": info.thread_id,
        "checkpoint_id": info.checkpoint_id,
        "status": info.status,
        "created_at": iso(info.created_at),
    }


def render_fork(report: Fork, console: Console) -> None:
    """Say what was made."""
    console.print(
        f"Thread {printable(report['thread_id'])} goes on from checkpoint {report['checkpoint_id']} of "
        f"{printable(report['source'])}."
    )
