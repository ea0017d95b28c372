"""Encryption at rest: channel values and pending writes are ciphertexts from the seam on downwards.

`Encryption.over` puts a door in front of a backend. What goes through it is encrypted, what comes back is decrypted, so
everything above (the codec, the tools) works with plain rows and everything below (the database, a replica's file, its
outbox, the wire) with ciphertexts, which it moves as it moves any bytes.

**What is encrypted** is the `data` of every blob and write, with AES-256-GCM. Each thread has a key of its own, derived
(HKDF) from the master key and the thread's id, and each value is bound to its place: thread, namespace, channel,
version and type; for a write also its checkpoint, task, path and number. A value that was altered, or put into another
place, is not read back.

**The nonce** is no random number but an HMAC of the place and the value. So a write that is repeated, because its
answer was lost, gives the same bytes again, which is what idempotence and fencing compare; and neither a bad source of
randomness nor a restored snapshot of a machine can use a nonce twice for two values. Equal values can be told from
each other as equal only in the same place. Of 2³² values in one thread two get the same nonce with a chance of 2⁻³³.

The bytes: format (1), id of the master key (4), nonce (12), ciphertext, tag (16). The type gets `+aesgcm` at its end.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from charm_checkpoint.backend import (
    SEALED,
    Ancestor,
    Backend,
    BlobRow,
    Entry,
    HeadMark,
    Outcome,
    Page,
    Pulled,
    PutCheckpoint,
    PutWrites,
    Scan,
    Snapshot,
    ThreadQuery,
    ThreadRow,
    Unit,
    WriteRow,
)
from charm_checkpoint.config import flag
from charm_checkpoint.engine import Engine, RetryPolicy
from charm_checkpoint.errors import (
    ConfigError,
    DeserializationError,
    ThreadDeletedError,
    ThreadExistsError,
    ThreadNotFoundError,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from charm_checkpoint.moving.source import BackendSource, Thread

__all__ = ["Encryption"]

_FORMAT = b"\x01"
_KEY_BYTES, _ID_BYTES, _NONCE_BYTES = 32, 4, 12
_HEADER = len(_FORMAT) + _ID_BYTES + _NONCE_BYTES


class _ThreadKey(NamedTuple):
    cipher: AESGCM
    nonces: bytes
    """Key of the HMAC that makes nonces."""


class _Place(NamedTuple):
    """Where a value belongs: what it is bound to, and how to name it to people."""

    thread_id: str
    channel: str
    bound: bytes


class Encryption:
    """Keys, and what to do with values that are not encrypted.

    Args:
        key: 32 random bytes, or their Base64; of several the first encrypts, and all decrypt.
        accept_plaintext: Whether values that are not encrypted are read, too. For the time of a migration only: whoever
            can write to the database can forge such values.

    Raises:
        ConfigError: A key is not valid, or the package `cryptography` is not installed.
    """

    def __init__(
        self, key: str | bytes | Sequence[str | bytes], *, accept_plaintext: bool = False
    ) -> None:
        try:
            import cryptography  # noqa: F401 - here, so that a store without it does not even open
        except ImportError as error:
            raise ConfigError(
                'encryption needs the package cryptography: pip install "charm-checkpoint[encryption]"'
            ) from error
        masters = [_master(k) for k in ([key] if isinstance(key, (str, bytes)) else key)]
        if not masters:
            raise ConfigError("encryption: no key is given")
        self._masters = {_id_of(master): master for master in masters}
        self._writes_with = _id_of(masters[0])
        self._accept_plaintext = accept_plaintext
        self._thread_key = lru_cache(maxsize=4096)(self._derive)

    @classmethod
    def of(cls, setting: Any) -> Encryption:
        """Make it of a config's `encryption`: a mapping with `key` and `accept_plaintext`, or one that is made already.

        Raises:
            ConfigError: The setting is not valid.
        """
        if isinstance(setting, Encryption):
            return setting
        if not isinstance(setting, Mapping) or "key" not in setting:
            raise ConfigError(
                'encryption must be a mapping with a key: {key: "${CHARM_ENCRYPTION_KEY}"}'
            )
        if unknown := sorted(map(str, set(setting) - {"key", "accept_plaintext"})):
            raise ConfigError(
                f"encryption takes key and accept_plaintext, not {', '.join(unknown)}"
            )
        key = setting["key"]
        if not isinstance(key, (str, bytes, list, tuple)):
            raise ConfigError("encryption.key must be a text, or a list of texts")
        plain = flag(setting.get("accept_plaintext", False), "encryption.accept_plaintext")
        return cls(key, accept_plaintext=plain)

    @property
    def key_ids(self) -> tuple[str, ...]:
        """What messages call the keys by, the one that encrypts first. It tells nothing of the key."""
        return tuple(key_id.hex() for key_id in self._masters)

    def __repr__(self) -> str:
        return f"Encryption(<{', '.join(self.key_ids)}>)"

    def over(self, backend: Backend) -> Backend:
        """A door to `backend`: values are encrypted on their way in, and decrypted on their way out."""
        return _Door(backend, self)

    # -- one value -------------------------------------------------------------------------------------------------

    def seal(self, place: _Place, type_: str, data: bytes) -> tuple[str, bytes]:
        key = self._thread_key(self._writes_with, place.thread_id)
        bound = place.bound + _field(type_)
        nonce = hmac.digest(key.nonces, _lengthened(bound) + data, "sha256")[:_NONCE_BYTES]
        header = _FORMAT + self._writes_with + nonce
        return type_ + SEALED, header + key.cipher.encrypt(nonce, data, bound)

    def open(self, place: _Place, type_: str, data: bytes) -> tuple[str, bytes]:
        """Decrypt a value.

        Raises:
            DeserializationError: It is in plain text, of a key that is not there, altered, or not of this place.
        """
        where = f"thread {place.thread_id!r}: the stored value of channel {place.channel!r}"
        if not type_.endswith(SEALED):
            if self._accept_plaintext:
                return type_, data
            raise DeserializationError(
                f"{where} is plain text, and a store with a key reads only what is encrypted. If it was written before "
                "there was a key, read it with accept_plaintext: true beside the key, and copy the thread"
            )
        if len(data) < _HEADER or data[:1] != _FORMAT:
            raise DeserializationError(
                f"{where} is encrypted in a form that this release does not know, or is damaged"
            )
        key_id, nonce = data[1 : 1 + _ID_BYTES], data[1 + _ID_BYTES : _HEADER]
        if key_id not in self._masters:
            raise DeserializationError(
                f"{where} is encrypted with key {key_id.hex()}, and there is only {', '.join(self.key_ids)}. Name that "
                "key, too, behind the first one in encryption.key"
            )
        from cryptography.exceptions import InvalidTag

        type_ = type_.removesuffix(SEALED)
        cipher = self._thread_key(key_id, place.thread_id).cipher
        try:
            return type_, cipher.decrypt(nonce, data[_HEADER:], place.bound + _field(type_))
        except InvalidTag as error:
            raise DeserializationError(
                f"{where} is not what was stored there: it was altered, or belongs to another place or thread. Restore "
                "a backup"
            ) from error

    def _derive(self, key_id: bytes, thread_id: str) -> _ThreadKey:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

        info = _field("charm-checkpoint aesgcm 1") + _field(thread_id)
        both = HKDFExpand(SHA256(), 2 * _KEY_BYTES, info).derive(self._masters[key_id])
        return _ThreadKey(AESGCM(both[:_KEY_BYTES]), both[_KEY_BYTES:])


def _master(key: object) -> bytes:
    """The 32 bytes of a key, which no message may show."""
    if isinstance(key, str):
        text = key.strip().replace("-", "+").replace("_", "/").rstrip("=")
        try:
            key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            key = None
    if not isinstance(key, bytes) or len(key) != _KEY_BYTES:
        raise ConfigError(
            f"encryption.key must be {_KEY_BYTES} random bytes in Base64; make one with: openssl rand -base64 32"
        )
    return key


def _id_of(master: bytes) -> bytes:
    return hashlib.sha256(b"charm-checkpoint key id" + master).digest()[:_ID_BYTES]


def _lengthened(data: bytes) -> bytes:
    return len(data).to_bytes(8, "big") + data


def _field(text: str) -> bytes:
    return _lengthened(text.encode("utf-8", "surrogatepass"))


def _blob_place(thread_id: str, namespace: str, blob: BlobRow) -> _Place:
    fields = ("blob", thread_id, namespace, blob.channel, blob.version)
    return _Place(thread_id, blob.channel, b"".join(map(_field, fields)))


def _write_place(thread_id: str, namespace: str, checkpoint_id: str, row: WriteRow) -> _Place:
    # Of a UUID its time and what follows: a replica that lost moves writes to a copy of their checkpoint, whose id
    # differs from there on (see `replica.claims`).
    moment = checkpoint_id[:21] if len(checkpoint_id) == 36 else checkpoint_id
    at = (row.task_id, str(row.idx), row.channel, row.task_path)
    fields = ("write", thread_id, namespace, moment, *at)
    return _Place(thread_id, row.channel, b"".join(map(_field, fields)))


class _Door(Backend):
    """Encrypts what goes into a backend, and decrypts what comes out."""

    def __init__(self, backend: Backend, encryption: Encryption) -> None:
        self._backend = backend
        self._encryption = encryption

    @property
    def name(self) -> str:
        return self._backend.name

    def setup(self) -> None:
        self._backend.setup()

    def close(self) -> None:
        self._backend.close()

    # -- in --------------------------------------------------------------------------------------------------------

    def write(self, units: Sequence[Unit]) -> Sequence[Outcome]:
        return self._backend.write([self._sealed(unit) for unit in units])

    def _sealed(self, unit: Unit) -> Unit:
        seal = self._encryption.seal
        if isinstance(unit, PutCheckpoint):
            place = unit.thread_id, unit.namespace
            blobs = [(blob, _blob_place(*place, blob)) for blob in unit.blobs]
            return unit._replace(
                blobs=tuple(BlobRow(*b[:2], *seal(at, b.type, b.data)) for b, at in blobs)
            )
        if isinstance(unit, PutWrites):
            rows = [(row, _write_place(*unit[:3], row)) for row in unit.rows]
            return unit._replace(
                rows=tuple(WriteRow(*row[:4], *seal(at, row.type, row.data)) for row, at in rows)
            )
        return unit

    # -- out -------------------------------------------------------------------------------------------------------

    def read(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Snapshot:
        return self._opened(
            thread_id, namespace, self._backend.read(thread_id, namespace, checkpoint_id)
        )

    def pull(self, thread_id: str, held: Sequence[HeadMark]) -> Pulled:
        pulled = self._backend.pull(thread_id, held)
        return pulled._replace(
            entries=[e._replace(snapshot=self._opened(*e)) for e in pulled.entries]
        )

    def scan(self, query: Scan) -> Page:
        page = self._backend.scan(query)
        return page._replace(entries=[e._replace(snapshot=self._opened(*e)) for e in page.entries])

    def lineage(
        self, thread_id: str, namespace: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> Sequence[Ancestor]:
        place = thread_id, namespace
        return [
            ancestor._replace(
                blobs=self._blobs(*place, ancestor.blobs),
                writes=self._writes(*place, ancestor.checkpoint_id, ancestor.writes),
            )
            for ancestor in self._backend.lineage(*place, checkpoint_id, channels)
        ]

    def _opened(self, thread_id: str, namespace: str, snapshot: Snapshot) -> Snapshot:
        row = snapshot.checkpoint
        if row is None:
            return snapshot
        place = thread_id, namespace
        return snapshot._replace(
            blobs=self._blobs(*place, snapshot.blobs),
            writes=self._writes(*place, row.checkpoint_id, snapshot.writes),
            sends=self._writes(*place, row.parent_id or "", snapshot.sends),
        )

    def _blobs(self, thread_id: str, namespace: str, blobs: Iterable[BlobRow]) -> list[BlobRow]:
        unseal = self._encryption.open
        return [
            BlobRow(*b[:2], *unseal(_blob_place(thread_id, namespace, b), b.type, b.data))
            for b in blobs
        ]

    def _writes(
        self, thread_id: str, namespace: str, checkpoint_id: str, rows: Iterable[WriteRow]
    ) -> list[WriteRow]:
        unseal, place = self._encryption.open, (thread_id, namespace, checkpoint_id)
        return [WriteRow(*r[:4], *unseal(_write_place(*place, r), r.type, r.data)) for r in rows]

    # -- what holds no values --------------------------------------------------------------------------------------

    def threads(self, query: ThreadQuery) -> Sequence[ThreadRow]:
        return self._backend.threads(query)

    def delete(self, thread_id: str, *, at: float) -> bool:
        return self._backend.delete(thread_id, at=at)

    def prune(self, thread_id: str, drop: Sequence[tuple[str, str]]) -> int:
        return self._backend.prune(thread_id, drop)

    # -- copying ---------------------------------------------------------------------------------------------------

    def copy(self, source: str, target: str, *, at: float) -> None:
        """Like `Backend.copy`, but in several transactions, since another thread has another key.

        It goes as any copy of threads does: the heads are set in the last transaction, until then the target is empty
        to everybody, and a copy that broke off goes on where it was. So it can be repeated: a target that has all of
        it already is no error. It counts as made when its first checkpoint was.
        """
        from charm_checkpoint.moving.copying import Copier
        from charm_checkpoint.moving.source import BackendSource

        # What is repeated, and for how long, is the business of whoever calls this.
        engine = Engine(self, retry=RetryPolicy(budget=0))
        origin = _Renamed(BackendSource(engine), source)
        if origin.thread(target) is None:
            raise ThreadNotFoundError(f"thread {source!r} has no checkpoints to copy")
        begun = bool(self.threads(ThreadQuery(1, thread_id=target)))
        copied = Copier(origin, engine, dry_run=begun).copy(target)
        if copied.outcome == "deleted":
            raise ThreadDeletedError(target, copied.deleted_at)
        if source == target or copied.outcome != ("same" if begun else "copied"):
            raise ThreadExistsError(
                f"thread {target!r} already has checkpoints; delete it or copy to another id"
            )


class _Renamed:
    """A thread of a source under another id.

    Args:
        source: Where it is.
        thread_id: Its id there.
    """

    def __init__(self, source: BackendSource, thread_id: str) -> None:
        self._source = source
        self._thread_id = thread_id
        self.name = source.name

    def threads(self) -> Iterator[str]:
        yield self._thread_id

    def thread(self, thread_id: str) -> Thread | None:
        found = self._source.thread(self._thread_id)
        return None if found is None else found._replace(thread_id=thread_id)

    def entries(self, thread_id: str) -> Iterator[Entry]:
        for entry in self._source.entries(self._thread_id):
            yield entry._replace(thread_id=thread_id)
