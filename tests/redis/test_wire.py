"""Parts, names of keys, values as changes, and errors, without a server; and what only a server's script can do."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from redis import exceptions
from redis.crc import key_slot

from charm_checkpoint.backend import SEALED
from charm_checkpoint.errors import (
    BackendCorrupt,
    BackendError,
    BackendFull,
    BackendReadOnly,
    BackendUnavailable,
    ConfigError,
)
from charm_checkpoint.testing.rows import blob, blobs_of, put, read, statuses
from charm_memory_redis import RedisBackend
from charm_memory_redis.bases import Bases, Held
from charm_memory_redis.errors import translate
from charm_memory_redis.keys import Keys, id_of, pair, part
from charm_memory_redis.wire import Values, batch
from tests.redis.server import Server

_IDS = ["", "\x00", "\x00\x00", "\x00a", "\x01", "a", "a\x00", "a\x00b", "ab", "\ud800", "\uffff"]
_IDS += ["{}", "{a}", "}{", "*", "a:b", "%7B", "😀"]


def test_parts_are_ids_again() -> None:
    for one in _IDS:
        assert id_of(part(one)) == one
        for other in _IDS:
            assert pair(part(one) + part(other)) == (one, other)


def test_joined_parts_sort_as_the_ids_do() -> None:
    pairs = [(one, other) for one in _IDS for other in _IDS]
    assert sorted(pairs, key=lambda p: part(p[0]) + part(p[1])) == sorted(pairs)


def test_keys_of_a_thread_share_a_slot_and_no_two_threads_share_keys() -> None:
    keys = Keys("p")
    names = [keys.thread(each) for each in _IDS]
    assert len({name for each in names for name in each}) == 3 * len(_IDS)
    for each in names:
        assert len({key_slot(name) for name in each}) == 1
    assert len({key_slot(each[0]) for each in names}) > len(_IDS) // 2


@pytest.mark.parametrize("prefix", ["", " ", "a b", "{a}", "a}", "x" * 101, "\ud800", "a\n"])
def test_a_prefix_that_cannot_be(prefix: str) -> None:
    with pytest.raises(ConfigError, match="prefix"):
        Keys(prefix)


def _versions(seed: int, count: int, size: int) -> list[bytes]:
    chance = random.Random(seed)
    found = [chance.randbytes(size)]
    while len(found) < count:
        found.append(found[-1] + chance.randbytes(chance.randrange(1, 300)))
    return found


def _sent(values: Sequence[bytes], bases: Bases | None) -> list[bytes]:
    """The records of versions that come one after the other."""
    records = []
    for n, value in enumerate(values):
        told = batch(
            [put(f"{n}", None, blob("a", f"{n}", value))], ["thread"], bases, ttl=b"", waits=False
        )
        records.append(told.arguments[2])
        for stored in told.values:
            if bases is not None:
                bases.remember(stored.thread_id, stored.namespace, stored.held)
    return records


def _fields(records: Sequence[bytes]) -> list[bytes]:
    return [
        each
        for n, record in enumerate(records)
        for each in (b"b" + part("") + part("a") + part(f"{n}"), record)
    ]


def test_a_value_that_grows_is_sent_as_changes_that_add_up() -> None:
    values = _versions(1, 300, 5000)
    records = _sent(values, Bases())
    assert sum(map(len, records)) < 8 * len(values[-1]) < sum(map(len, values)) / 10
    rebuilt = Values("thread", _fields(records)).of(
        part(""), [part("a") + part(f"{n}") for n in range(300)]
    )
    assert [each.data for each in rebuilt] == values
    whole = [n for n, record in enumerate(records) if len(record) > len(values[n])]
    gaps = [after - before for before, after in pairwise(whole)]
    assert gaps
    assert max(gaps) <= 129, "reading one never takes more than 128 changes"


def test_what_is_held_is_not_needed_again() -> None:
    values = _versions(2, 3, 5000)
    records = _sent(values, Bases())
    held = Held(blob("a", "1", values[1]), part("a") + part("1"), records[1][: records[1][0] + 1])
    name = b"b" + part("") + held.version
    told = [*_fields(records)[4:], name, b""]
    [found] = Values("thread", told, {name: held}).of(part(""), [part("a") + part("2")])
    assert found.data == values[2]


def test_small_and_encrypted_values_go_whole() -> None:
    values = _versions(3, 3, 5000)
    bases = Bases()
    for n, value in enumerate(values):
        sealed = blob("a", f"{n}", value, f"msgpack{SEALED}")
        told = batch([put(f"{n}", None, sealed)], ["thread"], bases, ttl=b"", waits=False)
        assert len(told.arguments[2]) > len(value)
        assert not told.values
    assert all(len(record) > 100 for record in _sent([bytes(100), bytes(101)], Bases()))


@pytest.mark.parametrize("damage", ["missing", "byte", "length"])
def test_a_damaged_value_is_told(damage: str) -> None:
    values = _versions(4, 3, 5000)
    records = _sent(values, Bases())
    if damage == "byte":
        records[0] = records[0][:-1] + bytes([records[0][-1] ^ 1])
    elif damage == "length":
        records[0] = _sent([values[0] + b"x"], None)[0]
    told = _fields(records)[2:] if damage == "missing" else _fields(records)
    with pytest.raises(BackendCorrupt, match=r"thread.*channel 'a'"):
        Values("thread", told).of(part(""), [part("a") + part("2")])


def test_a_change_to_a_value_that_was_refused_is_made_whole(server: Server, prefix: str) -> None:
    """Both come in one batch, so what the second is a change to is known, but not stored."""
    values = _versions(5, 4, 5000)
    with_parent = [None, "none", None, "none"]
    backend = RedisBackend(server.url(), prefix=prefix)
    units = [put(f"{n}", with_parent[n], blob("a", f"{n}", values[n])) for n in range(4)]
    units.append(put("5", None, blob("a", "5", values[3] + b"more")))
    outcomes = backend.write(units)
    assert statuses(outcomes) == ["stored", "orphaned", "stored", "orphaned", "stored"]
    for reader in (backend, RedisBackend(server.url(), prefix=prefix)):
        assert blobs_of(read(reader, "2"))["a"][2] == values[2]
        assert blobs_of(read(reader, "5"))["a"][2] == values[3] + b"more"
        reader.close()


_TOLD: list[tuple[Exception, type[BackendError]]] = [
    (exceptions.ConnectionError("refused"), BackendUnavailable),
    (exceptions.TimeoutError("slow"), BackendUnavailable),
    (exceptions.BusyLoadingError("loading"), BackendUnavailable),
    (exceptions.ReadOnlyError("You can't write against a read only replica."), BackendUnavailable),
    (exceptions.ResponseError("BUSY Redis is busy running a script."), BackendUnavailable),
    (exceptions.ResponseError("x: @user_script: 9: -READONLY You can't"), BackendUnavailable),
    (exceptions.ResponseError("NOREPLICAS Not enough good replicas"), BackendUnavailable),
    (exceptions.MovedError("1 127.0.0.1:7000"), BackendUnavailable),
    (exceptions.ClusterDownError("The cluster is down"), BackendUnavailable),
    (exceptions.OutOfMemoryError("command not allowed"), BackendFull),
    (exceptions.ResponseError("x: @user_script: 9: -OOM command not allowed"), BackendFull),
    (exceptions.ResponseError("MISCONF Redis is configured to save"), BackendReadOnly),
    (exceptions.NoPermissionError("this user has no permissions"), BackendReadOnly),
    (exceptions.ResponseError("ACL failure in script: User bob has no"), BackendReadOnly),
    (exceptions.ResponseError("WRONGTYPE Operation against a key"), BackendCorrupt),
    (exceptions.AuthenticationError("invalid username-password pair"), BackendError),
    (exceptions.ResponseError("ERR something else: OOM is no code here"), BackendError),
]


@pytest.mark.parametrize(("error", "kind"), _TOLD, ids=lambda each: str(each)[:40])
def test_errors_are_told_apart(error: Exception, kind: type[BackendError]) -> None:
    told = translate(error, "redis://host/0")
    assert type(told) is kind
    assert "redis://host/0" in str(told)


def test_a_password_is_masked() -> None:
    error = exceptions.ConnectionError("Error connecting to redis://user:s3cret@host:1/0")
    assert "s3cret" not in str(translate(error, "redis://host:1/0"))
    backend = RedisBackend("redis://user:s3cret@host:1/0?socket_timeout=1")
    assert backend.name == "redis://host:1/0"
    assert "s3cret" not in repr(backend)
    with pytest.raises(ConfigError) as raised:
        RedisBackend("redis://user:s3cret@host:port/0")
    assert "s3cret" not in str(raised.value)
