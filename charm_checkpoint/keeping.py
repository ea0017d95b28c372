"""What of a thread has to stay, whatever a policy says: worked out from its rows, most of them without values.

Heads stay, and what a checkpoint which stays is read from: what its DeltaChannels are rebuilt from, too; but not what
*that* is read from, since two DeltaChannels whose snapshots never fall together would keep everything. Of branches
those stay that somebody may still go on from: where a step waits for an answer, and where two devices went on from one
checkpoint and one of them lost.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from langgraph.checkpoint.serde.types import INTERRUPT, TASKS

from charm_checkpoint.backend import (
    SEALED,
    SENDS_IN_PARENT_BELOW,
    Backend,
    BlobRow,
    CheckpointRow,
    Entry,
    Scan,
    Seen,
    Snapshot,
)

__all__ = ["Branch", "History", "Places", "delta_channels", "doomed", "headers", "is_unfinished"]

_PAGE = 500

Places = set[tuple[str, str]]
"""Namespace and checkpoint id."""

Rows = Mapping[str, CheckpointRow]
"""A namespace's checkpoints by id, newest first."""


class Branch(NamedTuple):
    """A branch that somebody has still to decide about."""

    namespace: str
    first_id: str
    tip_id: str
    """Its newest checkpoint."""


def headers(backend: Backend, query: Scan) -> Iterator[Entry]:
    """All checkpoints of a scan, newest first, without their values."""
    query = query._replace(values=False, limit=_PAGE)
    while True:
        page = backend.scan(query)
        yield from page.entries
        if page.next is None:
            return
        query = query._replace(after=page.next)


def delta_channels(row: CheckpointRow) -> set[str]:
    """Channels whose value is not in this checkpoint but in the writes since an ancestor's snapshot."""
    metadata: dict[str, Any] = json.loads(row.metadata)
    return set(metadata.get("counters_since_delta_snapshot") or ())


class History:
    """A thread's checkpoints as they were read, newest first, without values.

    Args:
        backend: Where it is.
        thread_id: The thread.
        undecided: Those of its branches that somebody is known to have to decide about.
    """

    def __init__(self, backend: Backend, thread_id: str, undecided: Iterable[Branch] = ()) -> None:
        self._backend = backend
        self._thread_id = thread_id
        self._undecided = tuple(undecided)
        self.rows: defaultdict[str, dict[str, CheckpointRow]] = defaultdict(dict)
        self.heads: dict[str, str] = {}
        for entry in headers(backend, Scan(thread_id=thread_id)):
            row = entry.snapshot.checkpoint
            assert row is not None
            self.rows[entry.namespace][row.checkpoint_id] = row
            if entry.snapshot.head is not None:
                # As the first page told it, which has it, too: it may have moved on since.
                self.heads.setdefault(entry.namespace, entry.snapshot.head)

    @property
    def seen(self) -> Seen:
        """Where the thread goes on, and how many checkpoints it has."""
        return Seen(self.heads, sum(map(len, self.rows.values())))

    def read(self, namespace: str, checkpoint_id: str) -> Snapshot:
        """One checkpoint whole; empty if it is gone."""
        place = Scan(self._thread_id, namespace, checkpoint_id)
        found = self._backend.scan(place).entries
        return found[0].snapshot if found else Snapshot()

    def live_heads(self) -> Iterator[Snapshot]:
        """The heads that a run which goes on from the newest state may ask for: see `Pulled`."""
        root = self.heads.get("")
        for namespace, head in sorted(self.heads.items()):
            row = self.rows[namespace].get(head)
            if row is not None and (":" not in namespace or row.root_id == root):
                yield self.read(namespace, head)

    # -- what others are read from ---------------------------------------------------------------------------------

    def needed_above(self, namespace: str, drop: Places) -> Places:
        """Those among `drop` that checkpoints of a namespace which stay are read from."""
        needed: Places = set()
        for row in self.rows[namespace].values():
            # Only what stands right above the cut has to look beyond it.
            if (namespace, row.checkpoint_id) not in drop and (namespace, row.parent_id) in drop:
                needed.update((namespace, each) for each in self._read_from(namespace, row))
        return needed & drop

    def _read_from(self, namespace: str, row: CheckpointRow) -> set[str]:
        """The ancestors that a checkpoint is read from."""
        rows, needed = self.rows[namespace], set[str]()
        if deltas := delta_channels(row):
            lineage = self._backend.lineage(
                self._thread_id, namespace, row.checkpoint_id, sorted(deltas)
            )
            at = rows.get(row.parent_id or "")
            while lineage and at is not None and lineage[-1].checkpoint_id not in needed:
                if at.checkpoint_id in needed:
                    break  # a forged cycle of parents
                needed.add(at.checkpoint_id)
                at = rows.get(at.parent_id or "")
        if row.format < SENDS_IN_PARENT_BELOW and row.parent_id in rows:
            sends = self._backend.read(self._thread_id, namespace, row.checkpoint_id).sends
            if any(write.channel == TASKS for write in sends):
                needed.add(row.parent_id or "")
        return needed

    # -- branches --------------------------------------------------------------------------------------------------

    def open_branches(self, namespace: str) -> set[str]:
        """The checkpoints of a namespace's branches that somebody may have to decide about.

        These are what the caller named; what grew out of the head, which is a copy that is under way; and branches
        beside another device's step, which stays with them, so that they are known again. Who goes back in a thread and
        on from there leaves such a branch, too, if another device made what is left behind.
        """
        rows, head = self.rows[namespace], self.heads.get(namespace)
        line = {row.checkpoint_id for row in _upwards(rows, head)}
        beside: defaultdict[str | None, list[CheckpointRow]] = defaultdict(list)
        for row in rows.values():
            beside[row.parent_id].append(row)
        kept: set[str] = set()
        for branch in self._undecided:
            if branch.namespace != namespace:
                continue
            for row in _upwards(rows, branch.tip_id):
                kept.add(row.checkpoint_id)
                if row.checkpoint_id == branch.first_id:
                    break
        for tip in rows:
            if tip in beside or tip in line:
                continue
            walked: list[str] = []
            for row in _upwards(rows, tip):
                if row.checkpoint_id in line:
                    break
                walked.append(row.checkpoint_id)
                rivals = [r for r in beside[row.parent_id] if r.device != row.device]
                if rivals or (head is not None and row.parent_id == head):
                    kept.update(walked)
                    kept.update(rival.checkpoint_id for rival in rivals)
        return kept

    def asking_tips(self, namespace: str, among: Places | None = None) -> set[str]:
        """The ends of a namespace's branches where a step waits for an answer; only those `among` some."""
        rows = self.rows[namespace]
        parents = {row.parent_id for row in rows.values()}
        return {
            id
            for id in rows
            if id not in parents and (among is None or (namespace, id) in among)
            if any(write.channel == INTERRUPT for write in self.read(namespace, id).writes)
        }


def doomed(history: History, goes: Callable[[str, CheckpointRow], bool]) -> Places:
    """What goes of a history.

    Args:
        history: The thread's.
        goes: Tells whether a limit says that a checkpoint goes. Asked newest first.
    """
    gone: Places = set()
    # The root graph first: calls of subgraphs go with the checkpoints that they belong to.
    for namespace in sorted(history.rows):
        rows, head = history.rows[namespace], history.heads.get(namespace)
        if head not in rows:
            continue  # nobody knows what this goes on from
        if _is_finished_call(namespace, rows[head], gone):
            gone |= {(namespace, checkpoint_id) for checkpoint_id in rows}
            continue
        stays = {head} | history.open_branches(namespace)
        drop = {
            (namespace, row.checkpoint_id)
            for row in rows.values()
            if goes(namespace, row) and row.checkpoint_id not in stays
        }
        drop -= {(namespace, tip) for tip in history.asking_tips(namespace, drop)}
        gone |= drop - history.needed_above(namespace, drop)
    return gone


def _is_finished_call(namespace: str, head: CheckpointRow, gone: Places) -> bool:
    """Whether a namespace is one call of a subgraph that belongs to a root checkpoint about to go.

    A call's namespace ends with its task id behind a colon; a subgraph with a checkpointer of its own has none there
    and lives on from call to call.
    """
    return ":" in namespace and head.root_id is not None and ("", head.root_id) in gone


def _upwards(rows: Rows, checkpoint_id: str | None) -> Iterator[CheckpointRow]:
    """A checkpoint and its ancestors, as far as they are there."""
    seen: set[str] = set()
    row = rows.get(checkpoint_id or "")
    while row is not None and row.checkpoint_id not in seen:
        seen.add(row.checkpoint_id)
        yield row
        row = rows.get(row.parent_id or "")


# -- what is not at its end --------------------------------------------------------------------------------------------

_START, _JOIN = "__start__", "join:"
# Channels of LangGraph's own that are empty once what they set off has run; the names with a colon at their beginning.
_TRIGGERS = (_START, "branch:", "start:")


def is_unfinished(snapshot: Snapshot) -> bool:
    """Tell whether a run that goes on from a checkpoint has something left to do.

    So it is where a step waits for an answer or at a breakpoint (`interrupt_before`, `interrupt_after`), where it
    failed or was killed, and while it runs: the stored bytes do not tell these apart. Where they do not tell at all the
    answer is yes: a node that waits for several others, with the values encrypted. They do not tell of a node that
    never ran and has no channel of its own to set it off, which only graphs built on `Pregel` itself have.
    """
    row = snapshot.checkpoint
    if row is None:
        return False
    if snapshot.writes or any(write.channel == TASKS for write in snapshot.sends):
        return True
    seen = json.loads(row.body).get("versions_seen") or {}
    ran_on = [
        (channel, str(version))
        for node, versions in seen.items()
        if node not in ("__input__", "__interrupt__")
        for channel, version in (versions or {}).items()
    ]
    return any(_sets_off(blob, ran_on) for blob in snapshot.blobs)


def _sets_off(blob: BlobRow, ran_on: Sequence[tuple[str, str]]) -> bool:
    """Whether a value makes a node run.

    Args:
        blob: The value.
        ran_on: Channels and the versions of them that nodes have run on.
    """
    sealed = blob.type.endswith(SEALED)
    if blob.channel == TASKS:
        # A list, which stays when it is empty. Encryption adds 33 bytes.
        return len(blob.data) - 33 * sealed > len(b"[]")
    if blob.channel.startswith(_TRIGGERS):
        return True
    if blob.channel.startswith(_JOIN):
        awaited = blob.channel[len(_JOIN) :].rpartition(":")[0].split("+")
        as_stored = _packed if blob.type == "msgpack" else str.encode
        return sealed or all(as_stored(name) in blob.data for name in awaited)
    return any(channel == blob.channel and version != blob.version for channel, version in ran_on)


def _packed(text: str) -> bytes:
    """A text as it stands in msgpack, told from one that it is a part of."""
    data = text.encode()
    size = len(data)
    if size < 32:
        return bytes([0xA0 | size]) + data
    return (
        b"\xd9" + size.to_bytes(1, "big") if size < 256 else b"\xda" + size.to_bytes(2, "big")
    ) + data
