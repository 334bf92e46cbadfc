"""Installs the peers that ours is measured beside, each in a virtual environment of its own below the cache folder.

In:    requirements/NAME.txt: the peer and what its launcher imports, all pinned, nothing resolved (its own list would
       bring transformers, a Kubernetes client and the like, of which a frontend imports nothing)
Out:   the environment's Python; a second call finds it and installs nothing
Fails: NotInstalled with what pip said last
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from disagg.models.catalogue import cache_folder

REQUIREMENTS = Path(__file__).parent / "requirements"
INSTALL_S = 600.0


class NotInstalled(Exception):
    """Its text is for the table."""


def requirements(name: str) -> list[str]:
    return [line for line in (REQUIREMENTS / f"{name}.txt").read_text().splitlines() if line and line[0] != "#"]


def version(name: str) -> str:
    """Of the peer itself: the first requirement."""
    return requirements(name)[0].partition("==")[2]


def install(name: str) -> Path:
    folder = cache_folder() / "peers" / name
    python, stamp = folder / "bin" / "python", folder / "installed"
    wanted = hashlib.sha256("\n".join([sys.version, *requirements(name)]).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=False)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--retries=1"]
    try:
        done = subprocess.run(
            [*command, "--requirement", str(REQUIREMENTS / f"{name}.txt")],
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
        )
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"pip did not end within {INSTALL_S:g} s") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise NotInstalled(said[-1] if said else f"pip ended with status {done.returncode}")
    stamp.write_text(wanted)
    return python
