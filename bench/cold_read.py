"""A fresh process that opens a saver and reads a thread's newest checkpoint.

The cold scenario runs it as `python -m bench.cold_read SAVER COLOUR FOLDER EMPTY THREAD SPAWNED`. It prints one JSON
object: the messages found and the seconds it took, counted from `SPAWNED` (nanoseconds since the epoch), or, if that is
0, from when everything is imported: then it rehearses in the folder `EMPTY`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from bench.plan import Colour
from bench.savers import Entrant, resolve
from bench.session import open_session

__all__: list[str] = []


def _read(
    entrant: Entrant, folder: Path, thread_id: str, clock: Callable[[], float]
) -> dict[str, Any]:
    with open_session(entrant, folder) as session:
        newest = session.newest(thread_id)
        seconds = clock()
    messages = newest.checkpoint["channel_values"]["messages"] if newest else []
    return {"messages": len(messages), "seconds": seconds}


def _main(
    name: str, colour: Colour, folder: Path, empty: Path, thread_id: str, spawned: int
) -> dict[str, Any]:
    entrant = Entrant(resolve(name), colour)
    if spawned:
        return _read(entrant, folder, thread_id, lambda: time.time() - spawned / 1e9)

    # A rehearsal imports whatever the saver imports when it is first used.
    import langchain_core.messages  # noqa: F401

    _read(entrant, empty, thread_id, time.perf_counter)
    began = time.perf_counter()
    return _read(entrant, folder, thread_id, lambda: time.perf_counter() - began)


if __name__ == "__main__":
    name, colour, folder, empty, thread_id, spawned = sys.argv[1:]
    found = _main(name, cast(Colour, colour), Path(folder), Path(empty), thread_id, int(spawned))
    print(json.dumps(found))
