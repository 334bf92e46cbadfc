"""The wheel, built once a run, and a venv that holds it with the dependencies it declares and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, timeout=300)
    (built,) = folder.glob("disagg-*.whl")
    return built


@pytest.fixture(scope="session")
def declared(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv as `pip install WHEEL` makes it, in the versions that this environment has; nothing is downloaded: what
    belongs to the declared distributions, and to those that they ask for, is linked into it."""
    folder = tmp_path_factory.mktemp("declared")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in sorted(_closure(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])):
        _link(metadata.distribution(name), site)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True, timeout=300)
    return folder


def _closure(requirements: list[str]) -> set[str]:
    """The distributions that pip would install, by their normal names."""
    found: set[str] = set()
    waiting = [(Requirement(line), "") for line in requirements]
    asked: set[tuple[str, str]] = set()
    while waiting:
        wanted, extra = waiting.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        found.add(name)
        for each in {"", *wanted.extras}:
            if (name, each) not in asked:
                asked.add((name, each))
                waiting += [(Requirement(line), each) for line in metadata.requires(name) or []]
    return found


def _link(distribution: metadata.Distribution, site: Path) -> None:
    """Each file, but for programs and compiled modules' caches. Namespace packages (google) have several owners."""
    for file in distribution.files or []:
        if (
            ".." in file.parts
            or file.suffix == ".pyc"
            or not (real := Path(str(distribution.locate_file(file)))).exists()
        ):
            continue
        here = site / file
        here.parent.mkdir(parents=True, exist_ok=True)
        if not here.exists():
            os.link(real, here) if real.stat().st_dev == site.stat().st_dev else here.symlink_to(real)
