"""A deployment's folders and log files. Folders are open to our user alone (0700), and never ones that another user
made."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from disagg.errors import StartError


def own_folder(path: Path) -> Path:
    """Makes it, and what is missing above it; raises StartError where it is another user's, or open to others."""
    for parent in reversed(path.parents):
        parent.mkdir(mode=0o700, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode) or found.st_uid != os.getuid():
        raise StartError(str(path), "it is another user's, or a link", "remove it, or set TMPDIR to a folder of yours")
    if found.st_mode & 0o022:
        path.chmod(0o700)
    return path


def run_folder(deployment: str) -> Path:
    """Sockets and scratch of a deployment on this node; short, because a Unix socket's path may have 107 bytes."""
    return Path(tempfile.gettempdir()) / f"disagg-{deployment}"


def log_folder(deployment: str) -> Path:
    cache = os.environ.get("DISAGG_CACHE", "~/.cache/disagg")
    return Path(cache).expanduser() / "logs" / deployment
