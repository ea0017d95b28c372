"""What the demo claims, each claim checked against what the file holds in the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from charm_checkpoint.cli.demo.device import NOTE
from charm_checkpoint.cli.demo.process import ended_by
from charm_checkpoint.cli.reports import Proof, Step

__all__ = ["LAPTOP", "PHONE", "SERVER", "Run", "prove"]

LAPTOP, PHONE, SERVER = "laptop", "phone", "server"


class Run(NamedTuple):
    """What the three processes told, and what the file says afterwards."""

    laptop: dict[str, Any]
    exit_code: int
    """Of the laptop's process; negative for a signal."""
    phone: dict[str, Any]
    server: dict[str, Any]
    steps: list[Step]
    """The thread's whole history, newest first."""
    messages: list[str]
    """The thread's messages."""


def prove(run: Run) -> list[Proof]:
    """Check every claim."""
    return [{"claim": c, "holds": holds, "evidence": e} for c, holds, e in _claims(run)]


def _claims(run: Run) -> Iterator[tuple[str, bool, str]]:
    laptop, phone, server = run.laptop, run.phone, run.server
    pids = {laptop["pid"], phone["pid"], server["pid"], os.getpid()}
    left, found = laptop["found"], phone["found"]
    by_device = {d: [s for s in run.steps if s["device"] == d] for d in (LAPTOP, PHONE, SERVER)}

    # Windows knows no signals; there a killed process exits with 1.
    killed = "SIGKILL" if os.name == "posix" else "exit code 1"
    yield (
        "the laptop was killed while it waited",
        ended_by(run.exit_code) == killed and bool(left["questions"]),
        f"process {laptop['pid']}: {ended_by(run.exit_code)}",
    )
    yield (
        "every device was a process of its own",
        len(pids) == 4,
        f"{LAPTOP} {laptop['pid']}, {PHONE} {phone['pid']}, {SERVER} {server['pid']}",
    )
    yield (
        "the phone found what the laptop had left",
        found == left,
        f"step {found['step']}, waiting in {', '.join(found['next'])}, checkpoint {found['checkpoint_id']}",
    )
    first = by_device[PHONE][-1]["parent_id"] if by_device[PHONE] else None
    yield (
        "the phone went on from there",
        first == left["checkpoint_id"],
        f"its first checkpoint grew from {first}",
    )
    yield (
        "no finished step ran again",
        phone["ran"]
        == [f"search in process {laptop['pid']}"]
        + [f"{node} in process {phone['pid']}" for node in ("approve", "book")],
        ", ".join(phone["ran"]),
    )
    counts = [step["step"] for step in reversed(run.steps)]
    yield (
        "no step is missing, no branch was left",
        counts == list(range(-1, len(counts) - 1))
        and [s["parent_id"] for s in run.steps]
        == [s["checkpoint_id"] for s in run.steps[1:]] + [None]
        and [s["is_head"] for s in run.steps] == [True] + [False] * (len(counts) - 1),
        f"steps {counts[0]} to {counts[-1]}, each the parent of the next",
    )
    wrote = [device for device in by_device for _ in by_device[device]]
    yield (
        "each step names the device that made it",
        [s["device"] for s in reversed(run.steps)] == wrote and all(by_device.values()),
        ", ".join(f"{device} {len(steps)}" for device, steps in by_device.items()),
    )
    read = [message["content"] for message in server["history"]]
    yield (
        "an agent without a graph read it all",
        read == phone["messages"] and read[:2] == left["messages"] and not server["graph_code"],
        f"{len(read)} messages, in a process that imported no graph code",
    )
    yield (
        "what it added is on the same thread",
        run.messages == [*read, NOTE],
        f"{len(run.messages)} messages now",
    )
