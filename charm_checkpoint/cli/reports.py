"""What each command prints with `--json`. `docs/cli.md` is written from these, and the tests check against them.

Fields are added in later releases, never renamed or removed. Moments are ISO 8601 in UTC; `null` where a stored one is
out of range.
"""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

__all__ = [
    "Channel",
    "Check",
    "Conflict",
    "Conflicts",
    "Deletion",
    "Demonstration",
    "Diagnosis",
    "Dismissal",
    "Failure",
    "Head",
    "History",
    "Interruption",
    "Plugins",
    "Promotion",
    "Proof",
    "Provider",
    "Pull",
    "Push",
    "Refusal",
    "Shown",
    "Side",
    "Step",
    "SyncStatus",
    "Thread",
    "Threads",
    "Waiting",
]


class Thread(TypedDict):
    """One thread in a listing."""

    thread_id: str
    status: Annotated[
        str, "`interrupted` (waits for an answer), `failed` (its last step raised), else `idle`"
    ]
    updated_at: str | None
    created_at: str | None
    device: Annotated[str, "the device that wrote the newest checkpoint"]
    checkpoint_id: Annotated[str, "the newest checkpoint of the root graph"]
    namespaces: Annotated[list[str], "the root graph (`''`) and its subgraphs"]


class Threads(TypedDict):
    """What `threads` prints."""

    store: Annotated[str, "where the threads are, without secrets"]
    threads: Annotated[list[Thread], "the one written last first"]
    more: Annotated[bool, "whether `--limit` left some out"]


class Head(TypedDict):
    """The newest checkpoint of the root graph."""

    checkpoint_id: str
    parent_id: str | None
    step: Annotated[int | None, "LangGraph's count: -1 is the first input"]
    source: Annotated[str | None, "`input`, `loop`, `update` or `fork`"]
    device: str
    created_at: str | None


class Interruption(TypedDict):
    """A question that the thread waits for an answer to."""

    id: str | None
    node: Annotated[str | None, "the node that asks, where LangGraph tells"]
    value: Annotated[Any, "what it asks; what JSON has no form for is Python's `repr`"]
    error: Annotated[str | None, "why the value cannot be shown"]


class Failure(TypedDict):
    """A task that raised."""

    node: str | None
    error: str


class Channel(TypedDict):
    """One value of the state."""

    name: str
    bytes: Annotated[int, "as stored"]
    type: Annotated[str | None, "its Python type, if it can be read back"]
    preview: Annotated[str | None, "the beginning of its `repr`"]
    error: Annotated[str | None, "why it cannot be shown: a type that is not allowed, say"]


class Shown(TypedDict):
    """What `show` prints."""

    store: str
    thread_id: str
    status: Annotated[str, "as in `threads`"]
    created_at: str | None
    updated_at: str | None
    head: Head
    next: Annotated[list[str], "nodes that run when the thread goes on"]
    interrupts: list[Interruption]
    failures: list[Failure]
    channels: Annotated[list[Channel], "without LangGraph's own bookkeeping"]
    message_count: int
    messages: Annotated[list[dict[str, Any]], "the last ones, as `load_messages` gives them"]
    messages_error: Annotated[str | None, "why there are none to show"]
    namespaces: Annotated[list[str], "as in `threads`"]


class Step(TypedDict):
    """One checkpoint of a history."""

    checkpoint_id: str
    parent_id: str | None
    step: int | None
    source: str | None
    device: Annotated[str, "the device that wrote it"]
    created_at: Annotated[str | None, "by that device's clock"]
    is_head: bool
    is_branch: Annotated[bool, "whether the head does not come from it"]


class History(TypedDict):
    """What `history` prints."""

    store: str
    thread_id: str
    namespace: str
    head: Annotated[str | None, "the newest checkpoint's id"]
    total: Annotated[int, "how many checkpoints there are"]
    checkpoints: Annotated[list[Step], "children before parents, newest first"]


class Deletion(TypedDict):
    """What `delete` prints."""

    store: str
    thread_id: str
    deleted: bool


class Check(TypedDict):
    """One line of the doctor."""

    name: str
    status: Annotated[str, "`ok`, `warn` or `fail`"]
    detail: str


class Diagnosis(TypedDict):
    """What `doctor` prints."""

    store: str
    ok: Annotated[bool, "whether nothing failed"]
    checks: list[Check]


class Waiting(TypedDict):
    """What the store behind does not have yet of one thread."""

    thread_id: str
    entries: Annotated[int, "checkpoints, tasks' writes and deletions"]
    bytes: int
    since: Annotated[str | None, "when the oldest was committed here"]


class SyncStatus(TypedDict):
    """What `sync status` prints, and `sync watch` in one line each time that it changed."""

    remote: Annotated[str, "the store behind, without secrets"]
    path: Annotated[str, "this device's file"]
    entries: Annotated[int, "what is to be sent, of all threads"]
    bytes: int
    since: Annotated[str | None, "when the oldest was committed here"]
    thread_count: Annotated[int, "how many threads have something to send"]
    threads: Annotated[
        list[Waiting], "those, the one that waits longest first, as far as `--limit`"
    ]
    last_success: Annotated[str | None, "when the store behind last took something"]
    last_error: Annotated[str | None, "why it last did not"]
    offline_since: Annotated[
        str | None, "since when it is away, as the last process found that asked; else `null`"
    ]
    conflicts: Annotated[int, "branches that wait for somebody to decide"]


class Refusal(TypedDict):
    """A thread that the store behind does not take, though it answers."""

    thread_id: str
    error: str


class Push(TypedDict):
    """What `sync push` prints."""

    remote: str
    ok: Annotated[bool, "whether everything is at the store behind"]
    sent: Annotated[int, "entries"]
    bytes: Annotated[int, "of those"]
    left: Annotated[int, "entries that are on this device only"]
    thread_count: Annotated[int, "of how many threads"]
    refused: list[Refusal]
    error: Annotated[str | None, "why not all was sent"]


class Pull(TypedDict):
    """What `sync pull` prints."""

    remote: str
    path: str
    ok: Annotated[bool, "whether all of them are here"]
    threads: Annotated[list[str], "those that are here now as they are at the store behind"]
    missing: Annotated[list[str], "those that were named, and are nowhere"]
    error: Annotated[str | None, "why it ended early"]


class Conflict(TypedDict):
    """A branch that this device made because another was first."""

    thread_id: str
    namespace: Annotated[str, "the root graph's (`''`) or a subgraph's"]
    branch: Annotated[str, "its newest checkpoint: what `promote` makes the thread's newest"]
    first: Annotated[str, "its first checkpoint"]
    head: Annotated[str, "the checkpoint that stood in the way"]
    head_device: Annotated[str, "the device that was first"]
    head_moved_at: Annotated[str | None, "when, by that device's clock"]
    noticed_at: Annotated[str | None, "when this device learnt of it"]


class Conflicts(TypedDict):
    """What `conflicts` prints."""

    remote: str
    path: str
    conflicts: Annotated[list[Conflict], "the oldest first"]


class Side(TypedDict):
    """One of the two ways on."""

    checkpoint_id: str
    device: str
    created_at: str | None
    step: int | None
    message: Annotated[str | None, "the beginning of its last message"]


class Promotion(TypedDict):
    """What `promote` prints."""

    remote: str
    thread_id: str
    namespace: str
    promoted: bool
    branch: Annotated[Side, "what the thread goes on from now, if it was promoted"]
    head: Annotated[Side | None, "what it would have gone on from; stays as a branch"]


class Dismissal(TypedDict):
    """What `dismiss` prints."""

    thread_id: str
    dismissed: Annotated[list[Conflict], "what is off the list"]


class Provider(TypedDict):
    """One offer of a provider."""

    name: Annotated[str, "as in `--store NAME` and charm.yaml"]
    distribution: str
    version: str
    value: Annotated[str, "`module:Class`"]
    used: Annotated[bool, "false if another distribution's class has the name"]


class Plugins(TypedDict):
    """What `plugins` prints."""

    plugins: list[Provider]


class Proof(TypedDict):
    """Something that the demo claims, and whether it was found so."""

    claim: str
    holds: bool
    evidence: str


class Demonstration(TypedDict):
    """What `demo` prints."""

    store: Annotated[str, "the file, gone unless `--keep`"]
    thread_id: str
    ok: Annotated[bool, "whether every proof holds"]
    seconds: float
    processes: Annotated[dict[str, int], "device to process id"]
    killed_by: Annotated[str | None, "the signal that ended the first process"]
    proofs: list[Proof]
    checkpoints: Annotated[list[Step], "as in `history`"]
