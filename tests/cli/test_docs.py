from __future__ import annotations

from charm_checkpoint.cli.docs import PAGE, page


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == page(), "run: make docs"


def test_every_option_is_explained() -> None:
    rows = [line.split("|") for line in page().splitlines() if line.startswith("| `-")]
    assert rows
    assert all(row[2].strip() not in ("", "None") for row in rows)
