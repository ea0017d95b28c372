"""Forks a thread: a new one that begins with the history of a checkpoint, and goes its own way from there."""

from __future__ import annotations

import time
from collections.abc import Iterator

from langgraph.checkpoint.serde.types import INTERRUPT

from charm_checkpoint.backend import SEALED, Entry, HeadRow
from charm_checkpoint.codec import named_by, valid_id
from charm_checkpoint.engine import Engine
from charm_checkpoint.errors import (
    DeserializationError,
    ThreadExistsError,
    ThreadNotFoundError,
)
from charm_checkpoint.moving.copying import Copier
from charm_checkpoint.moving.source import BackendSource, Key, Listing, Thread

__all__ = ["fork_thread"]


def fork_thread(
    engine: Engine, thread_id: str, new_id: str, *, at: str | None = None, device: str
) -> str:
    """Make a new thread of what led to a checkpoint of another; that one stays as it is.

    The new thread's newest checkpoint is the one named. Below it is its history, with what subgraphs did in it and what
    they remember; other branches, and what came after, are left out. If the thread went on from the checkpoint, the new
    one stands before that step: results of its tasks and answers to its questions are not taken along, the questions
    are.

    Args:
        engine: Runs the backend.
        thread_id: The thread.
        new_id: The id of the new one.
        at: A checkpoint of the root graph, by its id or how that begins; `None` for the newest.
        device: Who forks.

    Returns:
        The checkpoint's id.

    Raises:
        ThreadNotFoundError: There is no such thread.
        CheckpointNotFoundError: It has no such checkpoint, or several whose id begins so.
        ThreadExistsError: The new thread is there already, or the beginning of another one that broke off.
    """
    thread_id, new_id = valid_id(thread_id, "thread_id"), valid_id(new_id, "thread_id")
    listing = Listing(engine, thread_id)
    if "" not in listing.heads:
        raise ThreadNotFoundError(f"there is no thread {thread_id!r} in {engine.backend.name}")
    begun = Listing(engine, new_id)
    if begun.heads:
        raise ThreadExistsError(
            f"thread {new_id!r} already has checkpoints; delete it or fork to another id"
        )
    source = _Fork(BackendSource(engine), listing, thread_id, at, device)
    copier = Copier(source, engine)
    copied = copier.copy(new_id)
    if copied.outcome == "differs" and begun.stubs:
        raise ThreadExistsError(
            f"thread {new_id!r} is the beginning of another fork, or of a copy, that broke off; delete it, and fork to "
            "another id"
        )
    copier.insist(copied)
    return source.tip


class _Fork:
    """A source with one thread: what is below a checkpoint of another, under that one's id until it is copied."""

    def __init__(
        self, source: BackendSource, listing: Listing, thread_id: str, at: str | None, device: str
    ) -> None:
        self._source = source
        self._listing = listing
        self._thread_id = thread_id
        self.tip = root_head = listing.heads[""].checkpoint_id
        if at is not None:
            self.tip = named_by(at, (id for id, ns in listing.stubs if ns == ""), thread_id)
        parents = {stub.parent_id for (_, ns), stub in listing.stubs.items() if ns == ""}
        self._went_on = self.tip != root_head and self.tip in parents
        self._chain = self._ancestry()
        self._keys = self._with_parents({key for key in listing.stubs if self._is_below(key)})
        now = time.time()
        self._heads = tuple(
            HeadRow(namespace, self._head(namespace), device, now)
            for namespace in sorted({namespace for _, namespace in self._keys})
        )

    @property
    def name(self) -> str:
        return self._source.name

    def threads(self) -> Iterator[str]:
        yield self._thread_id

    def thread(self, thread_id: str) -> Thread:
        return Thread(thread_id, self._listing.created_at, self._heads)

    def entries(self, thread_id: str) -> Iterator[Entry]:
        for entry in self._source.listed(self._listing, self._keys):
            snapshot = entry.snapshot
            row = snapshot.checkpoint
            if self._went_on and (entry.namespace, row and row.checkpoint_id) == ("", self.tip):
                # As LangGraph's own time travel has it: a task that asked asks again, the others run again.
                asked = [write for write in snapshot.writes if write.channel == INTERRUPT]
                snapshot = snapshot._replace(writes=asked)
            types = [b.type for b in snapshot.blobs] + [w.type for w in snapshot.writes]
            if any(type_.endswith(SEALED) for type_ in types):
                raise DeserializationError(
                    f"thread {self._thread_id!r} is encrypted with a key of its own; to fork it, open the store with "
                    "its key (encryption in its config, or $CHARM_ENCRYPTION_KEY)"
                )
            yield entry._replace(thread_id=thread_id, snapshot=snapshot)

    def _ancestry(self) -> dict[str, int]:
        """The checkpoints of the root graph down from the tip, with how far each is from it."""
        chain: dict[str, int] = {}
        step: str | None = self.tip
        while step is not None and step not in chain and (step, "") in self._listing.stubs:
            chain[step] = len(chain)
            step = self._listing.stubs[step, ""].parent_id
        return chain

    def _is_below(self, key: Key) -> bool:
        checkpoint_id, namespace = key
        if namespace == "":
            return checkpoint_id in self._chain
        root_id = self._listing.stubs[key].root_id
        if root_id is None:
            return checkpoint_id <= self.tip  # of a saver that does not tell: by time, then
        # What is under the tip itself belongs to the step after it.
        return root_id in self._chain and not (self._went_on and root_id == self.tip)

    def _with_parents(self, keys: set[Key]) -> set[Key]:
        """Add what they grew from: a subgraph that remembers goes on in one branch with what it did in others."""
        for checkpoint_id, namespace in list(keys):
            step = self._listing.stubs[checkpoint_id, namespace].parent_id
            while step is not None and (step, namespace) not in keys:
                if (stub := self._listing.stubs.get((step, namespace))) is None:
                    break
                keys.add((step, namespace))
                step = stub.parent_id
        return keys

    def _head(self, namespace: str) -> str:
        if namespace == "":
            return self.tip
        head = self._listing.heads.get(namespace)
        if head is not None and (head.checkpoint_id, namespace) in self._keys:
            return head.checkpoint_id
        stubs = self._listing.stubs

        def nearness(key: Key) -> tuple[int, str]:
            return -self._chain.get(stubs[key].root_id or "", len(self._chain)), key[0]

        return max((key for key in self._keys if key[1] == namespace), key=nearness)[0]
