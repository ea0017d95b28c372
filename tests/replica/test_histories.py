"""Random histories of two to four devices: killed, cut off, with wrong clocks, all on the same threads.

A history that failed is run again alone by its name, as in `-k "test_histories and sqlite-17"`; what happened in it is
in the captured output. `$CHARM_TEST_HISTORIES` is how many there are (500, most of them only in the long form),
`$CHARM_TEST_HISTORIES_FROM` the first seed (0).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.replica.histories import Zygote, run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")

_COUNT = int(os.environ.get("CHARM_TEST_HISTORIES", "500"))
_FIRST = int(os.environ.get("CHARM_TEST_HISTORIES_FROM", "0"))


def seeds(short: int, share: float = 1.0) -> list[object]:
    """Parameters: the first `short` in every run of the tests, the others in the long one."""
    return [
        pytest.param(_FIRST + n, marks=() if n < short else pytest.mark.slow)
        for n in range(max(short, round(_COUNT * share)))
    ]


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


@pytest.mark.parametrize("seed", seeds(8))
def test_sqlite(zygote: Zygote, tmp_path: Path, seed: int) -> None:
    run(zygote, tmp_path, str(tmp_path / "remote.db"), seed, ["chat", "ask", "nest", "plain"])


@pytest.mark.parametrize("seed", seeds(2, 0.2))
def test_postgres(zygote: Zygote, tmp_path: Path, database: str, seed: int) -> None:
    run(zygote, tmp_path, database, seed, ["chat", "ask", "nest", "plain"])


@pytest.mark.parametrize("seed", seeds(2, 0.2))
def test_subgraphs_with_a_checkpointer_of_their_own(
    zygote: Zygote, tmp_path: Path, seed: int
) -> None:
    run(zygote, tmp_path, str(tmp_path / "remote.db"), seed, ["note"])


@pytest.mark.parametrize("seed", seeds(2, 0.2))
def test_delta_channels(zygote: Zygote, tmp_path: Path, seed: int) -> None:
    run(zygote, tmp_path, str(tmp_path / "remote.db"), seed, ["delta"])
