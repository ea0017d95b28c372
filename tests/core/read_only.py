"""A process for test_bad_files that may not write where its file is."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

import pytest

from charm_checkpoint.errors import BackendReadOnly
from tests.core.support import latest, opened, place, put

NOBODY = 65534


def refused(path: Path) -> None:
    """A put says why, and leaves nothing behind."""
    before = sorted(path.parent.iterdir())
    with opened(path) as saver:
        for _ in range(2):
            with pytest.raises(BackendReadOnly, match=f"{path.name}.*permissions"):
                put(saver, place("t"), n=2)
    assert sorted(path.parent.iterdir()) == before


def main(scenario: str) -> None:
    # Not where the tests keep their files: only their owner may look there.
    folder = Path(tempfile.mkdtemp())
    path = folder / "threads.db"
    with opened(path) as saver:
        # Also what is imported on first use is imported now.
        put(saver, place("t"), n=1)
        latest(saver, "t")
    try:
        if os.getuid() == 0:
            for each in (folder, path):
                os.chown(each, NOBODY, NOBODY)
        pid = os.fork()
        if not pid:
            code = 1
            try:
                if os.getuid() == 0:
                    os.setgid(NOBODY)
                    os.setuid(NOBODY)
                run(scenario, folder, path)
                code = 0
            finally:
                if code:
                    traceback.print_exc()
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        folder.chmod(0o700)
        shutil.rmtree(folder)


def run(scenario: str, folder: Path, path: Path) -> None:
    """The scenario itself, as an ordinary user."""
    before = path.read_bytes()
    if scenario == "new_file":
        folder.chmod(0o500)
        refused(folder / "new.db")
    elif scenario == "old_file":
        path.chmod(0o400)
        folder.chmod(0o500)
        refused(path)
    else:
        path.chmod(0o400)
        refused(path)
    folder.chmod(0o700)
    path.chmod(0o600)
    assert path.read_bytes() == before
    with opened(path) as saver:
        assert latest(saver, "t") == {"n": 1}
        put(saver, place("t"), n=3)
        assert latest(saver, "t") == {"n": 3}


if __name__ == "__main__":
    main(sys.argv[1])
