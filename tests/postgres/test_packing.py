"""Values of old checkpoints in less room: all reads as before, and can be gone on from."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest

from charm_checkpoint.backend import SEALED, Entry, Scan
from charm_checkpoint.testing.rows import (
    THREAD,
    blob,
    blobs_of,
    contents,
    move,
    pending,
    put,
    read,
    statuses,
    store,
    write,
)
from charm_memory_postgres import PostgresBackend, backend
from charm_memory_postgres.wire import encode
from tests.postgres.packed import Talk, packed_rows, version, whole
from tests.postgres.proxy import Proxy

MIB = 1024 * 1024


# -- what can be read --------------------------------------------------------------------------------------------------


def test_a_packed_thread(packer: PostgresBackend, shared_database: psycopg.Connection) -> None:
    talk = Talk()
    talk.go_on(packer, 30)
    before = contents(packer, THREAD)
    sizes = packer.sizes(THREAD)
    done = packer.compact()
    assert done.complete is None, "a server keeps the room"
    assert done.before == sum(2000 * n for n in range(1, 31))
    assert done.after < 130_000
    assert contents(packer, THREAD) == before
    assert packed_rows(shared_database) == 29
    assert whole(shared_database) == {version(30)}
    packed = packer.sizes(THREAD)
    assert packed.keys() == sizes.keys()
    assert sum(sizes.values()) > done.before > 7 * sum(packed.values())
    assert packed["", "0029"] > 58_000 > 1000 > packed["", "0028"], "all older are ranges of it"

    again = packer.compact()
    assert again.before == again.after == pytest.approx(done.after, abs=100)
    assert contents(packer, THREAD) == before


def test_packed_again_and_again(
    packer: PostgresBackend, shared_database: psycopg.Connection
) -> None:
    """What was packed before is put on what is packed then, up to a length."""
    talk = Talk()
    for _ in range(70):
        talk.go_on(packer, 1)
        packer.compact()
    found = shared_database.execute(
        "SELECT version, height FROM charm_packed WHERE base IS NULL ORDER BY version"
    ).fetchall()
    assert [height for _, height in found] == [64, 3]
    assert blobs_of(read(packer, "0001"))["messages"][2] == talk.values["0001"]
    for name, value in talk.values.items():
        assert blobs_of(read(packer, name))["messages"][2] == value


def test_more_than_one_call_packs(
    packer: PostgresBackend, shared_database: psycopg.Connection
) -> None:
    """Each goes on where the one before ended, and all is put on one value."""
    talk = Talk()
    store(packer, talk.step(size=MIB))
    talk.go_on(packer, 20)
    packer.compact()
    found = shared_database.execute(
        "SELECT count(*), max(height) FROM charm_packed WHERE base IS NULL"
    )
    assert found.fetchone() == (1, 1)
    for name, value in talk.values.items():
        assert blobs_of(read(packer, name))["messages"][2] == value


def test_rows_as_they_were_written_first(
    packer: PostgresBackend, shared_database: psycopg.Connection
) -> None:
    """What this release packs, every later one has to read."""
    for n in (1, 2, 3):
        store(packer, put(str(n), str(n - 1) if n > 1 else None, versions={"messages": version(n)}))
    for row in (
        (
            version(2),
            14,
            "DMDV98dUGMU2Ki6MRINR",
            None,
            None,
            None,
            None,
            None,
            b"\x93one,two,three",
            1,
        ),
        (version(1), 12, "0uz497SY8usU+KHtz/T4", version(2), 1, 1, 4, 6, b"\x922", 0),
    ):
        shared_database.execute(
            "INSERT INTO charm_packed (thread_id, checkpoint_ns, channel, type, version, size, digest, base, head, "
            "start, length, rest, data, height) VALUES ('thread', '', 'messages', 'bytes', "
            "%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            row,
        )
    assert blobs_of(read(packer, "2"))["messages"] == (version(2), "bytes", b"\x93one,two,three")
    assert blobs_of(read(packer, "1"))["messages"] == (version(1), "bytes", b"\x92one,2,three")


def test_pages_end_by_what_values_have_unpacked(
    packer: PostgresBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    Talk().go_on(packer, 12)
    monkeypatch.setattr(backend, "_PAGE_BYTES", 50_000)
    before = [len(page) for page in _pages(packer)]
    packer.compact()
    assert [len(page) for page in _pages(packer)] == before
    assert len(before) > 1


def test_a_packed_value_of_several_checkpoints_is_answered_once(
    packer: PostgresBackend, shared_database: psycopg.Connection
) -> None:
    talk = Talk()
    for _ in range(4):
        store(packer, talk.step())
        first, second = f"{talk.n:04}", f"{talk.n + 1:04}"
        store(packer, put(second, first, versions={"messages": version(talk.n)}))
        talk.n, talk.values[second] = talk.n + 1, talk.values[first]
    packer.compact()
    asked = json.dumps({"thread": THREAD, "limit": 99, "values": True, "max_bytes": MIB})
    found = shared_database.execute(
        "SELECT count(*) FROM charm_scan_v1(%s) WHERE kind = 'blob'", (asked,)
    )
    assert found.fetchone() == (4,)


def _pages(packer: PostgresBackend) -> Iterator[Sequence[Entry]]:
    query: Scan | None = Scan(thread_id=THREAD)
    while query is not None:
        page = packer.scan(query)
        yield page.entries
        query = query._replace(after=page.next) if page.next else None


@pytest.mark.parametrize("header", [b"\x90", b"\xdc\x01", b"\xdd\x00\x01\x02", b""])
@pytest.mark.parametrize("change", ["grows", "shrinks", "in the middle", "at the front", "other"])
def test_ways_to_change(change: str, header: bytes, packer: PostgresBackend) -> None:
    rng = random.Random(f"{change}{header!r}")
    value, values = rng.randbytes(6000), {}
    for n in range(1, 80):
        name = f"{n:04}"
        at = rng.randrange(len(value))
        value = {
            "grows": value + rng.randbytes(30),
            "shrinks": value[: -rng.randrange(1, 40)],
            "in the middle": value[:at] + rng.randbytes(9) + value[at + rng.randrange(20) :],
            "at the front": rng.randbytes(5) + value,
            "other": rng.randbytes(1500),
        }[change]
        values[name] = value
        if header == b"\x90":
            values[name] = bytes([0x90 + n % 16]) + value
        elif header:
            values[name] = header + bytes([n]) + value
        parent = f"{n - 1:04}" if n > 1 else None
        store(packer, put(name, parent, blob("messages", version(n), values[name])))
    done = packer.compact()
    assert done.after < done.before / 3 or change == "other"
    for name, value in values.items():
        assert blobs_of(read(packer, name))["messages"][2] == value


def test_what_is_left_as_it_is(
    packer: PostgresBackend, shared_database: psycopg.Connection
) -> None:
    long = bytes(range(256)) * 20
    for n in range(1, 6):
        values = (
            blob("small", version(n), long if n > 3 else long[:900]),
            blob("sealed", version(n), long, "msgpack" if n > 3 else "msgpack" + SEALED),
            blob("random", version(n), random.Random(n).randbytes(5000)),
            blob("snapshot", version(n), long),
        )
        metadata = b'{"counters_since_delta_snapshot":{"snapshot":[1,1]}}' if n == 2 else b"{}"
        store(packer, put(str(n), str(n - 1) if n > 1 else None, *values, metadata=metadata))
    done = packer.compact()
    assert done.before == done.after
    assert packed_rows(shared_database) == 0
    assert packed_rows(shared_database, "checkpoint_blobs") == 20


def test_what_waits_for_an_answer_stays(
    packer: PostgresBackend, shared_database: psycopg.Connection
) -> None:
    """A branch that was not gone on from, for whoever answers; not a question that was answered."""
    talk = Talk()
    talk.go_on(packer, 3)
    store(packer, pending("0002", write("asked", -3, "__interrupt__")))
    store(packer, talk.step("0002", on_conflict="beside"))
    store(packer, pending("0004", write("asked", -3, "__interrupt__")))
    store(packer, *[talk.step("0003" if n == 0 else None) for n in range(3)])
    packer.compact()
    assert whole(shared_database) == {version(4), version(7)}


def test_the_newest_by_id_and_by_ancestry(
    database: str, shared_database: psycopg.Connection
) -> None:
    """A fork of what is old is the head: its ancestors stay, and what has the greatest ids."""
    packer = PostgresBackend(database, pack_after=3)
    packer.setup()
    talk = Talk()
    talk.go_on(packer, 10)
    store(packer, talk.step("0004"))
    packer.compact()
    assert whole(shared_database) == {version(n) for n in (3, 4, 9, 10, 11)}
    packer.close()


# -- going on from what is packed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fork", "branch", "promote", "prune", "foreign prune"])
def test_what_a_thread_goes_on_from_is_whole(
    how: str, packer: PostgresBackend, shared_database: psycopg.Connection
) -> None:
    talk = Talk()
    talk.go_on(packer, 10)
    other = blob("other", version(1), b"o" * 3000)
    later = blob("other", version(2), b"o" * 3001)
    for blobs in ((other,), (later,), ()):
        last, more = f"{talk.n:04}", talk.step()
        assert isinstance(more, type(put("1")))
        versions = {} if blobs else {"other": later.version}
        row = more.row._replace(
            versions={**more.row.versions, **versions, **{b.channel: b.version for b in blobs}}
        )
        store(packer, more._replace(row=row, blobs=(*more.blobs, *blobs)))
        del last
    store(packer, talk.step())
    packer.compact()
    assert packed_rows(shared_database) > 10
    before = read(packer, "0011")
    unchanged = put("0015", "0011", versions={"other": other.version, "messages": version(11)})
    if how == "fork":
        store(packer, unchanged)
    elif how == "branch":
        told = packer.write([unchanged._replace(fenced=True, on_conflict="branch")])
        assert statuses(told) == ["branched"]
    elif how == "promote":
        store(packer, move("0011", over="0014"))
    elif how == "prune":
        assert packer.prune(THREAD, [("", f"{n:04}") for n in (12, 13, 14)]) == 3
    else:
        shared_database.execute("DELETE FROM checkpoints WHERE checkpoint_id > '0011'")
    assert version(11) in whole(shared_database)
    found = read(packer, "0015" if how in ("fork", "branch") else None)
    assert blobs_of(found) == blobs_of(before)
    assert blobs_of(found).keys() == {"messages", "other"}


def test_a_step_that_names_a_packed_version_its_parent_has_not(packer: PostgresBackend) -> None:
    talk = Talk()
    talk.go_on(packer, 6)
    packer.compact()
    store(packer, put("0009", "0002", versions={"messages": version(4)}))
    assert blobs_of(read(packer, None))["messages"][2] == talk.values["0004"]


@pytest.mark.parametrize("far", [0.0, float("inf")], ids=["as a change", "whole"])
@pytest.mark.parametrize("conflict", ["raise", "beside"])
def test_a_step_from_a_moved_head_that_names_a_packed_version(
    conflict: Any,
    far: float,
    packer: PostgresBackend,
    shared_database: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which its parent, the head, has not: a copy of the step that came after it."""
    monkeypatch.setattr(backend, "_FAR", far)
    talk = Talk()
    talk.go_on(packer, 6)
    store(packer, move("0002", over="0006"))
    packer.compact()
    assert whole(shared_database) == {version(2), version(6)}
    read(packer, None)  # known here, so that a change to it can be sent
    copied = put("0007", "0002", versions={"messages": version(3)}, on_conflict=conflict)
    packer.write([copied])
    assert version(3) in whole(shared_database)
    for name in ("0007", None if conflict == "raise" else "0002"):
        found = "0003" if name != "0002" else name
        assert blobs_of(read(packer, name))["messages"][2] == talk.values[found]


def test_a_value_sent_as_a_change_to_one_that_is_packed(
    packer: PostgresBackend, shared_database: psycopg.Connection
) -> None:
    """Whoever wrote it last, and finds others beyond it, sends the next one whole."""
    mine, talk = Talk(), Talk()
    mine.go_on(packer, 20)
    assert len(mine.values["0020"]) > 32 * 1024, "long enough to be sent as a change"
    talk.values, talk.n = dict(mine.values), mine.n
    other = PostgresBackend(shared_database.info.dsn, pack_after=1)
    talk.go_on(other, 3)
    other.compact()
    other.close()
    mine.n = 23
    store(packer, mine.step("0020"))
    assert blobs_of(read(packer, "0024"))["messages"][2] == mine.values["0024"]
    assert blobs_of(read(packer, "0020"))["messages"][2] == mine.values["0020"]


def test_going_on_from_a_packed_value_takes_one_trip(
    database: str, shared_database: psycopg.Connection
) -> None:
    """It is sent whole at once, since the server does not hold what it could be a change to."""
    with Proxy(shared_database.info.port) as proxy:
        url = psycopg.conninfo.make_conninfo(
            database, host="127.0.0.1", port=proxy.port, sslmode="disable", gssencmode="disable"
        )
        packer = PostgresBackend(url, pack_after=1)
        packer.setup()
        talk = Talk()
        store(packer, talk.step(size=50_000))
        talk.go_on(packer, 3)
        packer.compact()
        read(packer, "0002")
        proxy.reset()
        store(packer, talk.step("0002"))
        assert proxy.trips == 1
        packer.close()


def test_the_first_value_of_a_version_stays(
    packer: PostgresBackend, shared_database: psycopg.Connection
) -> None:
    """Also where it is packed when another comes."""
    talk = Talk()
    talk.go_on(packer, 5)
    packer.compact()
    store(packer, put("0006", "0002", blob("messages", version(2), b"another")))
    same_size = bytes(len(talk.values["0003"]))
    store(packer, put("0007", "0003", blob("messages", version(3), same_size)))
    reader = PostgresBackend(shared_database.info.dsn)
    assert blobs_of(read(reader, "0007"))["messages"][2] == talk.values["0003"]
    reader.close()
    for name in ("0006", "0002"):
        assert blobs_of(read(packer, name))["messages"][2] == talk.values["0002"]


def test_what_was_made_whole_is_packed_again(
    packer: PostgresBackend, shared_database: psycopg.Connection
) -> None:
    talk = Talk()
    talk.go_on(packer, 6)
    packer.compact()
    store(packer, put("0007", "0003", versions={"messages": version(3)}))
    assert version(3) in whole(shared_database)
    talk.n = 7
    store(packer, talk.step("0003"))
    packer.compact()
    assert whole(shared_database) == {version(8)}
    for name, value in talk.values.items():
        assert blobs_of(read(packer, name))["messages"][2] == value


def test_heads_and_steps_do_not_look_at_what_is_packed(
    packer: PostgresBackend, shared_database: psycopg.Connection
) -> None:
    talk = Talk()
    talk.go_on(packer, 5)
    packer.compact()

    def looks(call: str, *arguments: Any) -> int:
        counted = """
            SELECT pg_stat_get_xact_numscans('charm_packed'::regclass)
                + sum(pg_stat_get_xact_numscans(indexrelid))::integer
            FROM pg_index WHERE indrelid = 'charm_packed'::regclass
        """
        with shared_database.transaction():
            [before] = shared_database.execute(counted).fetchone() or ()
            shared_database.execute(f"SELECT * FROM {call}".encode(), arguments)
            [after] = shared_database.execute(counted).fetchone() or ()
        return int(after - before)

    emptied = put("0006b", "0006", blob("other", version(7)), versions={"gone": version(7)})
    assert looks("charm_write_v1(%s, %b)", *encode([talk.step(fenced=True), emptied], None)) == 0
    assert looks("charm_read_v1(%s, '', NULL)", THREAD) == 0
    assert looks("charm_pull_v1(%s, '{}')", THREAD) == 0
    assert looks("charm_read_v1(%s, '', '0001')", THREAD) > 0
    assert looks("charm_write_v1(%s, %b)", *encode([talk.step("0001")], None)) > 0


def test_what_is_whole_is_not_made_so_again(
    packer: PostgresBackend, shared_database: psycopg.Connection
) -> None:
    """A branch goes on step after step, and its large values stay as they are."""
    talk = Talk()
    talk.go_on(packer, 5)
    packer.compact()
    store(packer, put("0006", "0002", versions={"messages": version(2)}, on_conflict="beside"))
    # Whoever puts it together would fail.
    shared_database.execute("UPDATE charm_packed SET base = version WHERE base IS NOT NULL")
    step = put("0007", "0006", versions={"messages": version(2)}, on_conflict="beside")
    assert statuses(packer.write([step])) == ["branched"]
    assert blobs_of(read(packer, "0007"))["messages"][2] == talk.values["0002"]
