"""Real projects, run by the real `charm` command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from charm.contracts.uac import CharmConfig

from charm_checkpoint import StorageManager

PROJECTS = Path(__file__).with_name("projects")
EXAMPLE = Path(__file__).parents[2] / "examples" / "charm_project"

_EVENT = "__CHARM_EVENT__"


class Run(NamedTuple):
    """What one `charm run` told the runtime."""

    events: list[dict[str, Any]]
    text: str
    """Everything it printed."""

    def only(self, kind: str) -> dict[str, Any]:
        """The run's one event of this type; more or none is a failure that shows the whole run."""
        found = [event for event in self.events if event["type"] == kind]
        assert len(found) == 1, self.text
        return found[0]

    @property
    def final(self) -> Any:
        return self.only("final")["content"]

    @property
    def error(self) -> str:
        return str(self.only("error")["content"])


CharmRun = Callable[..., Run]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Where the runs keep local files."""
    return tmp_path / "workspace"


@pytest.fixture
def charm_run(tmp_path: Path, workspace: Path) -> CharmRun:
    """Run `charm run PROJECT --json INPUT` in a process of its own."""
    home = tmp_path / "home"
    (home / ".charm").mkdir(parents=True)
    # Without it the command asks the package index for a newer charmos.
    checked = {"last_check": time.time()}
    (home / ".charm" / ".update_check.json").write_text(json.dumps(checked))

    def run(
        project: Path, inputs: dict[str, Any], *, python_path: Path | None = None, **env: str
    ) -> Run:
        charm = Path(sys.executable).with_name("charm")
        environment = {**os.environ, "HOME": str(home), "CHARM_WORKSPACE_DIR": str(workspace)} | env
        if python_path:
            inherited = os.environ.get("PYTHONPATH")
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(python_path), inherited]))
        done = subprocess.run(
            [str(charm), "run", str(project), "--json", json.dumps(inputs)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        text = done.stdout + done.stderr
        assert done.returncode == 0, text
        lines = done.stdout.splitlines()
        events = [json.loads(line[len(_EVENT) :]) for line in lines if line.startswith(_EVENT)]
        return Run(events, text)

    return run


def charm_config(provider: str, options: dict[str, Any]) -> CharmConfig:
    """A charm.yaml with this `runtime.memory`, as charmos reads it."""
    return CharmConfig(
        version="0.4",
        persona={"name": "test", "description": "test"},
        interface={"input": {}, "output": {}},
        runtime={
            "adapter": {"type": "test", "entry_point": "test:agent"},
            "memory": {"provider": provider, "config": options},
        },
    )


def write_plugin(folder: Path, provider: str, module: str, code: str) -> None:
    """Install `Memory` of a module as a memory provider, for programs that have `folder` on their path."""
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Name: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[charm.memory]\n{provider} = {module}:Memory\n")
    (folder / f"{module}.py").write_text(code)


AdapterMaker = Callable[..., Any]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[AdapterMaker]:
    """Make an adapter as charmos's loader does, on a `local` store of this test's own."""
    stores = []

    def adapter(cls: type[Any], agent: Any, **memory: Any) -> Any:
        options = {"path": str(tmp_path / "threads.db"), **memory}
        stores.append(StorageManager.get_provider("local", options))
        return cls(agent_instance=agent, config=charm_config("local", options))

    yield adapter
    for store in stores:
        store.close()
