"""Which version of a package this Python would import. Of the standard library alone: `disagg setup` asks it, too."""

from __future__ import annotations

from importlib import metadata


def installed_version(package: str) -> str | None:
    """None: it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
