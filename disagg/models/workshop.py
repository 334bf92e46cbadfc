"""Runs a program of this package that needs transformers, in a process of its own.

Way:   get, make-tiny, make-adapter -> [workshop] -> convert.py, tiny_weights.py, adapter_weights.py
Fails: StartError with the program's last lines; its process ends with ours
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

from disagg.cpu_profile.paths import standin_environment
from disagg.errors import StartError

NEEDED = ("torch", "transformers", "gguf", "safetensors")
LAST_LINES = 6


def run_program(where: str, program: str, *arguments: str) -> None:
    """`program` is a file name beside this one."""
    need_engine_packages(where)
    command = [sys.executable, "-P", str(Path(__file__).with_name(program)), *arguments]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-LAST_LINES:])
        raise StartError(where, f"{program} ended with {done.returncode}:\n{last}", _would_do(done.returncode, last))


def need_engine_packages(where: str) -> None:
    """StartError, before any work that would end in an ImportError. Imports none of them."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise StartError(where, f"not installed: {', '.join(missing)}", "run `disagg setup` first")


def _would_do(status: int, last: str) -> str:
    if "No space left on device" in last:
        return "free some disk space, or set DISAGG_CACHE to a folder on another disk"
    if status == -signal.SIGKILL:
        return "perhaps memory ran out: free 2 GB and run it again"
    return "`disagg setup` mends missing packages"


def _environment() -> dict[str, str]:
    return standin_environment(os.environ) | {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
