"""What each command prints with `--json`. `docs/cli.md` is written from these, and the tests check against them.

Fields are added in later releases, never renamed or removed. Moments are ISO 8601 in UTC; `null` where a stored one is
out of range.
"""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

__all__ = [
    "Channel",
    "Check",
    "Deletion",
    "Demonstration",
    "Diagnosis",
    "Failure",
    "Head",
    "History",
    "Interruption",
    "Plugins",
    "Proof",
    "Provider",
    "Shown",
    "Step",
    "Thread",
    "Threads",
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
