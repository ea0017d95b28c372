from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from charm_checkpoint.cli import reports

Run = Callable[..., Any]


def test_lists_what_is_installed_without_importing_it(
    call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conforms: Callable[[Any, Any], bool]
) -> None:
    info = tmp_path / "site" / "acme_memory-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-memory\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[charm.memory]\nacme = acme_memory:Store\nlocal = acme_memory:Store\n"
    )
    monkeypatch.syspath_prepend(info.parent)

    report = call("plugins", "--json").json
    assert conforms(report, reports.Plugins)
    by_name: dict[str, list[Any]] = {}
    for plugin in report["plugins"]:
        by_name.setdefault(plugin["name"], []).append(plugin)
    assert [(p["distribution"], p["version"], p["used"]) for p in by_name["acme"]] == [
        ("acme-memory", "1.2", True)
    ]
    # The built-in name stays ours, and the other offer is told of.
    assert [(p["distribution"], p["used"]) for p in by_name["local"]] == [
        ("charm-checkpoint", True),
        ("acme-memory", False),
    ]

    done = call("plugins")
    assert (done.code, done.err) == (0, "")
    assert "acme_memory:Store (not used)" in done.out
