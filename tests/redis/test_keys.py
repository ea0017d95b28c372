"""Ids and values are data: to Lua, to patterns and to the protocol they mean nothing, and nothing crosses threads."""

from __future__ import annotations

from typing import Any

import pytest
from redis.crc import key_slot

from charm_checkpoint.backend import Backend, Scan, ThreadQuery
from charm_checkpoint.errors import ConfigError
from charm_checkpoint.testing.rows import (
    AT,
    blob,
    blobs_of,
    contents,
    head,
    ids,
    move,
    pending,
    put,
    read,
    statuses,
    store,
    write,
)
from charm_memory_redis import RedisBackend
from tests.redis.server import Cluster, Server

HOSTILE = {
    "lua": "]] redis.call('FLUSHALL') --[[",
    "lua string": "'..redis.call('FLUSHALL')..'",
    "glob": "*",
    "glob of one": "?[a-z]\\",
    "tag": "{other}",
    "empty tag": "{}",
    "open tag": "{",
    "closed tag": "}",
    "tags": "}{other}:h",
    "resp": "$3\r\nfoo\r\n*1\r\n$8\r\nFLUSHALL\r\n",
    "inline": "\r\nFLUSHALL\r\n",
    "separator": "other:h",
    "index": "threads",
    "escaped": "%7Bother%7D",
    "nul": "other\x00",
    "nul in front": "\x00other",
    "end of a part": "other\x00\u00ff",
    "surrogate": "\ud800",
    "surrogates": "\udcffother\ud83d",
    "number": "1e3",
    "last": "\U0010ffff",
    "score": "(1",
    "lex": "[a",
    "keyword": "+inf",
}
VALUES = {
    "lua": b"]] redis.call('FLUSHALL') --[[",
    "resp": b"-ERR no\r\n+OK\r\n$-1\r\n*-1\r\n:0\r\n",
    "nul": b"\x00" * 5,
    "all": bytes(range(256)) * 3,
    "empty": b"",
    "msgpack": b"\x93\xc0\xff\xdf\xff\xff\xff\xff",
    "number": b"1e999",
    "nan": b"nan",
    "not utf-8": b"\xff\xfe\xed\xa0\x80",
    "long": bytes(range(256)) * 2000,
}
NEIGHBOURS = ["other", "other:h", "threads", "format", "{other}", "h", "%", "1000"]


@pytest.mark.parametrize("kind", HOSTILE)
def test_ids_are_data(kind: str, server: Server, prefix: str) -> None:
    """Every verb on a thread of such a name, with all other names like it: the keys of others stay as they are."""
    odd = HOSTILE[kind]
    backend = RedisBackend(server.url(), prefix=prefix)
    for neighbour in NEIGHBOURS:
        if neighbour != odd:
            unit = put("1", None, blob(odd, odd, b"other"), thread=neighbour, namespace=odd)
            store(backend, unit, pending("1", thread=neighbour, namespace=odd))
            store(backend, put("2", thread=neighbour))
    backend.delete("h", at=AT)
    stranger = RedisBackend(server.url(), prefix=f"{prefix}x")
    store(stranger, put("1", thread=odd), put("1", thread="other"))
    before = _dump(server, prefix)

    place: Any = {"thread": odd, "namespace": odd}
    store(
        backend,
        put(odd, None, blob(odd, odd, type=odd), **place, run=odd, device=odd),
        pending(odd, write(odd, 0, odd, path=odd, type=odd), **place),
        put("later", odd, **place, root=odd, at=AT + 1),
        move(odd, "later", **place),
    )
    assert blobs_of(read(backend, odd, odd, odd)) == {odd: (odd, odd, b"value")}
    assert read(backend, odd, odd, odd).writes == [write(odd, 0, odd, path=odd, type=odd)]
    assert head(backend, odd, odd) == odd
    assert set(ids(backend, Scan(thread_id=odd, namespace=odd))) == {odd, "later"}
    assert ids(backend, Scan(run_ids=(odd,))) == [odd]
    assert backend.lineage(odd, odd, "later", [odd])[0].blobs[0].data == b"value"
    backend.pull(odd, backend.pull(odd, ()).heads)
    assert [row.thread_id for row in backend.threads(ThreadQuery(thread_id=odd))] == [odd]
    assert odd in {row.thread_id for row in backend.threads(ThreadQuery())}
    backend.copy(odd, "copy", at=AT)
    assert set(contents(backend, "copy")) == {(odd, odd), (odd, "later")}
    backend.delete("copy", at=AT)
    assert backend.prune(odd, [(odd, "later")]) == 1
    assert backend.delete(odd, at=AT) is True
    assert statuses(backend.write([pending(odd, **place)])) == ["deleted"]

    after = _dump(server, prefix)
    changed = {key for key, dumped in before.items() if after.get(key) != dumped}
    assert changed == set(), "threads of other names"
    assert all(b":{" in key and key.endswith(b"}:t") for key in after.keys() - before.keys())
    listed = {row.thread_id for row in backend.threads(ThreadQuery())}
    assert listed == {name for name in NEIGHBOURS if name not in (odd, "h")}
    assert head(stranger, odd) == "1"
    assert len(stranger.threads(ThreadQuery())) == 2
    backend.close()
    stranger.close()


@pytest.mark.parametrize("kind", VALUES)
def test_values_are_data(kind: str, server: Server, prefix: str) -> None:
    value = VALUES[kind]
    backend = RedisBackend(server.url(), prefix=prefix)
    grown = put("2", "1", blob("a", "2", value + b"\r\n" + value))
    store(backend, put("1", None, blob("a", "1", value)), pending("1", write(data=value)), grown)
    again = RedisBackend(server.url(), prefix=prefix)
    assert read(again, "1").blobs[0].data == value
    assert read(again, "2").blobs[0].data == value + b"\r\n" + value
    assert [w.data for w in read(again, "1").writes] == [value]
    assert statuses(again.write([put("3", "2", blob("a", "3", value * 2))])) == ["stored"]
    assert read(backend, "3").blobs[0].data == value * 2
    backend.close()
    again.close()


def test_a_threads_keys_share_a_slot(server: Server, prefix: str) -> None:
    """Else a cluster would refuse its calls; and threads are spread."""
    backend = RedisBackend(server.url(), prefix=prefix)
    slots = []
    for name in {*HOSTILE.values(), *NEIGHBOURS}:
        before = set(_dump(server, prefix))
        store(backend, put("1", thread=name), put("1", namespace="sub", thread=name))
        own = [key_slot(key) for key in set(_dump(server, prefix)) - before]
        assert len(set(own)) == 1, name
        slots += own[:1]
    assert len(set(slots)) > len(slots) / 2
    backend.close()


@pytest.mark.parametrize("prefix", ["", "a b", "{a}", "a{", "a\n", "x" * 101, "a\x00"])
def test_prefixes_that_would_break_keys(prefix: str, server: Server) -> None:
    with pytest.raises(ConfigError, match="prefix"):
        RedisBackend(server.url(), prefix=prefix)


def test_prefixes_that_are_patterns(server: Server, prefix: str) -> None:
    backends = [RedisBackend(server.url(), prefix=f"{prefix}{end}") for end in ("", "*", "?", ":a")]
    for n, backend in enumerate(backends):
        store(backend, put(str(n)))
    for n, backend in enumerate(backends):
        assert head(backend) == str(n)
        assert ids(backend) == [str(n)]
    backends[1].delete("thread", at=1.0)
    assert [head(backend) for backend in backends] == ["0", None, "2", "3"]
    for backend in backends:
        backend.close()


def test_threads_of_a_cluster_are_spread(cluster: Cluster, prefix: str) -> None:
    backend: Backend = RedisBackend(cluster.url(), prefix=prefix)
    for n in range(30):
        store(backend, put("1", thread=str(n)))
    for node in cluster.nodes:
        assert _dump(node, prefix)
    backend.close()


def _dump(server: Server, prefix: str) -> dict[bytes, Any]:
    """Everything under a prefix but the index of all threads, byte by byte."""
    with server.client() as client:
        found: Any = client.keys(f"{prefix}:*")
        return {key: client.dump(key) for key in found if not key.endswith(b":threads")}
