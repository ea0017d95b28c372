"""The `charm-checkpoint` command: look at threads, delete them, check a store, watch the demo.

Exit codes: 0 done; 1 the database failed, a check failed, or a question was answered with no; 2 bad use: an unknown
option, thread, store or provider. Errors are one line on standard error.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

__all__ = ["main"]

_NAME = "charm-checkpoint"
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: As after the command's name; by default the process's own.
    """
    import logging
    import warnings

    import typer

    from charm_checkpoint.cli.app import app
    from charm_checkpoint.config import mask
    from charm_checkpoint.errors import (
        CheckpointNotFoundError,
        CheckpointStoreError,
        ConfigError,
        InvalidIdError,
        ThreadNotFoundError,
    )

    def tell(message: object) -> None:
        print(f"{_NAME}: {mask(' '.join(str(message).split()))}", file=sys.stderr)

    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a terminal that has no "…" gets an escape, no exception
            stream.reconfigure(errors="backslashreplace")

    # It logs types that are not allowed, which `show` says where it belongs.
    logging.getLogger("langgraph").setLevel(logging.ERROR)
    ours, warner = logging.getLogger("charm_checkpoint"), logging.Handler(logging.WARNING)
    warner.emit = lambda record: tell(f"warning: {record.getMessage()}")  # type: ignore[method-assign]
    ours.addHandler(warner)

    # Which of them typer has of its own and which are click's differs between its releases.
    usage_error = typer.BadParameter.__mro__[1]
    try:
        command = typer.main.get_command(app)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: tell(f"warning: {message}")
            return int(command.main(arguments, _NAME, standalone_mode=False) or 0)
    except typer.Abort:
        return _INTERRUPTED
    except (CheckpointNotFoundError, ConfigError, InvalidIdError, ThreadNotFoundError) as error:
        tell(error)
        return 2
    except CheckpointStoreError as error:
        tell(error)
        return 1
    except Exception as error:
        if not isinstance(error, usage_error):
            raise
        context = getattr(error, "ctx", None)
        path = context.command_path if context else _NAME
        told = error.format_message().rstrip(".")  # type: ignore[attr-defined]
        tell(f"{told}. See {path} --help")
        return 2
    finally:
        ours.removeHandler(warner)
