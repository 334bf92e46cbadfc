"""Which stand-in packages a process of ours needs in front of its PYTHONPATH on this machine.

Way:   NodeAgent, `disagg model get`, tests -> [paths] -> PYTHONPATH of processes that import torch and SGLang
In:    what is installed; torch itself is not imported (that takes seconds)
Out:   folders to prepend, in order; none where the real packages work
Fails: never; a package that is not installed gets no stand-in (but `sgl_kernel`, whose stand-in replaces it)
"""

from __future__ import annotations

import functools
import importlib.machinery
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from disagg.installed import installed_version

STANDINS = Path(__file__).resolve().parent / "standins"
TORCHVISION_ROOT = STANDINS / "torchvision_loader"
KERNELS_ROOT = STANDINS / "kernels"
CPU_KERNEL_PACKAGES = ("sglang-kernel-cpu", "sgl-kernel-cpu")
IMPORT_LIMIT_S = 120.0


def standin_paths(device: str = "cpu") -> list[str]:
    """Roots to prepend for processes whose engine computes on `device` ("cpu" or "cuda")."""
    roots = []
    if device == "cpu" and not _has_cpu_kernels():
        roots.append(KERNELS_ROOT)
    if not torchvision_loads():
        roots.append(TORCHVISION_ROOT)
    return [str(root) for root in roots]


def standin_environment(environment: Mapping[str, str], device: str = "cpu") -> dict[str, str]:
    """A copy of `environment` with the stand-ins in front of its PYTHONPATH (each once)."""
    before = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    needed = standin_paths(device)
    path = needed + [entry for entry in before if entry not in needed]
    return {**environment, "PYTHONPATH": os.pathsep.join(path)} if path else dict(environment)


@functools.cache
def torchvision_loads() -> bool:
    """Whether the installed torchvision's C extension loads beside the installed torch (true if none is installed)."""
    torchvision, torch = _package_folder("torchvision"), _package_folder("torch")
    if torchvision is None or torch is None:
        return True
    try:
        needs_cuda = b"libtorch_cuda.so" in (torchvision / "_C.so").read_bytes()
    except OSError:
        return _imports("torchvision")
    if not needs_cuda:
        return True
    if not (torch / "lib" / "libtorch_cuda.so").exists():
        return False
    built_for, has = _cuda_major(torchvision), _cuda_major(torch)
    return (built_for is not None and built_for == has) or _imports("torchvision")


def _has_cpu_kernels() -> bool:
    """A CPU build of SGLang's kernels is installed. (A CUDA build does not have the CPU path's kernels.)"""
    return any(_installed(package) for package in CPU_KERNEL_PACKAGES)


def _installed(package: str) -> bool:
    return installed_version(package) is not None


def _package_folder(name: str) -> Path | None:
    """Where the real package lies: our stand-ins may be on this process's path already."""
    roots = [root for root in sys.path if Path(root).resolve() != TORCHVISION_ROOT]
    spec = importlib.machinery.PathFinder.find_spec(name, roots)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _cuda_major(package: Path) -> int | None:
    """The CUDA major version that torch or torchvision was built for, read from its version.py."""
    try:
        text = (package / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    if found := re.search(r"^cuda\b[^=]*=\s*['\"](\d+)\.", text, re.MULTILINE):
        return int(found[1])
    if found := re.search(r"\+cu(\d+)\d['\"]", text):  # "+cu130" is 13.0
        return int(found[1])
    return None


def _imports(module: str) -> bool:
    """The slow way (seconds): try it, in a process of its own and without any stand-in."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", f"import {module}"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=IMPORT_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
