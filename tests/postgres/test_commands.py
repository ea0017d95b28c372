"""What the command line says of a database that nobody has used."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from charm_checkpoint import open_store
from charm_checkpoint.cli import main


@pytest.fixture
def url(empty_database: str) -> str:
    """As people write it."""
    given = conninfo_to_dict(empty_database)
    return "postgresql://{user}@{host}:{port}/{dbname}".format(**given)


@pytest.mark.parametrize(
    "arguments", [["threads"], ["show", "t"], ["compact"], ["erase", "t", "--yes"], ["doctor"]]
)
def test_looking_makes_no_tables(
    arguments: list[str], url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--store", url]) == 2
    assert "has no tables yet" in capsys.readouterr().err
    assert not tables(url)


def test_where_no_tables_may_be_made_that_is_said(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = f"{{url: '{url}', migrate: check}}"
    text = f"runtime: {{memory: {{provider: postgres, config: {config}}}}}"
    Path("charm.yaml").write_text(text, encoding="utf-8")
    assert main(["threads"]) == 1
    assert "charm-checkpoint sql postgres" in capsys.readouterr().err
    assert main(["doctor"]) == 1
    assert "charm-checkpoint sql postgres" in " ".join(capsys.readouterr().out.split())


def test_a_server_that_refuses_is_a_finding(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--store", f"{url}_missing"]) == 1
    assert "does not exist" in " ".join(capsys.readouterr().out.split())


def test_a_dry_run_makes_no_tables(url: str, tmp_path: Path) -> None:
    source = f"sqlite:///{tmp_path / 'source.db'}"
    with open_store(source) as store:
        store.save_messages("trip", [{"role": "user", "content": "hi"}])
    assert main(["copy", source, url, "--dry-run"]) == 0
    assert not tables(url)


def test_what_another_saver_left_is_found(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE checkpoint_migrations (v integer PRIMARY KEY)")
    assert main(["threads", "--store", url]) == 0
    assert tables(url)


def tables(url: str) -> int:
    """How many tables of this project's there are."""
    query = "SELECT count(*) FROM pg_class WHERE relname LIKE 'charm%' AND relkind = 'r'"
    with psycopg.connect(url) as connection:
        [number] = connection.execute(query).fetchone() or (0,)
    return int(number)
