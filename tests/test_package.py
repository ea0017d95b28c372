"""The package as users get it: built, installed somewhere else, imported from there by a fresh interpreter."""

from __future__ import annotations

import ast
import importlib
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

import charm_checkpoint
from charm_checkpoint import errors

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "charm_checkpoint"

# What `import charm_checkpoint` leaves alone: drivers, LangGraph's graph code, what only the CLI and charm.yaml need.
LAZY = {
    "aiosqlite",
    "langgraph.graph",
    "langgraph.pregel",
    "psycopg",
    "redis",
    "rich",
    "sqlite3",
    "supabase",
    "typer",
    "yaml",
}


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    # Coverage's own modules would be among those counted.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        command, cwd=cwd, env={**kept, **env}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", "install")
    run(*pip, "--no-deps", "--no-index", "--no-compile", "--target", folder, wheel, cwd=folder)
    return folder


@pytest.fixture
def fresh(installed: Path, tmp_path: Path) -> Callable[[str], str]:
    """Run code in a new interpreter that finds the installed wheel before this checkout."""

    def interpret(code: str) -> str:
        return run(
            sys.executable, "-W", "error", "-c", code, cwd=tmp_path, PYTHONPATH=str(installed)
        )

    return interpret


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    paths = (path.relative_to(ROOT) for path in SOURCES.rglob("*") if path.is_file())
    made = re.compile(r"\.|__pycache__$")  # by tools, in passing
    sources = {path.as_posix() for path in paths if not any(map(made.match, path.parts))}
    assert packed == sources
    assert "charm_checkpoint/py.typed" in packed


def test_import_is_lazy(fresh: Callable[[str], str], installed: Path) -> None:
    where, *loaded = fresh(
        "import charm_checkpoint, sys; print(charm_checkpoint.__file__, *sys.modules, sep='\\n')"
    ).splitlines()
    assert Path(where).is_relative_to(installed)
    assert "charm_checkpoint" in loaded
    assert LAZY.intersection(loaded) == set()


def test_public_names_resolve_in_the_installed_package(fresh: Callable[[str], str]) -> None:
    assert charm_checkpoint.__all__ == sorted(charm_checkpoint.__all__)
    fresh("from charm_checkpoint import *")


def test_entry_points_lead_somewhere(installed: Path, fresh: Callable[[str], str]) -> None:
    (dist,) = metadata.distributions(name="charm-checkpoint", path=[str(installed)])
    points = {(p.group, p.name): p.value for p in dist.entry_points}
    assert points == {
        ("console_scripts", "charm-checkpoint"): "charm_checkpoint.cli:main",
        ("charm.memory", "local"): "charm_checkpoint.sqlite:LocalMemory",
    }
    for value in points.values():
        module, name = value.split(":")
        fresh(f"from {module} import {name}; assert callable({name})")


def modules() -> list[str]:
    files = (path.relative_to(ROOT).with_suffix("") for path in sorted(SOURCES.rglob("*.py")))
    names = (".".join(file.parts).removesuffix(".__init__") for file in files)
    return [name for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_public_names_resolve(name: str) -> None:
    module = importlib.import_module(name)
    names = list(getattr(module, "__all__", ()))
    assert len(names) == len(set(names))
    assert [n for n in names if not hasattr(module, n)] == []
    assert set(names) <= set(dir(module))


# -- errors ------------------------------------------------------------------------------------------------------------

ARGUMENTS: dict[str, tuple[object, ...]] = {
    "ThreadConflictError": ("trip", "", None, "1f0c", "phone", 1_700_000_000.0),
    "ThreadDeletedError": ("trip", 1_700_000_000.0),
    "DeletedInTargetError": ("trip", 1_700_000_000.0),
}


def error_classes(root: type[BaseException]) -> Iterator[type[BaseException]]:
    yield root
    for child in root.__subclasses__():
        yield from error_classes(child)


def test_there_is_one_tree_of_errors() -> None:
    for name in modules():
        importlib.import_module(name)
    ours = {
        cls.__name__
        for cls in error_classes(errors.CheckpointStoreError)
        if cls.__module__.split(".")[0] == "charm_checkpoint"
    }
    assert ours == set(errors.__all__)
    drawing = errors.__doc__ or ""
    assert [name for name in errors.__all__ if f" {name} " not in drawing.replace("\n", " ")] == []


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_pickle(name: str) -> None:
    cls = getattr(errors, name)
    error = cls(*ARGUMENTS.get(name, ("thread 'trip': something happened",)))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert (again.args, str(again), vars(again)) == (error.args, str(error), vars(error))


# -- dependencies ------------------------------------------------------------------------------------------------------

# These need an extra, or do nothing without LangGraph.
OPTIONAL = ("cli", "encryption.py", "graph_types.py", "testing")

# What the core's requirements bring.
REQUIRED = (
    "charm_checkpoint",
    "langchain_core",
    "langgraph.checkpoint",
    "ormsgpack",
    "pydantic",  # LangChain's messages are its models
    "rich",
    "typer",
    "yaml",
)


def needed_imports(path: Path) -> Iterator[str]:
    """Names a file imports, but for those it can do without: for type checkers, or with an `except ImportError`."""
    tree = ast.parse(path.read_text("utf-8"))
    optional = {
        node
        for block in ast.walk(tree)
        if (isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING")
        or (isinstance(block, ast.Try) and "except ImportError" in ast.unparse(block))
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in optional:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_core_imports_only_what_it_requires() -> None:
    strays = {
        f"{path.relative_to(SOURCES)}: {name}"
        for path in SOURCES.rglob("*.py")
        if path.relative_to(SOURCES).parts[0] not in OPTIONAL
        for name in needed_imports(path)
        if name.split(".")[0] not in sys.stdlib_module_names
        and not any(f"{name}.".startswith(f"{required}.") for required in REQUIRED)
    }
    assert strays == set()
