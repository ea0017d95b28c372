"""Installs distributions with `charm.memory` plugins for a test, as `importlib.metadata` finds them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from textwrap import dedent

import pytest

from charm_checkpoint import plugins
from charm_checkpoint.manager import StorageManager

# A messages-only plugin as the Charm docs show it, with a folder for a server. {base} is what it inherits from.
FOLDER_MEMORY = """
import json, pathlib
{imports}

class FolderMemory({base}):
    def __init__(self, config):
        {init}
        self.folder = pathlib.Path(config["url"].removeprefix("folder://"))
        self.folder.mkdir(exist_ok=True)

    def load_messages(self, thread_id):
        file = self.folder / thread_id
        return json.loads(file.read_text()) if file.exists() else []

    def save_messages(self, thread_id, messages):
        (self.folder / thread_id).write_text(json.dumps(messages))
"""


class Site:
    """A folder on `sys.path` to install into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(
        self, distribution: str, providers: dict[str, str], version: str = "1.0", **modules: str
    ) -> None:
        """Install a distribution: entry points by name, source texts by module name."""
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        )
        lines = [f"{name} = {value}\n" for name, value in providers.items()]
        (info / "entry_points.txt").write_text("".join(["[charm.memory]\n", *lines]))
        for name, source in modules.items():
            (self.folder / f"{name}.py").write_text(dedent(source))
        importlib.invalidate_caches()


@contextmanager
def site(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A fresh site and manager, with `folder` as the empty working directory; all stores are closed at the end.

    The adapters that are really installed are not seen.
    """
    packages, cwd = folder / "site", folder / "cwd"
    packages.mkdir()
    cwd.mkdir()
    patch.chdir(cwd)
    patch.setattr(sys, "path", ["", str(packages), *sys.path])

    def entry_points(**query: str) -> list[metadata.EntryPoint]:
        found = [each for each in real(**query) if each.dist is not None]
        return [
            each
            for each in found
            if not each.dist.name.startswith("charm-memory-")
            or Path(str(each.dist.locate_file(""))) == packages
        ]

    real = metadata.entry_points
    patch.setattr(plugins.metadata, "entry_points", entry_points)
    StorageManager.close_all()
    yield Site(packages)
    StorageManager.close_all()
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(packages)):
            del sys.modules[name]
