"""The documentation tells the truth: its Python runs, its links lead somewhere, its commands exist.

The Python blocks of a page are one program, run from top to bottom in an empty folder. A block that cannot run says
why, in a comment on the line above it:

    <!-- not run: needs a server -->
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import typer

from charm_checkpoint.cli.app import app
from charm_checkpoint.replica import ReplicaOptions

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OPT_OUT = re.compile(r"\s*<!-- not run: \S.* -->\s*")


def python_of(page: str) -> tuple[str, list[str]]:
    """Return a page's program, on the lines it has in the page, and the reasons of the blocks left out."""
    lines = page.splitlines()
    program = [""] * len(lines)
    left_out = []
    start = None
    fence = kind = ""
    for number, line in enumerate(lines):
        opened = re.fullmatch(r"\s*(`{3,})(\S*).*", line)
        if start is None and opened:
            start, (fence, kind) = number, opened.groups()
        elif start is not None and line.strip() == fence:
            if kind == "python" and OPT_OUT.fullmatch(lines[start - 1]):
                left_out.append(lines[start - 1].strip())
            elif kind == "python":
                block = textwrap.dedent("\n".join(lines[start + 1 : number]))
                program[start + 1 : number] = block.split("\n")
            start = None
    return "\n".join(program), left_out


WITH_PYTHON = [page for page in PAGES if python_of(page.read_text("utf-8"))[0].strip()]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_python_runs(page: Path, tmp_path: Path) -> None:
    program, _ = python_of(page.read_text("utf-8"))
    script = tmp_path / f"{page.stem}.py"
    script.write_text(program, "utf-8")
    folder = tmp_path / "empty"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "error", script],
        cwd=folder,
        env={**os.environ, "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{name_of(page)} (same line numbers):\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_opt_out_belongs_to_a_block(page: Path) -> None:
    text = page.read_text("utf-8")
    assert len(re.findall(r"<!-- *not run\b", text)) == len(python_of(text)[1])
    assert not re.search(r"^\s*```(py|python3|pycon|Python)\b", text, re.MULTILINE), "say ```python"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", page.read_text("utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text("utf-8"), re.MULTILINE))
    assert named <= targets


def commands_of(page: str) -> list[list[str]]:
    """The calls of `charm-checkpoint` in a page's shell blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    calls = [re.split(r" [|>] ", line)[0] for line in lines if line.startswith("charm-checkpoint ")]
    return [shlex.split(call, comments=True)[1:] for call in calls]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist(page: Path) -> None:
    """Every command in a shell block, with its options and a number of arguments that it takes."""
    root: Any = typer.main.get_command(app)
    for call in commands_of(page.read_text("utf-8")):
        command, rest = root, list(call)
        while rest and rest[0] in getattr(command, "commands", {}):
            command = command.commands[rest.pop(0)]
        assert command is not root, f"there is no command {' '.join(call)}"
        _, extra, _ = command.make_parser(typer.Context(command)).parse_args(rest)
        assert not extra, f"{' '.join(call)}: what is {extra}?"


def test_settings_of_a_replica() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (`?)(\w+)\2 \|", (ROOT / "docs/sync.md").read_text(), re.MULTILINE
    )
    told = {name: default for name, _, default in rows}
    assert told == {k: str(v).removesuffix(".0") for k, v in ReplicaOptions()._asdict().items()}


def test_blocks_are_found_and_left_out() -> None:
    blocks = (
        "Text with ```ticks```.",
        "```python\na = 1\n```",
        "<!-- not run: why -->\n```python\nb\n```",
        "```yaml\nc: 1\n```",
        "  ```python\n  d = a\n  ```",
    )
    program, left_out = python_of("\n".join(blocks))
    lines = {number: line for number, line in enumerate(program.split("\n"), 1) if line}
    assert lines == {3: "a = 1", 13: "d = a"}
    assert left_out == ["<!-- not run: why -->"]
