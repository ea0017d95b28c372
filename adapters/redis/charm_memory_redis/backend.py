"""The Redis backend: one run of one script for each verb, which is one round trip, atomic for its thread."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from charm_checkpoint.backend import (
    Ancestor,
    HeadMark,
    Outcome,
    Page,
    Pulled,
    Scan,
    Seen,
    Snapshot,
    ThreadQuery,
    ThreadRow,
    Unit,
)
from charm_checkpoint.config import mask
from charm_checkpoint.errors import (
    BackendCorrupt,
    BackendError,
    BackendUnavailable,
    ThreadExistsError,
    ThreadNotFoundError,
)
from charm_memory_redis import wire
from charm_memory_redis.bases import Bases
from charm_memory_redis.connections import Call, Connections
from charm_memory_redis.health import Finding, examine
from charm_memory_redis.keys import Keys, part, raw
from charm_memory_redis.listing import Listing
from charm_memory_redis.scans import Scans
from charm_memory_redis.scripts import script

__all__ = ["TOMBSTONE_TTL", "RedisBackend"]

TOMBSTONE_TTL = 90 * 86400.0
"""Seconds for which a deletion is remembered unless somebody says otherwise."""

_FORMAT = b"1"
_PARALLEL_WRITES = 8
# Seconds. Nearer than this, several writes are done sooner with one call for all of them than side by side.
_FAR = 0.002


class RedisBackend:
    """Threads in Redis or Valkey.

    A batch is one transaction on a single server. In a cluster the units of each thread are one.

    Args:
        url: As redis-py takes it, `valkey://` and `valkeys://` included.
        prefix: What every key begins with.
        ttl: Seconds after which a thread that nobody writes is gone whole; `None`: never. Whoever writes last decides;
            `prune` changes nothing of it.
        refresh_on_read: Whether reading a thread counts, too.
        tombstone_ttl: Seconds for which a deletion is remembered; `None`: for ever.
        pool_size: Connections at most, per server.
        timeout: Seconds to wait for the server, or for a connection.
        cluster: Whether it is one; `None` asks the server.
        wait_replicas: How many replicas have to acknowledge a write before it is answered.

    Raises:
        ConfigError: `url` or `prefix` is not valid.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "charm",
        ttl: float | None = None,
        refresh_on_read: bool = False,
        tombstone_ttl: float | None = TOMBSTONE_TTL,
        pool_size: int = 10,
        timeout: float = 10.0,
        cluster: bool | None = None,
        wait_replicas: int = 0,
    ) -> None:
        self._connections = Connections(
            url, size=pool_size, timeout=timeout, cluster=cluster, replicas=wait_replicas
        )
        self._keys = Keys(prefix)
        self._listing = Listing(self._connections, self._keys)
        self._scans = Scans(self._connections, self._keys)
        self._bases = Bases()
        self._ttl = _milliseconds(ttl)
        self._ttl_on_read = self._ttl if refresh_on_read else b""
        self._tombstone_ttl = _milliseconds(tombstone_ttl)
        self._replicas = wait_replicas
        self._waits = wait_replicas > 0
        # Some connections are left for readers.
        self._most_parallel_writes = max(1, min(_PARALLEL_WRITES, pool_size - 2))
        self._shortest_call = float("inf")

    @property
    def name(self) -> str:
        suffix = "" if self._keys.prefix == "charm" else f" ({self._keys.prefix})"
        return f"{self._connections.name}{suffix}"

    @property
    def parallel_writes(self) -> int:
        """How many writes at once are of use: one, if the server has ever answered too soon to be far away."""
        return 1 if self._shortest_call < _FAR else self._most_parallel_writes

    def setup(self) -> None:
        found = self._run(Call(script("setup"), [self._keys.format], [_FORMAT]))
        if found != _FORMAT:
            raise BackendCorrupt(
                f"{self.name}: the keys under this prefix have format {found!r}, this release knows "
                f"{_FORMAT.decode()}; update charm-memory-redis, or use another prefix"
            )

    def diagnose(self) -> Iterator[Finding]:
        """Tell whether the server keeps what it is told."""
        return examine(self._connections, replicas=self._replicas)

    def close(self) -> None:
        self._connections.close()

    # -- writing ---------------------------------------------------------------------------------------------------

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        if not units:
            return []
        threads = list(dict.fromkeys(unit.thread_id for unit in units))
        if len(threads) == 1 or not self._connections.is_cluster:
            return self._write([(units, threads)])
        by_thread: dict[str, list[int]] = {}
        for n, unit in enumerate(units):
            by_thread.setdefault(unit.thread_id, []).append(n)
        groups = [([units[n] for n in numbers], [id]) for id, numbers in by_thread.items()]
        told = iter(self._write(groups))
        outcomes: list[Any] = [None] * len(units)
        for numbers in by_thread.values():
            for n in numbers:
                outcomes[n] = next(told)
        return outcomes

    def _write(self, groups: Sequence[tuple[Sequence[Unit], Sequence[str]]]) -> list[Outcome]:
        """Run the script once for each group of units and their threads, all at once."""
        batches = [self._batch(*group, self._bases) for group in groups]
        calls = [
            self._write_call(threads, b) for (_, threads), b in zip(groups, batches, strict=True)
        ]
        noted: dict[str, float] = {}
        if self._connections.is_cluster:
            # Before or beside the rows: what is stored is always listed.
            noted = self._listing.times(unit for units, _ in groups for unit in units)
            calls += self._listing.noting(noted)
        began = time.monotonic()
        answers = self._connections.each(*calls, waits=self._waits)
        self._shortest_call = min(self._shortest_call, time.monotonic() - began)
        for n, (units, threads) in enumerate(groups):
            if answers[n] == b"base":
                # The server lost a base, or somebody replaced it: send everything whole.
                batches[n] = self._batch(units, threads, None)
                call = self._write_call(threads, batches[n])
                [answers[n]] = self._connections.each(call, waits=self._waits)
        written, found = answers[: len(groups)], answers[len(groups) :]
        self._raise_refusals(written, found)
        outcomes: list[Outcome] = []
        times: dict[str, bytes] = {}
        for (units, threads), batch, (told, moved) in zip(groups, batches, written, strict=True):
            for stored in batch.values:
                if told[stored.unit][1] == b"+":
                    self._bases.remember(stored.thread_id, stored.namespace, stored.held)
            times.update(zip(threads, moved, strict=True))
            outcomes += map(wire.outcome, units, told)
        if noted:
            self._listing.correct(noted, found, times)
        if self._ttl:
            self._listing.begun(unit for units, _ in groups for unit in units)
        return outcomes

    def _raise_refusals(self, written: Sequence[Any], noted: Sequence[Any]) -> None:
        """Raise what the servers of a batch refused, as what it means for the batch."""
        errors = [each for each in (*written, *noted) if isinstance(each, BackendError)]
        if not errors:
            return
        for error in errors:
            if isinstance(error, BackendUnavailable):
                raise error
        if all(isinstance(each, BackendError) for each in written):
            raise errors[0]
        raise BackendUnavailable(
            f"one server of the cluster refused its part, so a part of these steps is stored or is not in the list of "
            f"threads; repeat them ({mask(str(errors[0].__cause__))})"
        ) from errors[0]

    def _batch(
        self, units: Sequence[Unit], threads: Sequence[str], bases: Bases | None
    ) -> wire.Batch:
        return wire.batch(units, threads, bases, ttl=self._ttl, waits=self._waits)

    def _write_call(self, threads: Sequence[str], batch: wire.Batch) -> Call:
        keys = [key for thread_id in threads for key in self._keys.thread(thread_id)]
        return Call(script("write"), keys + self._index(), batch.arguments)

    def _index(self) -> list[bytes]:
        """The recency index, where a script can reach it beside a thread's keys."""
        return [] if self._connections.is_cluster else [self._keys.index]

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Snapshot:
        held = wire.fields_held(self._bases.held(thread_id, namespace))
        wanted = b"" if checkpoint_id is None else part(checkpoint_id)
        arguments = [part(namespace), wanted, wire.stamps(held), self._ttl_on_read]
        told = self._run(Call(script("read"), self._keys.thread(thread_id), arguments))
        return wire.snapshot(thread_id, told, held, self._bases)

    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        values = wire.fields_held(self._bases.held(thread_id))
        arguments = [wire.marks_held(held), wire.stamps(values), self._ttl_on_read]
        told = self._run(Call(script("pull"), self._keys.thread(thread_id), arguments))
        return wire.pulled(thread_id, told, values, self._bases)

    def scan(self, query: Scan) -> Page:
        return self._scans.scan(query)

    def lineage(
        self, thread_id: str, namespace: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> Sequence[Ancestor]:
        held = wire.fields_held(self._bases.held(thread_id, namespace))
        wanted = b"" if checkpoint_id is None else part(checkpoint_id)
        asked = wire.packed([part(channel) for channel in channels])
        arguments = [part(namespace), wanted, asked, wire.stamps(held), self._ttl_on_read]
        told = self._run(Call(script("lineage"), self._keys.thread(thread_id)[:2], arguments))
        return wire.lineage(thread_id, namespace, told, held, self._bases)

    def threads(self, query: ThreadQuery) -> Sequence[ThreadRow]:
        return self._listing.threads(query)

    # -- deleting and copying --------------------------------------------------------------------------------------

    def delete(self, thread_id: str, *, at: float) -> bool:
        """As `Backend.delete`.

        A `BackendUnavailable` (the answer was lost, replicas did not acknowledge) may come of a deletion that was done;
        repeated, it is False.
        """
        return self._delete(thread_id, at, b"")

    def delete_if(self, thread_id: str, seen: Seen, *, at: float) -> bool:
        """As `delete`, but of a thread only that is as it was `seen`.

        Repeated after an error it is False although the first call did it: the thread is gone then.
        """
        heads = {part(namespace): part(id) for namespace, id in seen.heads.items()}
        return self._delete(thread_id, at, wire.packed([heads, seen.checkpoints]))

    def _delete(self, thread_id: str, at: float, seen: bytes) -> bool:
        keys = [*self._keys.thread(thread_id), *self._index()]
        arguments = [
            *(raw(thread_id), wire.seconds(at), self._tombstone_ttl, int(self._waits), seen)
        ]
        told = self._run(Call(script("delete"), keys, arguments), waits=self._waits)
        if told and self._connections.is_cluster:
            self._listing.amend(thread_id, told, b"")
        return bool(told)

    def copy(self, source: str, target: str, *, at: float) -> None:
        if self._connections.is_cluster:
            told = self._copy_between_servers(source, target, at)
        else:
            keys = [*self._keys.thread(source)[:2], *self._keys.thread(target)[:2], *self._index()]
            arguments = [raw(target), wire.seconds(at), self._ttl]
            told = self._run(Call(script("copy"), keys, arguments), waits=self._waits)
        if told == b"missing":
            raise ThreadNotFoundError(f"thread {source!r} has no checkpoints to copy")
        if told == b"exists":
            raise ThreadExistsError(
                f"thread {target!r} already has checkpoints; delete it or copy to another id"
            )

    def _copy_between_servers(self, source: str, target: str, at: float) -> Any:
        dumped = self._run(Call(script("dump"), self._keys.thread(source)[:2], []))
        if not dumped:
            return b"missing"
        arguments = [wire.seconds(at), self._ttl, *dumped]
        call = Call(script("restore"), self._keys.thread(target)[:2], arguments)
        told = self._run(call, waits=self._waits)
        if told != b"exists":
            self._listing.note(target, told)
        return told

    def prune(self, thread_id: str, drop: Sequence[tuple[str, str]]) -> int:
        doomed: dict[bytes, list[bytes]] = {}
        for namespace, checkpoint_id in drop:
            doomed.setdefault(part(namespace), []).append(part(checkpoint_id))
        if not doomed:
            return 0
        keys = [*self._keys.thread(thread_id)[:2], *self._index()]
        arguments = [raw(thread_id), wire.packed(list(doomed.items())), int(self._waits)]
        call = Call(script("prune"), keys, arguments)
        removed, updated, before = self._run(call, waits=self._waits)
        if before != updated and self._connections.is_cluster:
            self._listing.amend(thread_id, before, updated)
        return int(removed)

    def _run(self, call: Call, *, waits: bool = False) -> Any:
        began = time.monotonic()
        [answer] = self._connections.run(call, waits=waits)
        self._shortest_call = min(self._shortest_call, time.monotonic() - began)
        return answer


def _milliseconds(seconds: float | None) -> bytes:
    return b"" if seconds is None else b"%d" % max(1, round(seconds * 1000))
