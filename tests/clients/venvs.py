"""A venv for each client program, outside of ours: made once, kept in disagg's cache until its list changes.

In:    requirements/NAME.txt: every package of it with its version, so that pip has nothing to resolve
Owns:  $DISAGG_CACHE/clients/NAME-DIGEST. It holds nothing of one checkout: the next run's is another. torch, which some
       clients import and none computes with, is therefore lent at each run, by links in a folder of that run

Usage: PYTHONPATH=. python tests/clients/venvs.py   makes all of them, as CI does beside its setup
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from importlib import util
from pathlib import Path

from disagg.models.catalogue import cache_folder

HERE = Path(__file__).parent
LENT = ("torch", "torchgen", "functorch", "sympy", "mpmath", "networkx", "jinja2", "markupsafe")
INSTALL_S = 1500
LIMIT_S = 900  # of one run: imports of some 10 s, on a machine that may do much else


def program_of(client: str) -> Path:
    """The folder with the client's programs and its Python."""
    wanted = HERE / "requirements" / f"{client}.txt"
    digest = hashlib.sha256(wanted.read_bytes() + sys.version.encode()).hexdigest()[:12]
    venv = cache_folder() / "clients" / f"{client}-{digest}"
    venv.parent.mkdir(parents=True, exist_ok=True)
    with (venv.parent / f"{client}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers of one run, or two runs
        if not (venv / "complete").exists():
            _make(venv, wanted)
    return venv / "bin"


def _make(venv: Path, wanted: Path) -> None:
    shutil.rmtree(venv, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=INSTALL_S)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", str(wanted)]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    assert done.returncode == 0, f"the client could not be installed:\n{done.stderr[-2000:]}"
    (venv / "complete").touch()


async def run_client(folder: Path, client: str, program: str, *words: str, hub: str | None = "HF_HUB_OFFLINE") -> str:
    """The program's output; with a home of its own. `hub`: the variable that says it to be offline."""
    programs = await asyncio.to_thread(program_of, client)
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_HOME": str(folder / "hf"), "HOME": str(folder), "OPENAI_API_KEY": "none"}
    environment |= {"NO_PROXY": "127.0.0.1", "PYTHONPATH": str(lent_to(programs, folder / "lent"))}
    environment |= {hub: "1"} if hub else {}
    return await run([str(programs / program), *words], folder, environment)


async def run(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> str:
    """What a program says, which must end well."""
    process = await asyncio.create_subprocess_exec(
        *words, cwd=folder, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, said.decode()[-4000:]
    return said.decode()


def packages_of(programs: Path) -> Path:
    """Where the venv of `programs` has its packages."""
    return Path(sysconfig.get_path("purelib", vars={"base": str(programs.parent)}))


def lent_to(programs: Path, folder: Path) -> Path:
    """`folder`, with links to what the venv of `programs` lacks and ours has of torch: for the client's PYTHONPATH."""
    folder.mkdir()
    packages = packages_of(programs)
    spec = util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        ours = Path(spec.origin).parent.parent
        for name in [*LENT, *(path.name for path in ours.glob("torch-*.dist-info"))]:
            if (ours / name).exists() and not (packages / name).exists():
                (folder / name).symlink_to(ours / name)
    return folder


if __name__ == "__main__":
    for listed in sorted((HERE / "requirements").glob("*.txt")):
        program_of(listed.stem)
