"""Changes as lines of text: Python literals, which are read back without running anything."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from charm_checkpoint.backend import (
    BlobRow,
    CheckpointRow,
    PutCheckpoint,
    PutWrites,
    Unit,
    WriteRow,
)

Change = tuple[str, tuple[Any, ...], dict[str, Any]]
"""A verb of the backend with its arguments."""


def to_line(change: Change) -> bytes:
    return repr(_plain(change)).encode() + b"\n"


def from_line(line: bytes) -> Change:
    verb, arguments, named = ast.literal_eval(line.decode())
    if verb == "write":
        arguments = ([_unit(unit) for unit in arguments[0]],)
    return verb, arguments, named


def _plain(value: Any) -> Any:
    """Rows as mere tuples."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_plain, value))
    return dict(value) if isinstance(value, Mapping) else value


def _unit(plain: Any) -> Unit:
    if len(plain) == len(PutWrites._fields):
        return PutWrites(*plain[:3], tuple(WriteRow(*row) for row in plain[3]))
    thread_id, namespace, row, blobs, *rule = plain
    made = tuple(BlobRow(*blob) for blob in blobs)
    return PutCheckpoint(thread_id, namespace, CheckpointRow(*row), made, *rule)
