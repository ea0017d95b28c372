"""How a replica deals with its remote."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["ReplicaOptions"]


class ReplicaOptions(NamedTuple):
    """Times in seconds, sizes in bytes."""

    wake_timeout: float = 2.0
    """How long a read waits for the remote to say whether the thread moved on elsewhere."""
    max_staleness: float = 0.0
    """A thread that was looked after less than this ago is not asked about again."""
    on_offline: Literal["serve", "raise"] = "serve"
    """While the remote is away: go on with what is here, or raise `BackendUnavailable`."""
    max_outbox: int = 256 * 1024 * 1024
    """What may wait to be sent. Beyond that writes wait for `outbox_timeout`, then raise `OutboxFull`."""
    outbox_timeout: float = 5.0
    """How long a write waits for room, while the remote answers."""
    flush_timeout: float = 5.0
    """How long closing waits for what was not sent; the rest is sent at the next start."""
    send_timeout: float = 30.0
    """How long `prune`, `copy` and `promote` wait for what was not sent."""
