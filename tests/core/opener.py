"""For test_sqlite_files: many processes that open the same new file at the same moment.

Forked before anything of SQLite is open, so that they start together.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path

from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.sqlite import SqliteBackend
from tests.core.support import latest, place, put


def main(path: str, vfs: str, processes: str) -> None:
    # That WAL cannot work with some VFS is known.
    logging.disable(logging.WARNING)
    ready, starter = os.pipe()
    pids = []
    for number in range(int(processes)):
        pid = os.fork()
        if not pid:
            os.close(starter)
            code = 1
            try:
                os.read(ready, 1)
                saver = CheckpointSaver(SqliteBackend(Path(path), vfs=vfs or None))
                put(saver, place(number), n=number)
                assert latest(saver, number) == {"n": number}
                saver.close()
                code = 0
            except BaseException:  # noqa: BLE001 - shown, and the process ends
                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    os.close(starter)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    sys.exit(max(codes))


if __name__ == "__main__":
    main(*sys.argv[1:])
