"""`plugins`: which providers are installed. Imports none of them."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from charm_checkpoint.cli.output import printable
from charm_checkpoint.cli.reports import Plugins
from charm_checkpoint.plugins import installed

__all__ = ["gather", "render"]


def gather() -> Plugins:
    """List every offer of a provider."""
    return {
        "plugins": [
            {
                "name": plugin.name,
                "distribution": plugin.distribution,
                "version": plugin.version,
                "value": plugin.value,
                "used": plugin.used,
            }
            for plugin in installed()
        ]
    }


def render(report: Plugins, console: Console) -> None:
    """Draw one line per offer; those that another one hides are marked."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("Provider", no_wrap=True)
    table.add_column("Distribution", overflow="fold")
    table.add_column("Version", no_wrap=True)
    table.add_column("Class", overflow="fold")
    for plugin in report["plugins"]:
        table.add_row(
            printable(plugin["name"]),
            printable(plugin["distribution"]),
            printable(plugin["version"]),
            printable(plugin["value"]) + ("" if plugin["used"] else " (not used)"),
            style=None if plugin["used"] else "dim",
        )
    console.print(table)
