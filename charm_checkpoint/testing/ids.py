"""Ids are data: no character of them means anything to a backend."""

from __future__ import annotations

from typing import Any

import pytest

from charm_checkpoint.backend import Backend, Scan, ThreadQuery
from charm_checkpoint.testing.fixtures import BackendFixtures
from charm_checkpoint.testing.rows import (
    AT,
    blob,
    blobs_of,
    head,
    ids,
    keys,
    move,
    pending,
    plain,
    put,
    read,
    statuses,
    store,
    write,
    writes_of,
)

_ODD = {
    "quote": "it's",
    "double-quote": 'say "hi"',
    "injection": "x'; DROP TABLE checkpoints; --",
    "percent": "100%",
    "underscore": "a_b",
    "star": "*",
    "brackets": "[a-z]",
    "braces": "{}",
    "hash-tag": "{tag}rest",
    "colon": "a:b::c",
    "pipe": "a|b:1",
    "slashes": "../../etc/passwd",
    "backslash": "a\\b\\n%s",
    "newline": "a\nb\r\tc",
    "control": "\x01\x1f\x7f",
    "space": " leading and trailing ",
    "unicode": "Grüße 日本 \U0001f680 e\u0301",
    "right-to-left": "\u202eabc",
    "number": "7",
    "null-word": "null",
    "json": '{"a":["b"]}',
    "long": "x" * 1024,
    "long-unicode": "\U0001d11e" * 256,
}

# What a careless comparison takes for the id above it.
_NEIGHBOURS = {
    "percent": ["1000", "100 "],
    "underscore": ["axb", "a-b"],
    "star": ["anything", "**"],
    "brackets": ["b"],
    "hash-tag": ["{tag}", "{tag}rest "],
    "colon": ["a", "a:b", "a:b:"],
    "space": ["leading and trailing", " leading and trailing"],
    "unicode": ["Grüße 日本 \U0001f680 \xe9"],
    "number": ["07", "7.0", " 7"],
    "long": ["x" * 1023, "x" * 1023 + "y"],
}

_PARTS = ("thread", "namespace", "id", "channel", "version", "task")


class IdContract(BackendFixtures):
    """Every verb, with ids that mean something to some database."""

    @pytest.mark.parametrize("kind", _ODD)
    def test_any_text_is_an_id(self, ready: Backend, kind: str) -> None:
        odd = _ODD[kind]
        unit = put(
            odd,
            None,
            blob(odd, odd, type=odd[:40]),
            thread=odd,
            namespace=odd,
            run=odd,
            root="r" + odd[1:],
            device=odd,
        )
        row = write(odd, 0, odd, path=odd, type=odd[:40])
        store(ready, unit, pending(odd, row, thread=odd, namespace=odd))
        for neighbour in _NEIGHBOURS.get(kind, ()):
            store(ready, put("1", None, blob(odd, odd, b"other"), thread=neighbour, namespace=odd))

        found = read(ready, odd, odd, odd)
        assert plain(found.checkpoint) == plain(unit.row)
        assert blobs_of(found) == {odd: (odd, odd[:40], b"value")}
        assert writes_of(found.writes) == [row]
        assert head(ready, odd, odd) == odd
        for query in (
            Scan(thread_id=odd),
            Scan(run_ids=(odd,)),
            Scan(thread_id=odd, namespace=odd, checkpoint_id=odd),
            Scan(thread_id=odd, after=("\U0010ffff", "", "")),
        ):
            assert keys(ready, query) == [(odd, odd, odd)]
        assert ids(ready, Scan(before=odd, thread_id=odd)) == []
        [listed] = ready.threads(ThreadQuery(limit=9, thread_id=odd))
        assert (listed.thread_id, listed.heads[0].device) == (odd, odd)
        pulled = ready.pull(odd, [])
        # With a colon it is a task's, and there is no root that it could belong to.
        assert [mark.head for mark in pulled.heads] == ([] if ":" in odd else list(listed.heads))
        assert not ready.pull(odd, pulled.heads).entries

        store(ready, put("later", odd, thread=odd, namespace=odd, at=AT + 1))
        [ancestor] = ready.lineage(odd, odd, None, [odd])
        assert [b.data for b in ancestor.blobs] == [b"value"]
        store(ready, move(odd, "later", thread=odd, namespace=odd))
        assert head(ready, odd, odd) == odd
        store(ready, move("later", odd, thread=odd, namespace=odd))
        assert ready.prune(odd, [(odd, "later")]) == 1
        assert head(ready, odd, odd) == odd
        ready.copy(odd, "copy of it", at=AT)
        assert head(ready, "copy of it", odd) == odd

        assert ready.delete(odd, at=AT) is True
        assert ids(ready, Scan(thread_id=odd)) == []
        assert read(ready, None, odd).deleted_through == odd
        assert statuses(ready.write([pending(odd, thread=odd, namespace=odd)])) == ["deleted"]
        for thread in ("copy of it", *_NEIGHBOURS.get(kind, ())):
            assert head(ready, thread, odd) is not None
            assert blobs_of(read(ready, None, thread, odd))

    def test_ids_that_would_run_together(self, ready: Backend) -> None:
        """A key made by joining parts needs a separator that no part can hold."""
        places = [("a", "b:c"), ("a:b", "c"), ("a:b:c", ""), ("a", "b"), ("a|b", ""), ("a", "|b")]
        for n, (thread, namespace) in enumerate(places):
            data = str(n).encode()
            store(
                ready,
                put("1", None, blob("x", data=data), thread=thread, namespace=namespace),
                pending("1", write(data=data), thread=thread, namespace=namespace),
            )
        for n, (thread, namespace) in enumerate(places):
            found = read(ready, None, thread, namespace)
            assert [b.data for b in found.blobs] == [str(n).encode()]
            assert [w.data for w in found.writes] == [str(n).encode()]
        store(ready, put("1", None, blob("a", "b:c", b"1")), put("2", None, blob("a:b", "c", b"2")))
        assert blobs_of(read(ready, "1"))["a"][2] == b"1"
        assert blobs_of(read(ready, "2"))["a:b"][2] == b"2"

    @pytest.mark.parametrize("part", _PARTS)
    def test_case_and_composition_tell_ids_apart(self, ready: Backend, part: str) -> None:
        """Nothing is folded, trimmed or normalized."""
        names = ["id", "ID", "Id", "id ", "\xe9", "e\u0301", "ss", "ß", "ſs", "\uff49\uff44"]
        places = [dict.fromkeys(_PARTS, "x") for _ in names]
        for n, (place, name) in enumerate(zip(places, names, strict=True)):
            if part in ("channel", "version"):
                place["id"] = str(n)  # several blobs need several checkpoints
            place[part] = name
        for n, p in enumerate(places):
            there: dict[str, Any] = {"thread": p["thread"], "namespace": p["namespace"]}
            value = blob(p["channel"], p["version"], b"%d" % n)
            store(
                ready,
                put(p["id"], None, value, **there),
                pending(p["id"], write(p["task"], data=b"%d" % n), **there),
            )
        for n, p in enumerate(places):
            found = read(ready, p["id"], p["thread"], p["namespace"])
            if part not in ("id", "task"):
                assert [b.data for b in found.blobs] == [b"%d" % n]
            assert b"%d" % n in [w.data for w in found.writes]
        assert len(ids(ready)) == (1 if part == "task" else len(names))
