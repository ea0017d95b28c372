"""`erase`: all of a subject's threads, wherever a store keeps them, with a receipt."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from charm_checkpoint.cli.output import amount, ask, iso, local, printable, progress
from charm_checkpoint.cli.reports import Erasure
from charm_checkpoint.cli.stores import is_made, store_name
from charm_checkpoint.cli.threads import parse_label
from charm_checkpoint.codec import valid_id
from charm_checkpoint.errors import ConfigError
from charm_checkpoint.replica import ReplicaStore
from charm_checkpoint.store import CheckpointStore

__all__ = ["erase", "render_erasure"]

_NAMED = 5


def erase(
    store: CheckpointStore,
    threads: Sequence[str],
    labels: Sequence[str],
    timeout: float,
    *,
    confirmed: bool,
) -> Erasure:
    """Delete threads everywhere and look after it; without `confirmed` a person is asked.

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
    wanted = dict(map(parse_label, labels))
    names = [valid_id(name, "thread id") for name in threads]
    # What a replica stands before may have them, though nothing on this device does.
    if not is_made(store) and not isinstance(store, ReplicaStore):
        raise ConfigError(f"{store_name(store)} does not exist")
    if not confirmed:
        found = [info.thread_id for info in store.threads(labels=wanted)] if wanted else []
        confirmed = _ask(list(dict.fromkeys([*names, *found])), store)
    report: Erasure = {
        "store": store_name(store),
        "erased": confirmed,
        "done": False,
        "at": None,
        "labels": wanted,
        "threads": [],
        "places": [],
    }
    if confirmed:
        with progress("Erasing", 0) as show:
            receipt = store.erase(*names, labels=wanted or None, timeout=timeout, on_progress=show)
        report["done"], report["at"] = receipt.done, iso(receipt.at)
        report["threads"] = [
            {"thread_id": each.thread_id, "checkpoints": each.checkpoints}
            for each in receipt.threads
        ]
        report["places"] = [
            {
                "name": place.name,
                "gone": place.gone,
                "overwritten": place.overwritten,
                "error": place.error,
            }
            for place in receipt.places
        ]
    return report


def _ask(names: Sequence[str], store: CheckpointStore) -> bool:
    told = ", ".join(printable(name) for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    count = f" ({told}{more})" if names else ""
    return ask(
        f"Erase {amount(len(names), 'thread')}{count} from {printable(store_name(store))}, with their whole history? "
        "There is no way back.",
        what="erase asks before it erases",
    )


def render_erasure(report: Erasure, console: Console) -> None:
    """Print the receipt."""
    if not report["erased"]:
        console.print("Nothing is erased.")
        return
    total = sum(thread["checkpoints"] for thread in report["threads"])
    threads = amount(len(report["threads"]), "thread")
    console.print(
        f"Erased {threads} with {amount(total, 'checkpoint')}, {local(report['at'])}.", style="bold"
    )
    for name, value in report["labels"].items():
        console.print(f"  looked for by {printable(name)}={printable(str(value))}")
    for thread in report["threads"]:
        count = thread["checkpoints"]
        held = amount(count, "checkpoint") if count else "nothing was there"
        console.print(f"  {printable(thread['thread_id'])}: {held}")
    for place in report["places"]:
        name = printable(place["name"])
        if place["error"]:
            console.print(f"Not done in {name}: {printable(place['error'])}.", style="red")
        elif place["overwritten"]:
            console.print(f"Gone from {name}, and no byte of it is left in the file.")
        else:
            console.print(
                f"Gone from {name}; what the server's own logs and backups hold is not reached."
            )
    if report["done"]:
        console.print(
            "The threads' ids stay, so that nothing that is still under way brings them back.",
            style="dim",
        )
    else:
        console.print("It is not done yet.", style="bold red")
