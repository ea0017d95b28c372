"""Published advisories about LangGraph's persistence, each tried on this project. See `docs/security.md`."""

from __future__ import annotations

import ast
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ormsgpack
import pytest
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from charm_checkpoint import CheckpointSaver
from charm_checkpoint.backend import Scan
from charm_checkpoint.errors import ConfigError, DeserializationError, InvalidIdError
from charm_checkpoint.sqlite import LocalMemory, SqliteBackend
from charm_checkpoint.testing.rows import blob, contents, pending, put, store, write
from tests.core.support import id_of, latest, opened, place
from tests.core.support import put as put_values

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")

ADVISORIES = (
    "CVE-2025-8709",
    "CVE-2025-64104",
    "CVE-2025-67644",
    "CVE-2025-64439",
    "CVE-2026-27794",
    "CVE-2026-28277",
    "CVE-2026-48775",
    "CVE-2026-27022",
    "GHSA-98xf-r82g-9mhx",
    "langchain-mongodb#384",
    "CVE-2026-71433",
    "langgraph-sdk",
    "CVE-2025-68664",
    "langgraph#8938",
    "langgraph#9004",
)


# -- the page ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("advisory", ADVISORIES)
def test_the_page_tells_of(advisory: str) -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and advisory in line]
    assert rows, f"docs/security.md has no row for {advisory}"
    assert all(re.search(r"\]\(\.\./[\w/]+\.py\)", row) for row in rows), "each names its test"


def test_the_tests_that_the_page_names_are_there() -> None:
    named = re.findall(r"\[`(\w+)`\]\(\.\./([\w/]+\.py)\)", PAGE)
    assert len(named) >= len(ADVISORIES)
    gone = [
        (name, path)
        for name, path in named
        if not re.search(
            rf"^\s*(async )?(def|class) {name}\b", (ROOT / path).read_text(), re.MULTILINE
        )
    ]
    assert gone == []


# -- what is asked for is data, and never part of a query --------------------------------------------------------------

INJECTIONS = (
    "'",
    "x' OR '1'='1",
    "x') OR 1=1 --",
    '$.x" OR 1=1 --',
    "$.*",
    "user.name",
    "a\x00b",
    "%",
    "_ser",
    "*",
    "}|@user:{*}",
    "$gt",
    "'; DROP TABLE checkpoints; --",
    "\\",
    "[0]",
    '"',
)
OPERATORS = ({"$gt": ""}, {"$ne": None}, {"$exists": True}, {"$where": "1"}, ["ann", "ben"])


@pytest.fixture
def saver(tmp_path: Path) -> Any:
    with opened(tmp_path / "t.db") as saver:
        for number, user in enumerate(("ann", "ben")):
            config: Any = place(f"t{number}")
            config["metadata"] = {"user": user, "user.name": "x"}
            put_values(saver, config, secret=f"{user}'s")
        yield saver


def test_filters_of_metadata(saver: CheckpointSaver) -> None:
    """CVE-2025-8709, CVE-2025-64104, CVE-2025-67644: keys, values and operators that reach the SQL."""

    def found(wanted: Any) -> list[str]:
        return [t.config["configurable"]["thread_id"] for t in saver.list(None, filter=wanted)]

    assert found({"user": "ann"}) == ["t0"]
    for text in INJECTIONS:
        assert found({text: "ann"}) == []
        assert found({"user": text}) == []
        assert found({text: text}) == []
        assert found({f"user{text}": "ann", "user": "ann"}) == []
    for operator in OPERATORS:
        assert found({"user": operator}) == []
    assert sorted(found({"user.name": "x"})) == ["t0", "t1"]  # a key with a dot is a key
    assert sorted(found({})) == ["t0", "t1"]


def test_random_filters(tmp_path: Path) -> None:
    """What is found is what Python finds in the decoded metadata, whatever keys and values look like."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    pieces = [*INJECTIONS, "user", "a", "ü", "\u202e", "1", "NULL", " "]

    def text() -> str:
        return "".join(chance.choices(pieces, k=chance.randrange(1, 4))).replace("\x00", "")

    with opened(tmp_path / "t.db") as saver:
        kept: dict[str, dict[str, Any]] = {}
        for number in range(20):
            config: Any = place(f"t{number}")
            kept[f"t{number}"] = {text(): chance.choice([text(), 1, True, None]) for _ in range(3)}
            config["metadata"] = dict(kept[f"t{number}"])
            put_values(saver, config, v=number)
        stored = {t.config["configurable"]["thread_id"]: t.metadata for t in saver.list(None)}
        for _ in range(100):
            of = chance.choice([*kept.values(), {text(): text()}])
            wanted = dict([chance.choice(list(of.items()))])
            expected = {
                t for t, m in stored.items() if all(m.get(k) == v for k, v in wanted.items())
            }
            listed = saver.list(None, filter=wanted)
            assert {t.config["configurable"]["thread_id"] for t in listed} == expected


def test_labels_and_ids(tmp_path: Path) -> None:
    """CVE-2026-27022, GHSA-98xf-r82g-9mhx, langchain-mongodb#384: no part of a query is made of what a user gave."""
    with LocalMemory({"path": str(tmp_path / "t.db")}) as memory:
        memory.save_messages("t", [{"role": "user", "content": "hi"}])
        for odd in OPERATORS:
            with pytest.raises(ConfigError, match="no thread can be found by"):
                memory.threads(labels={"user": odd})  # type: ignore[dict-item]
            with pytest.raises(InvalidIdError, match="must be text"):
                memory.load_messages(odd)  # type: ignore[arg-type]
            with pytest.raises(InvalidIdError, match="must be text"):
                memory.delete(odd)  # type: ignore[arg-type]
        for text in INJECTIONS:
            if "\x00" in text:
                continue
            assert not list(memory.threads(labels={text: text}))
            assert memory.thread(text) is None
            assert memory.load_messages(text) == []
            memory.delete(text)
        assert [info.thread_id for info in memory.threads()] == ["t"]


def test_ids_that_begin_alike(tmp_path: Path) -> None:
    """CVE-2026-71433: `acme` reaches into `acme-corp`, or a pattern into everything."""
    backend = SqliteBackend(tmp_path / "t.db")
    backend.setup()
    names = ["acme", "acme-corp", "acme/", "acm_", "%", "acme%", "acme:sub"]
    for name in names:
        store(backend, put("1", None, blob("a"), thread=name), pending("1", thread=name))
        store(backend, put("1", None, blob("a"), thread="ns", namespace=name))
    for name in names:
        assert len(backend.scan(Scan(thread_id=name)).entries) == 1
        assert len(backend.scan(Scan("ns", name)).entries) == 1
    others = {name: contents(backend, name) for name in names}
    for name in names:
        assert backend.delete(name, at=2e9)
        del others[name]
        assert {other: contents(backend, other) for other in others} == others
    backend.close()


@pytest.mark.parametrize(
    "name", ["../out", "..", "/etc/x", "a/../../out", "..\\out", "C:\\out", "~"]
)
def test_ids_that_look_like_paths(name: str, tmp_path: Path) -> None:
    """langgraph-sdk below 0.4.2: `../` in a thread id leads elsewhere."""
    folder = tmp_path / "in" / "memory"
    folder.mkdir(parents=True)
    outside = [folder.parent / "out.json", tmp_path / "out.json"]
    for path in outside:
        path.write_text('[{"role": "user", "content": "not yours"}]')
    with LocalMemory({"path": str(folder / "threads.db")}) as memory:
        assert memory.load_messages(name) == []
        memory.save_messages(name, [{"role": "user", "content": "mine"}])
        assert memory.load_messages(name) == [{"role": "user", "content": "mine"}]
        memory.delete(name)
        assert memory.load_messages(name) == []
    assert all(path.exists() for path in outside)
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"out.json", "threads.db"}


# -- what is stored is data, and never a program -----------------------------------------------------------------------


class Trap:
    """A module that leaves a file behind when it is imported, and others when it is used."""

    def __init__(self, folder: Path) -> None:
        self.sprung = folder / "sprung"
        self.name = "a_trap_of_the_tests"
        (folder / f"{self.name}.py").write_text(
            f"import pathlib\npathlib.Path({str(self.sprung)!r}).touch()\n"
            "class Thing:\n    def __init__(self, *a, **k): pass\n"
            "    @classmethod\n    def go(cls, *a): pass\n"
        )

    def check(self) -> None:
        assert not self.sprung.exists()
        assert self.name not in sys.modules


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trap:
    folder = tmp_path / "trap"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return Trap(folder)


def _ext(code: int, *parts: Any) -> bytes:
    return ormsgpack.packb([ormsgpack.Ext(code, ormsgpack.packb(parts))])


def _json(module: str) -> bytes:
    return json.dumps(
        {"lc": 2, "type": "constructor", "id": [module, "Thing"], "method": [None], "args": ["x"]}
    ).encode()


def _pickle(module: str) -> bytes:
    return f"c{module}\nThing\n(S'x'\ntR.".encode()


FORGED: dict[str, Callable[[str], tuple[str, bytes]]] = {
    "CVE-2025-64439, JSON": lambda m: ("json", _json(m)),
    "CVE-2025-64439, JSON of a version before": lambda m: (
        "json",
        json.dumps({"lc": 1, "type": "constructor", "id": [m, "Thing"], "kwargs": {}}).encode(),
    ),
    "CVE-2026-27794, pickle": lambda m: ("pickle", _pickle(m)),
    "CVE-2026-28277, constructor": lambda m: ("msgpack", _ext(0, m, "Thing", "x")),
    "CVE-2026-28277, arguments": lambda m: ("msgpack", _ext(1, m, "Thing", ["x"])),
    "CVE-2026-28277, named arguments": lambda m: ("msgpack", _ext(2, m, "Thing", {"x": 1})),
    "CVE-2026-28277, pydantic 1": lambda m: ("msgpack", _ext(4, m, "Thing", {"x": 1})),
    "CVE-2026-28277, pydantic 2": lambda m: ("msgpack", _ext(5, m, "Thing", {"x": 1}, "go")),
    "CVE-2026-28277, within a snapshot": lambda m: (
        "msgpack",
        ormsgpack.packb(ormsgpack.Ext(7, _ext(0, m, "Thing", "x"))),
    ),
    "CVE-2026-48775, method": lambda m: ("msgpack", _ext(3, m, "Thing", "x", "go")),
}


@pytest.mark.parametrize("forged", FORGED)
@pytest.mark.parametrize("in_a_write", [False, True], ids=["value", "write"])
def test_forged_values(forged: str, in_a_write: bool, trap: Trap, tmp_path: Path) -> None:
    """The chain that all of them end in: a row that somebody put there is imported and called when it is read."""
    type_, data = FORGED[forged](trap.name)
    backend = SqliteBackend(tmp_path / "t.db")
    backend.setup()
    values = [blob("a", "1", data, type_)] if not in_a_write else []
    store(backend, put("1", None, *values, thread="t"))
    if in_a_write:
        store(backend, pending("1", write(channel="a", data=data, type=type_), thread="t"))
    with opened(backend) as saver:
        for read in (
            lambda: saver.get_tuple(place("t")),
            lambda: list(saver.list(place("t"))),
            lambda: saver.get_delta_channel_history(config=place("t"), channels=["a"]),
        ):
            try:
                found: Any = read()
            except DeserializationError:
                continue
            if not isinstance(found, dict):  # the history has what is before the checkpoint only
                assert "JSON" in forged, f"{forged} was read back"
                assert "Thing" not in str(type(found))
    trap.check()


def test_a_method_that_somebody_named(tmp_path: Path) -> None:
    """CVE-2026-48775: even of a type that is allowed, no other method is called than those that rebuild it."""
    path = tmp_path / "victim"
    path.write_text("kept")
    forged = _ext(3, "pathlib", "Path", str(path), "unlink")
    backend = SqliteBackend(tmp_path / "t.db")
    backend.setup()
    store(backend, put("1", None, blob("a", "1", forged, "msgpack"), thread="t"))
    with (
        opened(backend, allow=["pathlib:Path"]) as saver,
        pytest.raises(DeserializationError, match="pathlib"),
    ):
        saver.get_tuple(place("t"))
    assert path.read_text() == "kept"


def test_envelopes_in_what_users_say(tmp_path: Path, trap: Trap) -> None:
    """CVE-2025-68664: a dict of a user that looks like a serialized object comes back as that dict."""
    envelope = {"lc": 1, "type": "constructor", "id": [trap.name, "Thing"], "kwargs": {"x": 1}}
    secret = {"lc": 1, "type": "secret", "id": ["PATH"]}

    class State(TypedDict):
        said: Any

    with opened(tmp_path / "t.db") as saver:
        builder = StateGraph(State).add_node("a", lambda state: state).add_edge(START, "a")
        said = {"x": [envelope, secret], "__type__": "x", "__overwrite__x": 1}
        graph: Any = builder.compile(checkpointer=saver)
        config: Any = {**place("t"), "metadata": {"note": json.dumps(envelope)}}
        graph.invoke({"said": said}, config)
        assert graph.get_state(place("t")).values == {"said": said}
    with LocalMemory({"path": str(tmp_path / "t.db")}) as memory:
        memory.save_messages("m", [{"role": "user", "content": [envelope]}])
        assert memory.load_messages("m") == [{"role": "user", "content": [envelope]}]
    trap.check()


def test_no_module_reads_programs() -> None:
    """CVE-2026-27794: nothing here can load a pickle, evaluate a text, or read YAML with types."""
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "jsonpickle"}
    calls = {"eval", "exec", "compile", "__import__"}
    folders = [ROOT / "charm_checkpoint", *(ROOT / "adapters").glob("*/charm_*")]
    files = [f for folder in folders for f in folder.rglob("*.py")]
    assert len(files) > 60
    found = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names} & banned
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").split(".")[0]} & banned
            elif isinstance(node, ast.Call):
                names = {getattr(node.func, "id", "")} & calls
                attribute = getattr(node.func, "attr", "")
                names |= {attribute} & {"unsafe_load", "full_load", "load_all"}
            else:
                continue
            found += [(path.name, name) for name in names]
    assert found == []


def test_the_floors_of_dependencies() -> None:
    """Releases from before the fixes cannot be installed beside this one."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    floors = dict(re.findall(r'"(langgraph-checkpoint|langchain-core)>=([\d.]+)', text))
    told = {name: tuple(map(int, version.split("."))) for name, version in floors.items()}
    assert told["langgraph-checkpoint"] >= (4, 1, 1)
    assert told["langchain-core"] >= (1, 2, 5)


def test_a_forged_head_or_parent_cannot_hang_a_reader(tmp_path: Path) -> None:
    """Rows that point in a circle, or nowhere, end in an answer or an error."""
    backend = SqliteBackend(tmp_path / "t.db")
    backend.setup()
    store(backend, put("1", thread="t"), put("2", "1", thread="t"))
    with backend._db.writing() as db:
        db.execute("UPDATE checkpoints SET parent_id = '2' WHERE checkpoint_id = '1'")
    with opened(backend) as saver:
        assert len(list(saver.list(place("t")))) == 2
        saver.get_delta_channel_history(config=place("t"), channels=["a"])
        saver.prune(["t"])
        assert id_of(saver.get_tuple(place("t")).config) == "2"  # type: ignore[union-attr]
        assert latest(saver, "t") == {}
