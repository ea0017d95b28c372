"""Starts the demo's processes, kills one of them, says what happens, and has every claim checked."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from charm_checkpoint import open_store
from charm_checkpoint.cli import history
from charm_checkpoint.cli.demo.device import NOTE
from charm_checkpoint.cli.demo.process import DeviceProcess, ended_by
from charm_checkpoint.cli.demo.proofs import LAPTOP, PHONE, SERVER, Run, prove
from charm_checkpoint.cli.output import console, emit
from charm_checkpoint.cli.reports import Demonstration
from charm_checkpoint.errors import ConfigError
from charm_checkpoint.store import CheckpointStore

__all__ = ["play"]

_THREAD = "trip"


def play(*, keep: bool, as_json: bool) -> int:
    """Run the demo; returns the exit code, 1 if a claim does not hold.

    Args:
        keep: Whether the file stays.
        as_json: Whether only the report is printed, as JSON.

    Raises:
        ConfigError: LangGraph is not installed.
        CheckpointStoreError: One of the processes failed.
    """
    if importlib.util.find_spec("langgraph.graph") is None:
        raise ConfigError('the demo runs a LangGraph agent: pip install "charm-checkpoint[demo]"')
    began = time.monotonic()
    screen = console()
    screen.quiet = as_json
    folder = Path(tempfile.mkdtemp(prefix="charm-demo-"))
    try:
        path = folder / "threads.db"
        run = _run(path, screen)
        report = _report(run, path, time.monotonic() - began)
        emit(report, as_json, _render)
        if keep:
            screen.print("\nLook at it:", style="bold")
            screen.print(f"charm-checkpoint show {_THREAD} --store {_url(path)}", soft_wrap=True)
    finally:
        if not keep:
            shutil.rmtree(folder)
    return 0 if report["ok"] else 1


def _url(path: Path) -> str:
    return f"sqlite:///{path.as_posix()}"


def _run(path: Path, screen: Console) -> Run:
    screen.print("One thread, three processes, one file:", style="bold")
    screen.print(f"   {path}", soft_wrap=True)

    with DeviceProcess("begin", LAPTOP, path.parent, _url(path), _THREAD) as process:
        _title(
            screen,
            1,
            f"{LAPTOP} (process {process.pid}): an agent looks for a train, and stops to ask",
        )
        laptop = process.tells()
        left = laptop["found"]
        user, agent = left["messages"]
        _say(screen, [("user", user), ("agent", agent), ("asks", left["questions"][0])])
        _say(screen, [("stored", f"step {left['step']}, checkpoint {left['checkpoint_id']}")])
        _title(screen, 2, f"{LAPTOP} is killed while it waits for the answer")
        exit_code = process.kill()
        _say(screen, [("ended", f"process {process.pid}: {ended_by(exit_code)}")])

    with DeviceProcess("go-on", PHONE, path.parent, _url(path), _THREAD) as process:
        _title(screen, 3, f"{PHONE} (process {process.pid}): opens the same thread, and answers")
        phone = process.tells()
        found = phone["found"]
        _say(screen, [("found", f"step {found['step']}, checkpoint {found['checkpoint_id']}")])
        user, agent = phone["messages"][2:]
        _say(screen, [("asks", found["questions"][0]), ("user", user), ("agent", agent)])

    with DeviceProcess("plain", SERVER, path.parent, _url(path), _THREAD) as process:
        _title(
            screen,
            4,
            f"{SERVER} (process {process.pid}): an agent without a graph reads on, and adds a line",
        )
        server = process.tells()
        _say(screen, [(m["role"], m["content"]) for m in server["history"]])
        _say(screen, [("adds", NOTE)])

    with open_store(_url(path)) as store:
        assert isinstance(store, CheckpointStore)
        steps = history.gather(store, _THREAD, "", 0)["checkpoints"]
        messages = [message["content"] for message in store.load_messages(_THREAD)]
    return Run(laptop, exit_code, phone, server, steps, messages)


def _title(screen: Console, number: int, text: str) -> None:
    screen.print(f"\n{number}  {text}", style="bold")


def _say(screen: Console, lines: list[tuple[str, str]]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(width=9, justify="right", style="dim")
    table.add_column(overflow="fold")
    for who, text in lines:
        table.add_row(who, text)
    screen.print(table)


def _report(run: Run, path: Path, seconds: float) -> Demonstration:
    proofs = prove(run)
    return {
        "store": f"sqlite:{path}",
        "thread_id": _THREAD,
        "ok": all(proof["holds"] for proof in proofs),
        "seconds": round(seconds, 1),
        "processes": {
            device: told["pid"]
            for device, told in ((LAPTOP, run.laptop), (PHONE, run.phone), (SERVER, run.server))
        },
        "killed_by": ended_by(run.exit_code),
        "proofs": proofs,
        "checkpoints": run.steps,
    }


def _render(report: Demonstration, screen: Console) -> None:
    screen.print("\nWhat the file says, newest first\n", style="bold")
    screen.print(history.step_table(report["checkpoints"], width=screen.width))
    screen.print("\nWhat that proves\n", style="bold")
    table = Table.grid(padding=(0, 2))
    table.add_column(width=4, justify="right")
    table.add_column(overflow="fold")
    for proof in report["proofs"]:
        verdict, style = ("yes", None) if proof["holds"] else ("NO", "bold red")
        table.add_row(verdict, proof["claim"], style=style)
        table.add_row("", proof["evidence"], style="dim")
    screen.print(table)
    missing = [proof for proof in report["proofs"] if not proof["holds"]]
    verdict = (
        f"{len(missing)} of {len(report['proofs'])} claims do not hold"
        if missing
        else "All of it holds"
    )
    screen.print(f"\n{verdict}; {report['seconds']} seconds.", style="bold")
