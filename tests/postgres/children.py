"""Forked processes."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable


def in_children(*runs: Callable[[], None]) -> None:
    """Run each in a forked process, all at once; fail with their tracebacks."""
    gate_out, gate_in = os.pipe()
    children = []
    for run in runs:
        reader, writer = os.pipe()
        child = fork()
        if child == 0:
            os.close(gate_in)
            report = b""
            try:
                os.read(gate_out, 1)
                run()
            except BaseException:  # noqa: BLE001 the parent raises it
                report = traceback.format_exc().encode()
            os.write(writer, report)
            os._exit(0)
        os.close(writer)
        children.append((child, reader))
    os.close(gate_in)  # which opens it
    os.close(gate_out)
    reports = []
    for child, reader in children:
        with os.fdopen(reader, "rb") as pipe:
            reports.append(pipe.read().decode())
        os.waitpid(child, 0)
    assert [r for r in reports if r] == []


def fork() -> int:
    """`os.fork`, also where there are threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()
