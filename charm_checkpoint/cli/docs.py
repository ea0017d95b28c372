"""Writes `docs/cli.md` from the commands themselves: `python -m charm_checkpoint.cli.docs`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import typer

from charm_checkpoint.cli import reports
from charm_checkpoint.cli.app import app

__all__ = ["PAGE", "main", "page"]

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

_REPORTS: dict[str, type] = {
    "demo": reports.Demonstration,
    "threads": reports.Threads,
    "show": reports.Shown,
    "history": reports.History,
    "diff": reports.Diff,
    "watch": reports.Watched,
    "delete": reports.Erasure,
    "erase": reports.Erasure,
    "prune": reports.Pruning,
    "compact": reports.Compaction,
    "copy": reports.Copy,
    "export": reports.Export,
    "import": reports.Copy,
    "fork": reports.Fork,
    "doctor": reports.Diagnosis,
    "sync status": reports.SyncStatus,
    "sync watch": reports.SyncStatus,
    "sync push": reports.Push,
    "sync pull": reports.Pull,
    "conflicts": reports.Conflicts,
    "promote": reports.Promotion,
    "dismiss": reports.Dismissal,
    "plugins": reports.Plugins,
}

_HEAD = """\
# The `charm-checkpoint` command

<!-- Written by `make docs`; change the commands instead. -->

{help}

{epilog}

- An error is one line on standard error, without secrets.
- With `--json` standard output holds one JSON object and nothing else, [described below](#json).
- On a terminal tables take the width there is and times are local. In a pipe nothing is cut, folded or coloured;
  `NO_COLOR` turns colours off everywhere.
- Without `--store` the store is what `CHARM_MEMORY_PROVIDER` or charm.yaml says, else the local one of the workspace.
  No command makes a store that does not exist yet, but `copy` and `import` where they copy to, and `sync pull` a
  replica.
- `sync`, `conflicts`, `promote` and `dismiss` are about a [replica](sync.md): the configured store's, or with `--store`
  the usual one of that store on this device.
"""

_JSON = """\
## JSON

Fields are added in later releases, never renamed or removed. Times are ISO 8601 in UTC, `null` where a stored one is
out of range.
"""


def page() -> str:
    """Return the text of `docs/cli.md`."""
    group: Any = typer.main.get_command(app)
    parts = [_HEAD.format(help=group.help, epilog=group.epilog)]
    parts += [_command(name, command) for name, command in _commands(group)]
    parts.append(_JSON)
    parts += [_object(kind) for kind in _objects()]
    return "\n".join(parts)


def _commands(group: Any, within: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{within}{name} ")
        else:
            yield f"{within}{name}", command


def _command(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join(["charm-checkpoint", name, *map(_argument, arguments), "[OPTIONS]"])
    rows = [f"| `{p.metavar}` | {p.help} |" for p in arguments]
    rows += [f"| {_spelled(p)} | {p.help}{_default(p)} |" for p in options]
    lines = [
        f"## `{usage}`",
        "",
        inspect.cleandoc(command.help),
        "",
        "| option | meaning |",
        "|---|---|",
        *rows,
    ]
    if name in _REPORTS:
        kind = _REPORTS[name].__name__
        lines += ["", f"`--json` prints a [{kind}](#{kind.lower()})."]
    return "\n".join([*lines, ""])


def _argument(argument: Any) -> str:
    spelled = f"{argument.metavar}{'…' if argument.nargs == -1 else ''}"
    return spelled if argument.required else f"[{spelled}]"


def _spelled(option: Any) -> str:
    value = "" if option.is_flag else f" {option.metavar}"
    return ", ".join(f"`{spelling}{value}`" for spelling in option.opts)


def _default(option: Any) -> str:
    return "" if option.is_flag or not option.show_default else f" Default: {option.default}."


def _objects() -> Iterator[type]:
    """Every kind of object, each before those within it."""
    found: dict[type, None] = {}
    waiting = list(_REPORTS.values())
    while waiting:
        kind = waiting.pop(0)
        found.setdefault(kind)
        waiting = [
            k for hint in get_type_hints(kind).values() for k in _kinds(hint) if k not in found
        ] + waiting
    return iter(found)


def _kinds(hint: Any) -> Iterator[type]:
    if is_typeddict(hint):
        yield hint
    for part in get_args(hint):
        yield from _kinds(part)


def _object(kind: type) -> str:
    first = inspect.cleandoc(kind.__doc__ or "")
    lines = [f"### {kind.__name__}", "", first, "", "| field | type | meaning |", "|---|---|---|"]
    for name, hint in get_type_hints(kind, include_extras=True).items():
        meaning = getattr(hint, "__metadata__", ("",))[0]
        lines.append(f"| `{name}` | {_typed(hint)} | {meaning} |")
    return "\n".join([*lines, ""])


_NAMES: dict[Any, str] = {
    str: "text",
    int: "number",
    float: "number",
    bool: "true or false",
    Any: "anything",
}


def _typed(hint: Any) -> str:
    if hasattr(hint, "__metadata__"):
        hint = hint.__origin__
    if is_typeddict(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    parts = [part for part in get_args(hint) if part is not type(None)]
    if get_origin(hint) is list:
        return f"list of {_typed(parts[0])}"
    if get_origin(hint) is dict:
        return f"object of {_typed(parts[1])}"
    if parts:
        return f"{_typed(parts[0])} or null"
    return _NAMES[hint]


def main() -> None:
    """Write the page."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
