"""Which releases are installed."""

from __future__ import annotations

from importlib import metadata

__all__ = ["version_of"]


def version_of(distribution: str) -> str | None:
    """The installed version, `None` if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
