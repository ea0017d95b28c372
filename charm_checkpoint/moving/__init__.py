"""Moving threads: copied from store to store, written to one file and read from it, forked.

Everything goes through the verbs of the seam, so it works between any two stores, and rows go byte for byte. Whatever
else threads come from (a file, another saver) is made a `Source`.
"""

from __future__ import annotations

from charm_checkpoint.moving.copying import CopiedThread, CopyReport, copy_threads
from charm_checkpoint.moving.forking import fork_thread
from charm_checkpoint.moving.savers import from_saver
from charm_checkpoint.moving.source import BackendSource, Source, Thread, source_of
from charm_checkpoint.moving.threadfile import ExportReport, export_threads, import_threads

__all__ = [
    "BackendSource",
    "CopiedThread",
    "CopyReport",
    "ExportReport",
    "Source",
    "Thread",
    "copy_threads",
    "export_threads",
    "fork_thread",
    "from_saver",
    "import_threads",
    "source_of",
]
