"""A venv for each client program, outside of ours: made once, kept in disagg's cache until its list changes.

In:    requirements/NAME.txt: every package of it with its version, so that pip has nothing to resolve
Owns:  $DISAGG_CACHE/clients/NAME-DIGEST; torch, which some import and none computes with, is lent from our own venv
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import sysconfig
from importlib import util
from pathlib import Path

from disagg.models.catalogue import cache_folder

HERE = Path(__file__).parent
LENT = ("torch", "torchgen", "functorch", "sympy", "mpmath", "networkx", "jinja2", "markupsafe")
INSTALL_S = 1500


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
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))
    lent = venv / "lent"
    lent.mkdir()
    spec = util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        ours = Path(spec.origin).parent.parent
        names = [*LENT, *(path.name for path in ours.glob("torch-*.dist-info"))]
        for name in names:
            if (ours / name).exists() and not (packages / name).exists():
                (lent / name).symlink_to(ours / name)
    (packages / "zz_lent.pth").write_text(f"{lent}\n")
    (venv / "complete").touch()
