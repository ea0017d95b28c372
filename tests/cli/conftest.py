"""The command as a person runs it: a process of its own, in a pipe or on a terminal of 80 columns."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints, is_typeddict

import pytest
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from charm_checkpoint import open_store
from charm_checkpoint.cli import main
from charm_checkpoint.store import CheckpointStore

COMMAND = [sys.executable, "-m", "charm_checkpoint.cli"]


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert (self.code, self.err) == (0, ""), self
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a user with nothing set up, in a time zone of their own."""
    home = tmp_path_factory.mktemp("home")
    names = ("LANG", "PATH", "SYSTEMROOT", "TMPDIR")
    kept = {n: v for n, v in os.environ.items() if n in names or n.startswith("COV")}
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {**kept, "HOME": str(home), "TZ": "Asia/Kolkata", "PYTHONPATH": path}


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Run:
    """Run the command in an empty folder, its output in pipes."""

    def run(*arguments: str, input: str = "", **env: str) -> Done:
        done = subprocess.run(
            [*COMMAND, *arguments],
            cwd=tmp_path,
            env=environment | env,
            input=input,
            capture_output=True,
            encoding="utf-8",
            timeout=120,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Run]:
    """Run the command within this process: quicker, for what is the same there."""
    langgraph = logging.getLogger("langgraph")
    level = langgraph.level
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Done:
        capsys.readouterr()
        code = main(arguments)
        return Done(code, *capsys.readouterr())

    yield call
    langgraph.setLevel(level)


@pytest.fixture
def terminal(environment: dict[str, str], tmp_path: Path) -> Run:
    """Run the command on a terminal; `err` is empty, as both streams are the terminal."""
    pty = pytest.importorskip("pty")
    import fcntl
    import struct
    import termios

    def run(*arguments: str, input: str = "", columns: int = 80, **env: str) -> Done:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=tmp_path,
            env=environment | {"TERM": "xterm-256color"} | env,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        os.write(ours, input.encode())
        shown = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # Linux's way to say that the other side is closed
                break
            if not chunk:
                break
            shown += chunk
        os.close(ours)
        return Done(process.wait(timeout=120), shown.decode().replace("\r\n", "\n"), "")

    return run


# -- a store with something in it --------------------------------------------------------------------------------------


class Seat(BaseModel):
    """A type that no other program has heard of."""

    number: int


class Trip(MessagesState):
    seat: Seat
    note: str


def search(state: Trip) -> dict[str, Any]:
    return {"seat": Seat(number=4), "note": "by the window", "messages": [("ai", "Found one.")]}


def approve(state: Trip) -> dict[str, Any]:
    return {"messages": [("user", interrupt({"question": "Book it?", "euros": 31}))]}


def inform(state: Trip) -> dict[str, Any]:
    return {"messages": [("ai", "Somebody was told.")]}


def break_down(state: MessagesState) -> dict[str, Any]:
    raise ValueError("the ticket machine is out of order")


def trips() -> StateGraph[Any]:
    graph = StateGraph(Trip).add_node(search).add_node(approve).add_node(inform)
    return (
        graph.add_edge(START, "search").add_edge("search", "approve").add_edge("search", "inform")
    )


ODD = "odd [red]\x1b[31m\n\u202eid"


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with a thread of every kind. Not to be changed."""
    path = tmp_path_factory.mktemp("store") / "threads.db"
    with open_store(f"sqlite:///{path}", device="laptop") as store:
        assert isinstance(store, CheckpointStore)
        saver = store.get_langgraph_checkpointer()
        store.save_messages(ODD, [{"role": "user", "content": "colour \x1b[31m\u202e"}])
        store.save_messages("talk", [{"role": "user", "content": f"line {i}"} for i in range(8)])

        machine = StateGraph(MessagesState).add_node(break_down).add_edge(START, "break_down")
        broken = {"configurable": {"thread_id": "broken"}}
        with pytest.raises(ValueError, match="out of order"):
            machine.compile(checkpointer=saver).invoke({"messages": [("user", "hi")]}, broken)

        graph = trips().compile(checkpointer=saver)
        forked = {"configurable": {"thread_id": "forked"}}
        graph.invoke({"messages": [("user", "hi")]}, forked)
        asked = graph.get_state(forked).config
        graph.invoke(Command(resume="yes"), forked)
        graph.invoke(Command(resume="no"), asked)

        graph.invoke(
            {"messages": [("user", "A seat, please.")]},
            {
                "configurable": {"thread_id": "trip"},
                "metadata": {"user": "ann", "seat": 5, "room": "5"},
            },
        )
    return f"sqlite:///{path}"


@pytest.fixture(scope="session")
def odd() -> str:
    """The id of a thread that would spoil a terminal."""
    return ODD


# -- checks ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def plain() -> Callable[[str], bool]:
    """Tells whether a text is free of control characters."""
    return lambda text: all(c.isprintable() or c == "\n" for c in text)


@pytest.fixture(scope="session")
def conforms() -> Callable[[Any, Any], bool]:
    """Tells whether a JSON value is what one of the documented reports says, field by field."""
    return _conforms


def _conforms(value: Any, hint: Any) -> bool:
    if is_typeddict(hint):
        fields = get_type_hints(hint)
        if not isinstance(value, dict):
            return False
        return set(value) == set(fields) and all(_conforms(value[f], fields[f]) for f in fields)
    kinds = get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_conforms(item, kinds[0]) for item in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_conforms(v, kinds[1]) for v in value.values())
    if kinds:
        return any(_conforms(value, kind) for kind in kinds)
    if hint is float:
        return isinstance(value, (int, float))
    return hint is Any or type(value) is hint
