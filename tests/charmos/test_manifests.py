"""Each distribution's entries for Charm's community store, by that store's rules.

`manifests/<category>/<id>.json` in a distribution's package is laid out as in the store's repository.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tomlkit

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = [ROOT, *sorted(path.parent for path in ROOT.glob("adapters/*/pyproject.toml"))]

# Group of entry points: the store's category, and what an id may look like there.
CATEGORIES = {
    "charm.memory": ("memory", "[a-z0-9-_]+"),
    "charm.adapters": ("adapters", "[a-z0-9-]+"),
    "charm.telemetry": ("telemetry", "[a-z0-9-_]+"),
}
REQUIRED = {"id", "pypi_package", "description", "author"}
OPTIONAL = {"tags", "github_url"}


def check(entry: dict[str, Any], provider: str, distribution: str, id_form: str) -> None:
    """Fail unless `entry` is what the store takes for this provider of this distribution."""
    assert REQUIRED <= entry.keys() <= REQUIRED | OPTIONAL
    assert all(isinstance(entry[key], str) and entry[key] for key in REQUIRED)
    assert re.fullmatch(id_form, entry["id"])
    assert entry["id"] == provider
    assert entry["pypi_package"] == distribution
    tags = entry.get("tags", [])
    assert isinstance(tags, list)
    assert all(isinstance(tag, str) for tag in tags)
    assert re.match("https://[^ ]+$", entry.get("github_url", "https://github.com"))


@pytest.mark.parametrize("folder", DISTRIBUTIONS, ids=lambda folder: folder.name)
def test_every_entry_point_has_its_manifest(folder: Path) -> None:
    project = tomlkit.parse((folder / "pyproject.toml").read_text()).unwrap()["project"]
    package = folder / project["name"].replace("-", "_")
    found = {path.relative_to(package / "manifests") for path in package.glob("manifests/*/*")}
    for group, entries in project.get("entry-points", {}).items():
        if group not in CATEGORIES:
            continue
        category, id_form = CATEGORIES[group]
        for provider in entries:
            path = Path(category, f"{provider}.json")
            assert path in found
            found.remove(path)
            entry = json.loads((package / "manifests" / path).read_text())
            check(entry, provider, project["name"], id_form)
    assert not found, "manifests of no entry point"


GOOD = {"id": "redis", "pypi_package": "charm-memory-redis", "description": "d", "author": "a"}


@pytest.mark.parametrize(
    "change",
    [
        {"id": "Redis"},
        {"id": "valkey"},
        {"pypi_package": "charm-memory-valkey"},
        {"description": ""},
        {"author": None},
        {"tags": "fast"},
        {"tags": [1]},
        {"github_url": "example.test/redis"},
        {"stars": "5"},
    ],
    ids=str,
)
def test_the_rules_are_checked(change: dict[str, Any]) -> None:
    rules = ("redis", "charm-memory-redis", "[a-z0-9-_]+")
    check(GOOD, *rules)
    with pytest.raises(AssertionError):
        check(GOOD | change, *rules)
