"""Takes over what happened to a thread elsewhere, before this device goes on with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from charm_checkpoint.backend import (
    Backend,
    CheckpointRow,
    Entry,
    HeadMark,
    HeadRow,
    Pulled,
    Snapshot,
)
from charm_checkpoint.errors import BackendUnavailable
from charm_checkpoint.fencing import Bounded
from charm_checkpoint.keeping import delta_channels
from charm_checkpoint.replica.conflicts import Conflict
from charm_checkpoint.replica.front import Front, Lineage
from charm_checkpoint.replica.options import ReplicaOptions
from charm_checkpoint.replica.remote import Remote
from charm_checkpoint.replica.shipper import Shipper

__all__ = ["Waker"]

T = TypeVar("T")

# Of one wake: a thread that other devices write to all the time is taken as it was seen last.
_MAX_PULLS = 4


class Waker:
    """Brings threads and checkpoints from the remote to this device.

    Args:
        front: This device's file.
        remote: Where it asks.
        shipper: Sends what has to be there first.
        options: `wake_timeout`, `max_staleness`, `on_offline`.
    """

    def __init__(
        self, front: Front, remote: Remote, shipper: Shipper, options: ReplicaOptions
    ) -> None:
        self._front = front
        self._remote = remote
        self._shipper = shipper
        self._options = options
        # By thread, when it was last looked after, by the monotonic clock.
        self._looked: Bounded[str, float] = Bounded(100_000)

    def ask(
        self,
        function: Callable[[Backend], T],
        timeout: float | None = None,
        *,
        anyway: bool = False,
    ) -> T:
        """Ask the remote, by default for `wake_timeout` seconds; `anyway`: also if it was away a moment ago.

        Raises:
            BackendUnavailable: It is away, or did not answer in time.
        """
        away = self._remote.offline
        if away is not None and self._options.on_offline == "serve" and not anyway:
            # The shipper's thread finds out when it is back; nobody has to wait for that.
            self._shipper.kick()
            raise BackendUnavailable(str(away)) from away
        timeout = self._options.wake_timeout if timeout is None else timeout
        if timeout <= 0:
            # Used up by what had to be done before: that says nothing about the remote.
            raise BackendUnavailable(f"{self._remote.backend.name}: no time is left to ask it")
        return self._remote.ask(function, timeout)

    def look_again(self, thread_id: str) -> None:
        """Have the next wake ask the remote, whatever `max_staleness` says."""
        self._looked.set(thread_id, float("-inf"))

    def wake(self, thread_id: str, *, once: bool = False) -> None:
        """Take over where a thread is now, if the remote can be asked.

        Args:
            thread_id: The thread.
            once: Only if this process never did it for this thread.

        Raises:
            BackendUnavailable: It cannot, and `on_offline` is `"raise"`.
        """
        looked = self._looked.get(thread_id)
        if looked is not None and (once or time.monotonic() - looked < self._options.max_staleness):
            return
        try:
            self.refresh(thread_id)
        except BackendUnavailable:
            if self._options.on_offline == "raise":
                raise
            self._shipper.kick()

    def refresh(
        self, thread_id: str, timeout: float | None = None, *, anyway: bool = False
    ) -> None:
        """Take over where a thread is now, within `timeout` seconds, by default `wake_timeout`; `anyway` as for `ask`.

        Raises:
            BackendUnavailable: The remote cannot be asked.
        """
        deadline = time.monotonic() + (self._options.wake_timeout if timeout is None else timeout)
        for _ in range(_MAX_PULLS):
            known = self._front.known(thread_id)
            pulled = self.ask(
                lambda backend, held=known.held: backend.pull(thread_id, held),  # type: ignore[misc]
                deadline - time.monotonic(),
                anyway=anyway,
            )
            is_gone = known.is_gone(pulled)
            if not pulled.entries and not is_gone:
                break
            if is_gone:
                # What is there now is another life of the thread: nothing that is held counts.
                pulled = self.ask(
                    lambda backend: backend.pull(thread_id, ()), deadline - time.monotonic()
                )
            lineages = self._lineages(pulled, () if is_gone else known.held, deadline)
            gone = self._gone(thread_id, deadline) if is_gone else []
            verdict = self._front.adopt(thread_id, known, pulled, lineages)
            if gone:
                self._front.settle(gone)
            if verdict == "done":
                break
            if verdict == "waiting" and not self._shipper.wait(
                thread_id, deadline - time.monotonic()
            ):
                raise BackendUnavailable(
                    f"thread {thread_id!r} moved on elsewhere while something of this device waits to be sent, and "
                    f"{self._remote.backend.name} did not take it within wake_timeout"
                )
        self._looked.set(thread_id, time.monotonic())

    def _gone(self, thread_id: str, deadline: float) -> list[Conflict]:
        """Conflicts whose branches were deleted with the thread; others are of its life after that."""
        return [
            conflict
            for conflict in self._front.conflicts(thread_id)
            if self.ask(
                lambda b, place=(*conflict[:2], conflict.tip_id): b.read(*place),  # type: ignore[misc]
                deadline - time.monotonic(),
            ).checkpoint
            is None
        ]

    def _lineages(
        self, pulled: Pulled, marks: Sequence[HeadMark], deadline: float
    ) -> list[Lineage]:
        held = {(mark.head.namespace, mark.head.checkpoint_id) for mark in marks}
        found = []
        for thread_id, namespace, snapshot in pulled.entries:
            row = snapshot.checkpoint
            if row is None or (namespace, row.checkpoint_id) in held:
                continue
            if channels := frozenset(delta_channels(row)):
                place = (thread_id, namespace, row.checkpoint_id)
                found.append(self.lineage(*place, channels, deadline - time.monotonic()))
        return found

    def lineage(
        self,
        thread_id: str,
        namespace: str,
        checkpoint_id: str,
        channels: frozenset[str],
        timeout: float | None = None,
    ) -> Lineage:
        """What DeltaChannels of a checkpoint are rebuilt from, as the remote has it.

        Raises:
            BackendUnavailable: The remote cannot be asked.
        """
        ancestors = self.ask(
            lambda backend: backend.lineage(thread_id, namespace, checkpoint_id, sorted(channels)),
            timeout,
        )
        return Lineage(namespace, checkpoint_id, channels, ancestors)

    def fetch(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Snapshot | None:
        """Bring one checkpoint here (for `None`: a namespace's head); `None` if the remote has none.

        Raises:
            BackendUnavailable: The remote cannot be asked.
        """
        for _ in range(_MAX_PULLS):
            if thread_id in self._front.unsent(thread_id).deleted:
                return None  # all that is there is about to go
            known = self._front.known(thread_id)
            found = self.ask(lambda backend: backend.read(thread_id, namespace, checkpoint_id))
            row = found.checkpoint
            if row is None:
                return None
            lineages: Sequence[Lineage] = ()
            if channels := frozenset(delta_channels(row)):
                lineages = [self.lineage(thread_id, namespace, row.checkpoint_id, channels)]
            head = _head(namespace, row) if checkpoint_id is None else None
            if self._front.keep(Entry(thread_id, namespace, found), known, lineages, head=head):
                break
        return found


def _head(namespace: str, row: CheckpointRow) -> HeadRow:
    return HeadRow(namespace, row.checkpoint_id, row.device, row.created_at)
