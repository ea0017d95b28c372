"""What each command prints with `--json`. `docs/cli.md` is written from these, and the tests check against them.

Fields are added in later releases, never renamed or removed. Moments are ISO 8601 in UTC; `null` where a stored one is
out of range.
"""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

__all__ = [
    "Channel",
    "Check",
    "Compaction",
    "Compared",
    "Conflict",
    "Conflicts",
    "Copied",
    "Copy",
    "Demonstration",
    "Diagnosis",
    "Diff",
    "Difference",
    "Dismissal",
    "ErasedThread",
    "Erasure",
    "ErasurePlace",
    "Export",
    "Failure",
    "Fork",
    "Head",
    "History",
    "Interruption",
    "NewStep",
    "Part",
    "Plugins",
    "Promotion",
    "Proof",
    "Provider",
    "PrunedThread",
    "Pruning",
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
    "Watched",
]


class Thread(TypedDict):
    """One thread in a listing."""

    thread_id: str
    status: Annotated[
        str, "`interrupted` (waits for an answer), `failed` (its last step raised), else `idle`"
    ]
    diverged: Annotated[
        bool, "whether a branch of it waits in this device's replica for somebody to decide"
    ]
    updated_at: str | None
    created_at: str | None
    device: Annotated[str, "the device that wrote the newest checkpoint"]
    checkpoint_id: Annotated[str, "the newest checkpoint of the root graph"]
    namespaces: Annotated[list[str], "the root graph (`''`) and its subgraphs"]
    labels: Annotated[dict[str, Any], "texts, whole numbers and booleans of its newest metadata"]


class Threads(TypedDict):
    """What `threads` prints."""

    store: Annotated[str, "where the threads are, without secrets"]
    threads: Annotated[list[Thread], "the one written last first"]
    more: Annotated[bool, "whether `--limit` left some out"]
    filtered: Annotated[bool, "whether only some threads were asked for"]


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
    diverged: Annotated[bool, "as in `threads`"]
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


class Compared(TypedDict):
    """One of two checkpoints that were compared."""

    thread_id: str
    checkpoint_id: str
    step: int | None
    source: str | None
    device: str
    created_at: str | None


class Part(TypedDict):
    """A place within a channel's value where the two differ."""

    path: Annotated[
        str, "where: `[3]` or `['key']`, one behind the other; for messages the place in the list"
    ]
    change: Annotated[str, "`added`, `removed` or `changed`"]
    before: Annotated[Any, "what was there; what JSON has no form for is Python's `repr`"]
    after: Annotated[Any, "what is there"]


class Difference(TypedDict):
    """A channel whose value differs."""

    channel: str
    change: Annotated[str, "`added`, `removed` or `changed`"]
    before: Annotated[str | None, "the beginning of its `repr`, of messages how many"]
    after: str | None
    parts: Annotated[list[Part], "of a list or mapping what differs within, messages by their ids"]
    counts: Annotated[dict[str, int], "by `change` how many parts there are"]
    more: Annotated[int, "how many of the parts `--limit` left out"]
    as_writes: Annotated[
        bool,
        "whether the parts are what was written to the channel on either way since the two parted: it is kept as "
        "changes, which only its graph puts together",
    ]
    error: Annotated[str | None, "why the values cannot be shown"]


class Diff(TypedDict):
    """What `diff` prints."""

    store: str
    namespace: str
    before: Annotated[Compared | None, "`null` where the first checkpoint is compared with nothing"]
    after: Compared
    differences: Annotated[list[Difference], "by name, without LangGraph's own bookkeeping"]
    unchanged: Annotated[list[str], "the other channels"]


class NewStep(Step):
    """A checkpoint that came while its thread was watched."""

    namespace: Annotated[str, "the root graph's (`''`) or a subgraph's"]


class Watched(TypedDict):
    """What `watch` prints in one line at first, and each time that something changed."""

    store: str
    thread_id: str
    at: Annotated[str | None, "when it was seen, by the clock of whoever watches"]
    status: Annotated[str, "as in `threads`, or `deleted`"]
    head: Annotated[Head | None, "`null` when it was deleted"]
    new: Annotated[list[NewStep], "checkpoints since the line before, oldest first"]
    next: Annotated[list[str], "nodes that run when the thread goes on"]
    interrupts: list[Interruption]
    failures: list[Failure]
    message: Annotated[str | None, "the beginning of its last message"]


class PrunedThread(TypedDict):
    """One thread that lost something, or that the limits do not hold for."""

    thread_id: str
    checkpoints: Annotated[int, "how many went"]
    bytes: Annotated[int | None, "how much less is stored; `null` where the database cannot tell"]
    deleted: Annotated[bool, "whether all of it went, for being idle"]
    kept: Annotated[str | None, "why the limits do not hold for it"]


class Pruning(TypedDict):
    """What `prune` prints."""

    store: str
    dry_run: Annotated[bool, "whether nothing was removed"]
    looked_at: Annotated[int, "how many threads"]
    checkpoints: Annotated[int, "how many went, or with `--dry-run` would go"]
    bytes: Annotated[int | None, "of all threads; with `--dry-run` an estimate"]
    threads: list[PrunedThread]


class Compaction(TypedDict):
    """What `compact` prints."""

    store: str
    before: Annotated[int, "bytes of the file; of a server: of the values"]
    after: int
    complete: Annotated[
        bool | None,
        "false if it shrinks only when others stop reading it; `null` of a server, which keeps the room for what comes",
    ]


class ErasedThread(TypedDict):
    """One thread that was to be removed."""

    thread_id: str
    checkpoints: Annotated[int, "how many it had"]
    known: Annotated[bool, "whether there was anything of it, or had been before it was deleted"]
    error: Annotated[str | None, "why it is not removed, or not known to be"]


class ErasurePlace(TypedDict):
    """One place where the threads were looked for afterwards."""

    name: str
    gone: Annotated[bool, "whether nothing of them can be read there"]
    overwritten: Annotated[
        bool | None,
        "whether its file holds no byte of them; `null` after `delete`, and where a server has its own",
    ]
    error: Annotated[str | None, "why it is not done there, or not known to be"]


class Erasure(TypedDict):
    """The receipt that `delete` and `erase` print."""

    store: str
    confirmed: Annotated[bool, "false if you said no"]
    found: Annotated[bool, "whether there were threads, and each that was named is known"]
    done: Annotated[bool, "whether they were found, and nothing is left to do in any place"]
    at: Annotated[str | None, "when it was"]
    labels: Annotated[
        dict[str, Any], "what threads were looked for by; of several values in a list one is enough"
    ]
    threads: list[ErasedThread]
    places: list[ErasurePlace]


class Copied(TypedDict):
    """What became of one thread that was to be copied."""

    thread_id: str
    outcome: Annotated[
        str,
        "`copied`; `updated`: an earlier state was there; `same`: all of it was there; `differs`, `deleted`: another "
        "state of it is there, or it was deleted there, and it was left as it was; `invalid`: its id is none here",
    ]
    checkpoints: Annotated[int, "how many it has; for one that differs, as far as it was looked at"]
    sent: Annotated[int, "how many of them were sent; in a dry run, would be"]
    bytes: Annotated[int, "what those hold"]
    detail: Annotated[str, "why it was left as it was"]


class Copy(TypedDict):
    """What `copy` and `import` print."""

    source: Annotated[str, "where the threads come from, without secrets"]
    target: str
    dry_run: bool
    verified: Annotated[bool, "whether every checkpoint was read back and compared"]
    threads: list[Copied]
    checkpoints: Annotated[int, "how many were sent, of all threads"]
    left: Annotated[list[str], "threads that were left as they were"]


class Export(TypedDict):
    """What `export` prints."""

    source: str
    path: str
    threads: Annotated[list[str], "their ids, as they are in the file"]
    checkpoints: int
    bytes: Annotated[int, "of the file"]


class Fork(TypedDict):
    """What `fork` prints."""

    store: str
    source: Annotated[str, "the thread that was forked"]
    thread_id: Annotated[str, "the new one"]
    checkpoint_id: Annotated[str, "where it goes on from"]
    status: Annotated[str, "as in `threads`"]
    created_at: Annotated[str | None, "when its history began"]


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
