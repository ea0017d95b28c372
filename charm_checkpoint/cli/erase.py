"""`delete` and `erase`: a thread, or all of a subject's, wherever a store keeps them, with a receipt."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console

from charm_checkpoint.cli.output import amount, ask, iso, local, printable, progress
from charm_checkpoint.cli.reports import ErasedThread, Erasure, ErasurePlace
from charm_checkpoint.cli.stores import is_made, store_name
from charm_checkpoint.cli.threads import parse_label
from charm_checkpoint.codec import valid_id
from charm_checkpoint.config import mask
from charm_checkpoint.erasure import Found, Place, Receipt, Subject, find
from charm_checkpoint.errors import ConfigError
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
        ConfigError: The store does not exist, or nobody is there to be asked.
    """
    thread_id = valid_id(thread_id, "thread id")
    _insist(store)
    if not confirmed:
        info = store.thread(thread_id)
        # Half a copy, or what charmos left, is listed nowhere. So is what a replica deleted and has not sent yet.
        when = (
            f"last written {local(iso(info.updated_at))} by {printable(info.device)}"
            if info
            else "which no listing shows"
        )
        confirmed = ask(
            f"Delete thread {printable(thread_id)} ({when}) with its whole history? There is no way back.",
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
        ConfigError: Nothing says which threads, the store does not exist, or nobody is there to be asked.
    """
    if not threads and not labels:
        raise ConfigError("name the threads to erase, or labels that they have with --label")
    subject = _subject(labels)
    names = [valid_id(name, "thread id") for name in threads]
    _insist(store)
    if not confirmed:
        found = Found((), {})
        if subject:
            with progress("Looking", None) as show:
                found = find(store, subject, show)
        together = list(dict.fromkeys([*names, *found.threads]))
        if not together:
            places = [Place(name, False, None, told) for name, told in _untold(found)]
            return _report(store, subject, Receipt(time.time(), subject, (), tuple(places)))
        confirmed = _ask(together, found, store)
    receipt = None
    if confirmed:
        with progress("Erasing", None) as show:
            receipt = store.erase(*names, labels=subject or None, timeout=timeout, on_progress=show)
    return _report(store, subject, receipt)


def _insist(store: CheckpointStore) -> None:
    # What a replica stands before may have threads, though nothing on this device does.
    if not is_made(store) and not isinstance(store, ReplicaStore):
        raise ConfigError(f"{store_name(store)} does not exist")


def _untold(found: Found) -> list[tuple[str, str]]:
    """By the name of a place, why it may have more."""
    return [(name, str(mask(str(error)))) for name, error in found.errors.items()]


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


def _ask(names: Sequence[str], found: Found, store: CheckpointStore) -> bool:
    told = ", ".join(printable(name) for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    untold = "".join(
        f" Not all can be told of {printable(name)}: {printable(error)}. What is found there later goes, too."
        for name, error in _untold(found)
    )
    return ask(
        f"Erase {amount(len(names), 'thread')} ({told}{more}) from {printable(store_name(store))}, with their whole "
        f"history? There is no way back.{untold}",
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
            {
                "thread_id": each.thread_id,
                "checkpoints": each.checkpoints,
                "known": each.known,
                "error": each.error,
            }
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
    deleted = [each for each in report["threads"] if each["known"] and not each["error"]]
    when = local(report["at"])
    if deleted:
        count = amount(sum(each["checkpoints"] for each in deleted), "checkpoint")
        what = f"Deleted {amount(len(deleted), 'thread')} with {count}"
        console.print(f"{what}, {when}.", style="bold")
    elif any(each["error"] for each in report["threads"]):
        console.print(f"Not all is deleted, {when}.", style="bold")
    else:
        console.print(f"Nothing is deleted, {when}.", style="bold")
    for name, value in report["labels"].items():
        told = " or ".join(map(_told, value)) if isinstance(value, list) else str(value)
        console.print(f"  looked for by {printable(name)}={printable(told)}")
    for thread in report["threads"]:
        _render_thread(thread, console)
    for place in report["places"]:
        if deleted or place["error"]:
            _render_place(place, console)
    if report["done"]:
        console.print(
            "The threads' ids stay, so that nothing that is still under way brings them back.",
            style="dim",
        )
    elif any(each["error"] for each in (*report["threads"], *report["places"])):
        console.print("It is not done yet.", style="bold red")
    elif report["threads"]:
        console.print("Not everything that was named was found.", style="bold red")
    else:
        console.print("Nothing was found: no checkpoint there has such metadata.", style="bold red")


def _told(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _render_thread(thread: ErasedThread, console: Console) -> None:
    name = printable(thread["thread_id"])
    if thread["error"]:
        console.print(f"  {name}: {printable(thread['error'])}", style="red")
    elif thread["checkpoints"]:
        console.print(f"  {name}: {amount(thread['checkpoints'], 'checkpoint')}")
    elif thread["known"]:
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
