"""`delete` and `erase`: a thread, or all of a subject's, wherever a store keeps them, with a receipt."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console

from charm_checkpoint.cli.output import amount, ask, iso, local, printable, progress
from charm_checkpoint.cli.reports import Erasure, ErasurePlace
from charm_checkpoint.cli.stores import is_made, store_name
from charm_checkpoint.cli.threads import parse_label
from charm_checkpoint.codec import valid_id
from charm_checkpoint.erasure import Receipt, Subject
from charm_checkpoint.errors import ConfigError, ThreadNotFoundError
from charm_checkpoint.replica import ReplicaStore
from charm_checkpoint.rules import is_label
from charm_checkpoint.store import CheckpointStore

__all__ = ["delete", "erase", "render_erasure"]

_NAMED = 5


def delete(store: CheckpointStore, thread_id: str, timeout: float, *, confirmed: bool) -> Erasure:
    """Delete a thread everywhere and look after it; without `confirmed` a person is asked.

    Args:
        store: Where.
        thread_id: The thread.
        timeout: Seconds to wait until the store behind a replica knows it.
        confirmed: Whether nobody has to be asked.

    Raises:
        ThreadNotFoundError: There is no such thread.
        ConfigError: Nobody is there to be asked.
    """
    thread_id = valid_id(thread_id, "thread id")
    info = store.thread(thread_id) if _is_reached(store) else None
    if info is None:
        raise ThreadNotFoundError(f"there is no thread {thread_id!r} in {store_name(store)}")
    if not confirmed:
        when = local(iso(info.updated_at))
        confirmed = ask(
            f"Delete thread {printable(thread_id)} (last written {when} by {printable(info.device)}) with its whole "
            "history? There is no way back.",
            what="delete asks before it deletes",
        )
    return _report(store, {}, store.delete(thread_id, timeout=timeout) if confirmed else None)


def erase(
    store: CheckpointStore,
    threads: Sequence[str],
    labels: Sequence[str],
    timeout: float,
    *,
    confirmed: bool,
) -> Erasure:
    """Delete threads and their bytes everywhere and look after it; without `confirmed` a person is asked.

    Args:
        store: Where.
        threads: These.
        labels: And those that have all of these, each `NAME=VALUE`.
        timeout: Seconds to wait until the store behind a replica has it.
        confirmed: Whether nobody has to be asked.

    Raises:
        ConfigError: Nothing says which threads, or nobody is there to be asked.
    """
    if not threads and not labels:
        raise ConfigError("name the threads to erase, or labels that they have with --label")
    subject = _subject(labels)
    names = [valid_id(name, "thread id") for name in threads]
    if not _is_reached(store):
        raise ConfigError(f"{store_name(store)} does not exist")
    if not confirmed:
        found: list[str] = []
        if subject:
            with progress("Looking", None) as show:
                found = store.threads_of(subject, on_looked=show)
        together = list(dict.fromkeys([*names, *found]))
        if not together:
            return _report(store, subject, Receipt(time.time(), subject, (), ()))
        confirmed = _ask(together, store)
    receipt = None
    if confirmed:
        with progress("Erasing", None) as show:
            receipt = store.erase(*names, labels=subject or None, timeout=timeout, on_progress=show)
    return _report(store, subject, receipt)


def _is_reached(store: CheckpointStore) -> bool:
    # What a replica stands before may have threads, though nothing on this device does.
    return is_made(store) or isinstance(store, ReplicaStore)


def _subject(labels: Sequence[str]) -> Subject:
    """What labels mean: `17` and `true` the text as well as the number or the truth, in quotes only the text."""
    subject: dict[str, str | int | bool | tuple[str | int | bool, ...]] = {}
    for text in labels:
        name, value = parse_label(text)
        if name in subject:
            raise ConfigError(
                f"--label {name!r} is named twice; a thread has one value of it at a time"
            )
        readings = (value,) if isinstance(value, str) else (text.partition("=")[2], value)
        fit = tuple(each for each in readings if is_label(each, name))
        subject[name] = fit if len(fit) > 1 else readings[0]
    return subject


def _ask(names: Sequence[str], store: CheckpointStore) -> bool:
    told = ", ".join(printable(name) for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ask(
        f"Erase {amount(len(names), 'thread')} ({told}{more}) from {printable(store_name(store))}, with their whole "
        "history? There is no way back.",
        what="erase asks before it erases",
    )


def _report(store: CheckpointStore, subject: Subject, receipt: Receipt | None) -> Erasure:
    return {
        "store": store_name(store),
        "confirmed": receipt is not None,
        "found": receipt is not None and receipt.found,
        "done": receipt is not None and receipt.done,
        "at": iso(receipt.at) if receipt else None,
        "labels": {n: list(v) if isinstance(v, tuple) else v for n, v in subject.items()},
        "threads": [
            {"thread_id": each.thread_id, "checkpoints": each.checkpoints, "known": each.known}
            for each in (receipt.threads if receipt else ())
        ],
        "places": [
            {
                "name": place.name,
                "gone": place.gone,
                "overwritten": place.overwritten,
                "error": place.error,
            }
            for place in (receipt.places if receipt else ())
        ],
    }


def render_erasure(report: Erasure, console: Console) -> None:
    """Print the receipt."""
    if not report["confirmed"]:
        console.print("Nothing is deleted.")
        return
    total = sum(thread["checkpoints"] for thread in report["threads"])
    threads = amount(len(report["threads"]), "thread")
    count = amount(total, "checkpoint")
    console.print(f"Deleted {threads} with {count}, {local(report['at'])}.", style="bold")
    for name, value in report["labels"].items():
        told = " or ".join(map(_told, value)) if isinstance(value, list) else str(value)
        console.print(f"  looked for by {printable(name)}={printable(told)}")
    for thread in report["threads"]:
        _render_thread(thread["thread_id"], thread["checkpoints"], thread["known"], console)
    for place in report["places"]:
        _render_place(place, console)
    if report["done"]:
        console.print(
            "The threads' ids stay, so that nothing that is still under way brings them back.",
            style="dim",
        )
    elif any(place["error"] for place in report["places"]):
        console.print("It is not done yet.", style="bold red")
    elif report["threads"]:
        console.print("Not everything that was named was found.", style="bold red")
    else:
        console.print("Nothing was found: no checkpoint there has such metadata.", style="bold red")


def _told(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _render_thread(thread_id: str, checkpoints: int, known: bool, console: Console) -> None:
    name = printable(thread_id)
    if checkpoints:
        console.print(f"  {name}: {amount(checkpoints, 'checkpoint')}")
    elif known:
        console.print(f"  {name}: nothing was there any more")
    else:
        console.print(f"  {name}: there never was such a thread", style="red")


def _render_place(place: ErasurePlace, console: Console) -> None:
    name = printable(place["name"])
    if place["error"]:
        console.print(f"Not done in {name}: {printable(place['error'])}.", style="red")
    elif place["overwritten"]:
        console.print(f"Gone from {name}, and no byte of it is left in the file.")
    else:
        console.print(
            f"Gone from {name}. What free room of its files, logs and backups hold is not reached."
        )
