"""`read`, `scan` and `lineage`: which rows, in which order, from one view."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from charm_checkpoint.backend import Backend, Scan, WriteRow
from charm_checkpoint.testing.fixtures import BackendFixtures
from charm_checkpoint.testing.rows import (
    THREAD,
    beside_a_writer,
    blob,
    blobs_of,
    chain,
    ids,
    keys,
    pending,
    put,
    read,
    store,
    write,
    writes_of,
)

# In the order of their UTF-8 bytes. Languages sort them otherwise, and UTF-16 swaps the last two.
_IN_BYTE_ORDER = [
    *("", "!", "-", "0", "10", "9", "A", "Z", "_", "a", "a ", "a!", "aa", "z", "~"),
    *("é", "ü", "日", "\uffee", "\U0001d11e"),
]

Step = tuple[str, dict[str, bytes], list[WriteRow]]


def _lineage(
    backend: Backend, checkpoint_id: str | None, *channels: str, namespace: str = ""
) -> list[Step]:
    """Id, seeds and writes of each ancestor that has something to tell."""
    found = backend.lineage(THREAD, namespace, checkpoint_id, channels)
    steps = [
        (a.checkpoint_id, {b.channel: bytes(b.data) for b in a.blobs}, writes_of(a.writes))
        for a in found
    ]
    return [step for step in steps if step[1] or step[2]]


def _shuffled(rows: Sequence[WriteRow]) -> list[WriteRow]:
    return [*rows[1::2], *reversed(rows[::2])]


class ReadContract(BackendFixtures):
    """`Backend.read`, `scan` and `lineage` row by row."""

    # -- read ------------------------------------------------------------------------------------------------------

    def test_an_unknown_thread_is_empty(self, ready: Backend) -> None:
        store(ready, put("1"))
        for thread, namespace in (("unknown", ""), (THREAD, "unknown")):
            for checkpoint_id in (None, "1"):
                found = ready.read(thread, namespace, checkpoint_id)
                assert found.checkpoint is None
                assert not [*found.blobs, *found.writes, *found.sends]
                assert (found.head, found.deleted_through) == (None, None)

    def test_an_unknown_checkpoint_still_tells_the_head(self, ready: Backend) -> None:
        chain(ready, "1", "2")
        found = read(ready, "3")
        assert found.checkpoint is None
        assert found.head == "2"

    def test_every_checkpoint_can_be_read(self, ready: Backend) -> None:
        chain(ready, "1", "2", "3")
        for checkpoint_id in ("1", "2", "3"):
            found = read(ready, checkpoint_id)
            assert found.checkpoint is not None
            assert found.checkpoint.checkpoint_id == checkpoint_id
            assert found.head == "3"

    def test_blobs_are_those_of_the_checkpoints_versions(self, ready: Backend) -> None:
        store(
            ready,
            put("1", None, blob("a", "1"), blob("b", "1"), blob("c", "1")),
            put("2", "1", blob("a", "2"), versions={"b": "1", "empty": "7"}),
        )
        assert {c: b[0] for c, b in blobs_of(read(ready, "2")).items()} == {"a": "2", "b": "1"}

    def test_versions_are_text(self, ready: Backend) -> None:
        """`1`, `01`, `1.0` and `1e0` are four versions."""
        versions = ["1", "01", "1.0", "1e0", "9" * 40, f"{2:032}.0.1"]
        for n, version in enumerate(versions):
            store(ready, put(str(n), None, blob("a", version, version.encode())))
        for n, version in enumerate(versions):
            assert blobs_of(read(ready, str(n))) == {"a": (version, "bytes", version.encode())}

    def test_writes_are_sorted_by_bytes(self, ready: Backend) -> None:
        last = _IN_BYTE_ORDER[-1]
        rows = [
            *(write("t", 100 - n, path=path) for n, path in enumerate(_IN_BYTE_ORDER)),
            *(write(task, path=last * 2) for task in _IN_BYTE_ORDER[1:]),
            *(write(last * 2, idx, path=last * 2) for idx in (-4, -1, 0, 2, 10, 100)),
        ]
        store(ready, put("1", format=3), put("2", "1", format=3), pending("1", *_shuffled(rows)))
        assert writes_of(read(ready, "1").writes) == rows
        assert writes_of(read(ready, "2").sends) == rows
        [ancestor] = ready.lineage(THREAD, "", "2", ["channel"])
        assert writes_of(ancestor.writes) == rows
        first = ready.scan(Scan(checkpoint_id="1")).entries[0]
        assert writes_of(first.snapshot.writes) == rows

    def test_sends_are_the_parents_writes_before_format_4(self, ready: Backend) -> None:
        store(
            ready,
            put("1", format=3),
            put("2", "1", format=3),
            put("3", "1", format=4),
            pending("1", write("parent")),
            pending("2", write("own")),
        )
        for snapshot in (read(ready, "2"), ready.scan(Scan(checkpoint_id="2")).entries[0].snapshot):
            assert writes_of(snapshot.sends) == [write("parent")]
            assert writes_of(snapshot.writes) == [write("own")]
        assert not read(ready, "3").sends
        assert not read(ready, "1").sends

    def test_a_read_sees_a_checkpoint_whole(self, ready: Backend) -> None:
        """Beside a writer, checkpoint, blobs, writes and head are of one moment."""
        channels = [f"c{n}" for n in range(8)]

        def step(n: int) -> None:
            name = f"{n:06}"
            blobs = [blob(c, name, name.encode()) for c in channels]
            parent = f"{n - 1:06}" if n else None
            writes = pending(name, *(write(c, data=name.encode()) for c in channels))
            store(ready, writes, put(name, parent, *blobs))

        def look() -> str:
            found = read(ready, None)
            assert found.checkpoint is not None
            name = found.checkpoint.checkpoint_id
            assert found.head == name
            assert {b.data for b in found.blobs} == {name.encode()}
            assert {w.data for w in found.writes} == {name.encode()}
            assert len(found.blobs) == len(found.writes) == len(channels)
            return name

        beside_a_writer(step, look)

    # -- scan ------------------------------------------------------------------------------------------------------

    def test_scan_of_nothing(self, ready: Backend) -> None:
        page = ready.scan(Scan())
        assert (list(page.entries), page.next) == ([], None)

    def test_scan_is_newest_first(self, ready: Backend) -> None:
        everything = [
            (checkpoint_id, thread, namespace)
            for checkpoint_id in _IN_BYTE_ORDER[1::3]
            for thread in ("A", "a", "é", "\uffee", "\U0001d11e")
            for namespace in ("", "a", "a|b:1", "é")
        ]
        units = [put(i, thread=t, namespace=n) for i, t, n in everything]
        store(ready, *units[::2], *reversed(units[1::2]))
        assert keys(ready, Scan(limit=7)) == everything[::-1]

    def test_scan_order_is_not_the_order_of_writing(self, ready: Backend) -> None:
        store(ready, put("2"), put("9", "2"), put("10", "9"))
        assert ids(ready) == ["9", "2", "10"]
        assert read(ready, None).head == "10"

    @pytest.mark.parametrize("limit", [1, 2, 3, 6, 7])
    def test_pages(self, ready: Backend, limit: int) -> None:
        chain(ready, "1", "2", "3")
        chain(ready, "1", "2", "3", thread="other")
        query, pages = Scan(limit=limit), 1
        page = ready.scan(query)
        while page.next is not None:
            assert len(page.entries) == limit
            page = ready.scan(query._replace(after=page.next))
            pages += 1
        assert page.entries, "the last page is empty"
        assert pages == -(-6 // limit)
        assert len(set(keys(ready, query))) == 6

    def test_what_comes_meanwhile_does_not_shift_pages(self, ready: Backend) -> None:
        chain(ready, "1", "2", "3", "4")
        first = ready.scan(Scan(limit=2))
        store(ready, put("5", "4"), put("25"))
        assert ids(ready, Scan(limit=2, after=first.next)) == ["25", "2", "1"]

    def test_scan_filters(self, ready: Backend) -> None:
        chain(ready, "1", "2", "3")
        chain(ready, "1", "2", namespace="sub")
        chain(ready, "2", "4", thread="other")
        assert ids(ready, Scan(thread_id=THREAD)) == ["3", "2", "2", "1", "1"]
        assert ids(ready, Scan(thread_id=THREAD, namespace="")) == ["3", "2", "1"]
        assert ids(ready, Scan(namespace="sub")) == ["2", "1"]
        assert keys(ready, Scan(checkpoint_id="2", namespace="")) == [
            ("2", THREAD, ""),
            ("2", "other", ""),
        ]
        assert ids(ready, Scan(thread_id=THREAD, checkpoint_id="4")) == []
        assert ids(ready, Scan(thread_id="unknown")) == []

    def test_before_is_exclusive(self, ready: Backend) -> None:
        chain(ready, "1", "2", "3")
        assert ids(ready, Scan(before="3")) == ["2", "1"]
        assert ids(ready, Scan(before="25", limit=1)) == ["2", "1"]
        assert ids(ready, Scan(before="1")) == []

    def test_scan_by_run(self, ready: Backend) -> None:
        store(
            ready,
            put("1", run="a"),
            put("2", "1", run="b"),
            put("3", "2"),
            put("4", run="a", thread="other"),
            put("5", run="A"),
        )
        assert ids(ready, Scan(run_ids=("a",))) == ["4", "1"]
        assert ids(ready, Scan(run_ids=("a", "b", "none"), limit=1)) == ["4", "2", "1"]
        assert ids(ready, Scan(run_ids=("a",), thread_id=THREAD)) == ["1"]
        assert ids(ready, Scan(run_ids=())) == []

    def test_scan_lists_branches_and_tells_heads(self, ready: Backend) -> None:
        chain(ready, "1", "2")
        store(ready, put("3", "1", fenced=True, on_conflict="branch"), put("9", namespace="sub"))
        heads = {
            (e.namespace, e.snapshot.checkpoint.checkpoint_id): e.snapshot.head
            for e in ready.scan(Scan()).entries
            if e.snapshot.checkpoint
        }
        assert heads == {("", "1"): "2", ("", "2"): "2", ("", "3"): "2", ("sub", "9"): "9"}

    def test_scan_with_and_without_values(self, ready: Backend) -> None:
        store(ready, put("1", None, blob("a"), format=3), pending("1"))
        store(ready, put("2", "1", blob("a", "2"), format=3), pending("2"))
        for entry in ready.scan(Scan()).entries:
            assert entry.snapshot.checkpoint is not None
            whole = read(ready, entry.snapshot.checkpoint.checkpoint_id)
            assert entry.snapshot.checkpoint == whole.checkpoint
            assert blobs_of(entry.snapshot) == blobs_of(whole)
            assert writes_of(entry.snapshot.writes) == writes_of(whole.writes)
            assert writes_of(entry.snapshot.sends) == writes_of(whole.sends)
        for entry in ready.scan(Scan(values=False)).entries:
            snapshot = entry.snapshot
            assert not [*snapshot.blobs, *snapshot.writes, *snapshot.sends]
            assert snapshot.head == "2"
        assert ids(ready, Scan(values=False, limit=1)) == ["2", "1"]

    # -- lineage ---------------------------------------------------------------------------------------------------

    def test_lineage_goes_up_to_the_nearest_blob(self, ready: Backend) -> None:
        store(
            ready,
            put("1", None, blob("a", "1", b"older")),
            put("2", "1", blob("a", "2", b"seed")),
            put("3", "2", versions={"a": "3"}),
            put("4", "3", blob("a", "4", b"own")),
            *(pending(str(n), write(channel="a", data=b"%d" % n)) for n in (1, 2, 3, 4)),
        )
        assert _lineage(ready, "4", "a") == [
            ("3", {}, [write(channel="a", data=b"3")]),
            ("2", {"a": b"seed"}, [write(channel="a", data=b"2")]),
        ]
        assert _lineage(ready, None, "a") == _lineage(ready, "4", "a")
        assert _lineage(ready, "2", "a") == [
            ("1", {"a": b"older"}, [write(channel="a", data=b"1")])
        ]

    def test_lineage_without_a_blob_goes_up_to_the_root(self, ready: Backend) -> None:
        chain(ready, "1", "2", "3")
        store(ready, pending("1", write(channel="a")), pending("3", write(channel="a")))
        assert _lineage(ready, "3", "a") == [("1", {}, [write(channel="a")])]
        assert _lineage(ready, "1", "a") == []

    def test_lineage_ends_for_each_channel_by_itself(self, ready: Backend) -> None:
        store(
            ready,
            put("1", None, blob("a"), blob("b", "1", b"b1")),
            put("2", "1", blob("a", "2", b"a2"), versions={"b": "2"}),
            put("3", "2"),
            *(pending(str(n), write("t", 0, "a"), write("t", 1, "b")) for n in (1, 2, 3)),
        )
        assert _lineage(ready, "3", "a", "b") == [
            ("2", {"a": b"a2"}, [write("t", 0, "a"), write("t", 1, "b")]),
            ("1", {"b": b"b1"}, [write("t", 1, "b")]),
        ]
        assert _lineage(ready, "3", "b") == [
            ("2", {}, [write("t", 1, "b")]),
            ("1", {"b": b"b1"}, [write("t", 1, "b")]),
        ]

    def test_a_blob_of_an_unchanged_version_is_a_seed(self, ready: Backend) -> None:
        """The ancestor that names the version counts, not the one the blob came with."""
        store(ready, put("1", None, blob("a", "1", b"seed")), put("2", "1", versions={"a": "1"}))
        store(ready, put("3", "2"), pending("1", write(channel="a")))
        assert _lineage(ready, "3", "a") == [("2", {"a": b"seed"}, [])]

    def test_lineage_follows_parents_not_ids(self, ready: Backend) -> None:
        store(
            ready,
            put("1", None, blob("a", "1", b"seed")),
            put("2", "1"),
            put("3", "1"),
            put("0", "3"),
            *(pending(n, write(channel="a", data=n.encode())) for n in ("1", "2", "3")),
        )
        assert [step[0] for step in _lineage(ready, "0", "a")] == ["3", "1"]

    def test_lineage_stays_in_its_namespace(self, ready: Backend) -> None:
        store(ready, put("1", None, blob("a")), put("1", namespace="sub"))
        store(ready, put("2", "1", namespace="sub"), pending("1", write(channel="a")))
        assert _lineage(ready, "2", "a", namespace="sub") == []

    def test_lineage_of_nothing(self, ready: Backend) -> None:
        assert _lineage(ready, None, "a") == []
        store(ready, put("1"), put("2", "1"))
        ready.prune(THREAD, [("", "1")])
        assert _lineage(ready, "2", "a") == []
        assert _lineage(ready, "unknown", "a") == []

    def test_a_long_lineage(self, ready: Backend) -> None:
        names = [f"{n:04}" for n in range(1200)]
        units = [put(i, parent) for i, parent in zip(names, [None, *names[:-1]], strict=True)]
        store(ready, *units, pending("0000", write(channel="a")))
        assert [step[0] for step in _lineage(ready, None, "a")] == ["0000"]
