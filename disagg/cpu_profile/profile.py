"""The CPU engine profile: the pinned packages an engine without a GPU needs, and their installation.

Way:   `disagg setup` -> [profile] -> an environment in which engines start
In:    requirements.txt beside this file, complete, so that nothing is left to a resolver
Fails: StartError with pip's last line; running it again goes on where it stopped
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from disagg.errors import StartError
from disagg.installed import installed_version

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
PIN = re.compile(r"([A-Za-z0-9][\w.-]*)==([^\s;#]+)")
WITH_DEPENDENCIES = "torch"  # where pip gives CUDA torch, its libraries come too, and the stand-ins stay away


def pins() -> dict[str, str]:
    """Package -> version, in the order of the file."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return {found[1]: found[2] for line in lines if (found := PIN.match(line))}


def not_as_pinned(wanted: Mapping[str, str]) -> dict[str, str]:
    """The pins that the running interpreter's environment lacks or has in another version."""
    return {name: version for name, version in wanted.items() if _installed(name) != version}


def install(tell: Callable[[str], None]) -> int:
    """Installs what is missing; how many packages that was."""
    wanted = pins()
    missing = not_as_pinned(wanted)
    if not missing:
        return 0
    if WITH_DEPENDENCIES in missing:
        tell(f"{WITH_DEPENDENCIES} {wanted[WITH_DEPENDENCIES]} with its dependencies")
        _pip(f"{WITH_DEPENDENCIES}=={wanted[WITH_DEPENDENCIES]}")
    rest = [f"{name}=={version}" for name, version in not_as_pinned(wanted).items()]
    if rest:
        tell(f"{len(rest)} packages without dependencies")
        _pip("--no-deps", *rest)
    still = not_as_pinned(wanted)
    if still:
        raise StartError("disagg setup", f"pip ended well, but {', '.join(still)} are not as pinned", "report this bug")
    return len(missing)


def _installed(name: str) -> str:
    """ "" where it is not. 2.13.0+cpu is a 2.13.0."""
    return (installed_version(name) or "").partition("+")[0]


def _pip(*arguments: str) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "on"]
    done = subprocess.run([*pip, *arguments], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        would_do = "check that pip reaches a package index and the disk has 4 GB free, then run it again"
        raise StartError("disagg setup", f"pip install failed: {last}", would_do)


if __name__ == "__main__":  # before anything is installed: only the standard library is at hand
    try:
        install(lambda step: print(f"setup: {step}", flush=True))
    except StartError as failed:
        sys.exit(f"error: {failed}")
