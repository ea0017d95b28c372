"""`sql` prints what a provider's class says, and nothing else; what is printed is the provider's own test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def test_any_provider_can_print_one(run: Run, tmp_path: Path) -> None:
    info = tmp_path / "site" / "acme_memory-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-memory\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[charm.memory]\nacme = acme_memory:Store\n")
    (info.parent / "acme_memory.py").write_text(
        """
class Store:
    @staticmethod
    def script(*, schema="everywhere"):
        return f"CREATE SCHEMA {schema} -- \u2026\\n"
"""
    )

    def sql(*arguments: str) -> Any:
        return run("sql", *arguments, PYTHONPATH=f"{info.parent}", PYTHONIOENCODING="ascii")

    assert sql("acme") == (0, "CREATE SCHEMA everywhere -- …\n", "")
    assert sql("acme://host/x", "--schema", "s") == (0, "CREATE SCHEMA s -- …\n", "")
    refused = sql("acme", "--role", "r")
    assert (refused.code, refused.out) == (2, "")
    assert "(acme-memory 1.2): its script does not take these options" in refused.err
    assert "'role'" in refused.err


def test_postgres(call: Run, tmp_path: Path) -> None:
    done = call("sql", "postgresql", "--schema", "agents")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("BEGIN;\n")
    assert done.out.endswith("COMMIT;\n")
    assert "CREATE SCHEMA agents" in done.out.replace('"', "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Missing argument 'PROVIDER'"),
        (["local"], "'local' (charm-checkpoint"),
        (["sqlite:///t.db"], "has no script to print"),
        (["nosuch"], "pip install charm-memory-nosuch"),
        (["nosuch://me:hunter2@host/db"], "pip install charm-memory-nosuch"),
        (["postgres", "--schema", ""], "schema='' is no name of a schema"),
    ],
)
def test_bad_use(call: Run, arguments: list[str], told: str) -> None:
    done = call("sql", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert told in done.err
    assert "hunter2" not in done.err
