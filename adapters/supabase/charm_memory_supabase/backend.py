"""The Supabase backend: one request for each verb, which is one transaction of the Postgres store's functions."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

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
from charm_checkpoint.errors import (
    BackendError,
    BackendReadOnly,
    BackendUnavailable,
    ThreadExistsError,
    ThreadNotFoundError,
)
from charm_memory_postgres import wire
from charm_memory_postgres.bases import Bases
from charm_memory_supabase.bearer import Bearer, Token
from charm_memory_supabase.client import Project
from charm_memory_supabase.errors import TO_RUN, BaseLost, TooSlow
from charm_memory_supabase.packing import pack
from charm_memory_supabase.schema import FUNCTIONS

__all__ = ["MAX_REQUEST", "SupabaseBackend"]

MAX_REQUEST = 4 * 1024 * 1024
"""Bytes of a request above which a batch is sent in parts."""

_PARALLEL_WRITES = 8
# A page of a scan ends early when its values are more than this.
_PAGE_BYTES = 4 * 1024 * 1024


class SupabaseBackend:
    """Threads in a Supabase project, in the tables of `charm-memory-postgres`, over HTTPS.

    A batch above `max_request` is several transactions, each of whole units, in their order.

    Args:
        url: The project's, `https://<ref>.supabase.co`.
        key: The service key; or the project's public key with a user's `access_token`.
        access_token: The user's, or what returns a fresh one: called at first, and when the last one has expired.
        owner: With the service key: the user to act as. With an access token: the user it has to be of.
        timeout: Seconds to wait for an answer; fractions count.
        max_request: Bytes of a request at most, unless a single unit has more.
        pool_size: Connections at most.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str,
        access_token: Token | None = None,
        owner: str | None = None,
        timeout: float = 10.0,
        max_request: int = MAX_REQUEST,
        pool_size: int = 10,
    ) -> None:
        url = url.rstrip("/")
        self._bearer = Bearer(url, access_token, owner)
        acts_for = owner if access_token is None else None
        self._project = Project(
            url, key, self._bearer, acts_for=acts_for, timeout=timeout, size=pool_size
        )
        self._max_request = max_request
        # Some connections are left for readers.
        self.parallel_writes = max(1, min(_PARALLEL_WRITES, pool_size - 2))
        self._bases = Bases()

    @property
    def name(self) -> str:
        """Where, and whose as far as that is known: replicas of two users are two."""
        user = self._bearer.owner
        return self._project.url if user is None else f"{self._project.url} ({user})"

    def settle_name(self, names: Callable[[], Iterable[str]]) -> None:
        """Know whose threads are meant: of the user whose token it is, or who has the only replica of this project.

        Raises:
            BackendUnavailable: There is no token to be had, nor one such replica.
            BackendError: Nobody is signed in, or somebody else.
        """
        if self._bearer.owner is not None:
            return
        try:
            self._bearer.token()
        except BackendUnavailable as error:
            prefix = f"{self._project.url} ("
            users = {n[len(prefix) : -1] for n in names() if n.startswith(prefix)}
            if len(users) != 1:
                raise BackendUnavailable(
                    f"{error}; whose replica is to be opened is not known without one, unless owner says it"
                ) from error
            self._bearer.owner = users.pop()

    def setup(self) -> None:
        """Check that the migration is there; nothing is made over HTTPS."""
        about = self.about()
        if about["tables"] < wire.VERSION or about["functions"] < FUNCTIONS:
            raise BackendReadOnly(f"{self._project.url} has an older release's functions. {TO_RUN}")

    def close(self) -> None:
        self._project.close()

    def diagnose(self) -> Iterator[tuple[str, Literal["ok", "warn", "fail"], str]]:
        """Tell what is missing, and what others could reach."""
        try:
            self.setup()
            about = self.about()
        except BackendError as error:
            yield "migration", "fail", str(error)
            return
        schema = about["schema"]
        yield "migration", "ok", f"release {about['tables']}.{about['functions']}, schema {schema}"
        who = (
            f"user {about['user']}, and only threads of this user"
            if about["user"]
            else "all threads"
        )
        yield "rights", "ok", f"{about['role']}: {who}"
        names = ("charm_threads", "checkpoints")
        exposed = [
            *(f"anon may call {name}" for name in about["to_anon"] or ()),
            *(["anon may use the schema"] if about["anon_in_schema"] else []),
            *(f"{name} has no row level security" for name in about["without_policies"] or ()),
            *(
                f"the REST interface reads {table}"
                for table in self._project.exposed({schema: names, "public": names[:1]})
            ),
        ]
        hint = f"run again what `charm-checkpoint sql supabase` prints, and do not expose the schema {schema}"
        if exposed:
            yield "exposed", "fail", f"{'; '.join(exposed)}: {hint}"
        else:
            yield (
                "exposed",
                "ok",
                "nothing: no table can be read, and nobody can call who has not signed in",
            )

    def about(self) -> dict[str, Any]:
        """What the migration says of itself: its release, who asks, and what stands open."""
        told = self._call("about", {})
        if not isinstance(told, dict) or "tables" not in told:
            raise BackendError(
                f"{self._project.url}: what answered is not the migration. Is this the URL of a Supabase project?"
            )
        return told

    # -- writing ---------------------------------------------------------------------------------------------------

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        if not units:
            return []
        try:
            return self._send(units, self._bases)
        except BaseLost:
            # Somebody replaced the base, or took it away: send everything whole.
            return self._send(units, None)

    def _send(self, units: Sequence[Unit], bases: Bases | None) -> list[Outcome]:
        message = wire.encode(units, bases)
        size = len(message.info) + len(message.payload)
        if size * 4 // 3 > self._max_request and len(units) > 1:
            return self._send_halves(units, bases)
        try:
            return wire.outcomes(units, self._write(message), self._bases)
        except TooSlow:
            if len(units) == 1:
                raise
            return self._send_halves(units, bases)

    def _send_halves(self, units: Sequence[Unit], bases: Bases | None) -> list[Outcome]:
        middle = len(units) // 2
        return [*self._send(units[:middle], bases), *self._send(units[middle:], bases)]

    def _write(self, message: wire.Message) -> Any:
        units = message.info.encode()
        packed = pack(units + message.payload)
        data = base64.b64encode(packed.data).decode()
        return self._call("write", {"units": len(units), "moves": packed.moves, "data": data})

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Snapshot:
        held = self._bases.held(thread_id, namespace)
        asked = {
            "thread": thread_id,
            "ns": namespace,
            "id": checkpoint_id,
            "held": wire.blobs_held(held),
        }
        return wire.snapshot(self._rows("read", asked), self._bases, held)

    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        rows = self._rows("pull", {"thread": thread_id, "held": wire.held(held)})
        return wire.pulled(rows, self._bases)

    def scan(self, query: Scan) -> Page:
        return wire.page(self._rows("scan", wire.scan_asked(query, _PAGE_BYTES)))

    def lineage(
        self, thread_id: str, namespace: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> Sequence[Ancestor]:
        asked = {
            "thread": thread_id,
            "ns": namespace,
            "id": checkpoint_id,
            "channels": list(channels),
        }
        return wire.lineage(self._rows("lineage", asked))

    def threads(self, query: ThreadQuery) -> Sequence[ThreadRow]:
        asked = wire.threads_asked(query)
        if asked is None:
            return []
        return [wire.thread_row(each) for each in self._call("threads", asked) or ()]

    # -- deleting and copying --------------------------------------------------------------------------------------

    def delete(self, thread_id: str, *, at: float) -> bool:
        return bool(self._call("delete", {"thread": thread_id, "at": at}))

    def delete_if(self, thread_id: str, seen: Seen, *, at: float) -> bool:
        """As `delete`, but of a thread only that is as it was `seen`."""
        asked = {"thread": thread_id, "at": at, "seen": wire.seen(seen)}
        return bool(self._call("delete", asked))

    def copy(self, source: str, target: str, *, at: float) -> None:
        told = self._call("copy", {"source": source, "target": target, "at": at})
        if told == "missing":
            raise ThreadNotFoundError(f"thread {source!r} has no checkpoints to copy")
        if told == "exists":
            raise ThreadExistsError(
                f"thread {target!r} already has checkpoints; delete it or copy to another id"
            )

    def prune(self, thread_id: str, drop: Sequence[tuple[str, str]]) -> int:
        return int(self._call("prune", {"thread": thread_id, "doomed": wire.doomed(drop)}))

    def _rows(self, verb: str, asked: dict[str, Any]) -> list[wire.Row]:
        return [
            wire.Row(kind, fact, None if data is None else base64.b64decode(data))
            for kind, fact, data in self._call(verb, asked)
        ]

    def _call(self, verb: str, asked: dict[str, Any]) -> Any:
        return self._project.call(f"charm_rest_{verb}_v1", asked)
