"""A device of the demo: a name, a folder, a network, and what runs on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from examples.two_devices.network import Network


class Device:
    """Everything it keeps is in its folder; all it shares with others is a database.

    Args:
        name: What it is called.
        folder: Where its folder is made.
        server: The port of a Postgres on this machine.
    """

    def __init__(self, name: str, folder: Path, server: int) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir()
        self.network = Network(server)
        self.url = f"postgresql://postgres@127.0.0.1:{self.network.port}/postgres"
        own = {"CHARM_DEVICE": name, "CHARM_WORKSPACE_DIR": str(self.folder)}
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CHARM_", "LANG"))}
        self.environment = kept | own | {"DATABASE_URL": self.url}

    def command(self, *arguments: str) -> dict[str, Any]:
        """What `charm-checkpoint …` says on this device, about its replica."""
        command = [sys.executable, "-m", "charm_checkpoint.cli", *arguments]
        done = subprocess.run(  # noqa: S603 -- this interpreter, this project's module
            [*command, "--store", self.url, "--json"],
            env=self.environment,
            stdout=subprocess.PIPE,
            check=True,
        )
        told: dict[str, Any] = json.loads(done.stdout)
        return told
