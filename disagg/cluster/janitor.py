"""The last one out: removes what a deployment left on this node, even when its driver was SIGKILLed.

Way:   `disagg serve` starts it first and holds its standard input; when that closes it sweeps, and ends
Owns:  nothing while the deployment lives. It leaves the driver's process tree at once, because `ray job stop` kills
       every process of the job, and an engine's warden needs a moment more than that

Usage: python -m disagg.cluster.janitor DEPLOYMENT [RAY_TEMP_FOLDER]
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from disagg.cluster.actors import run_folder
from disagg.engine.spec import DEPLOYMENT_VARIABLE

PATIENCE_S = 4.0  # wardens end their engines by themselves meanwhile
POLL_S = 0.1


def start(deployment: str, ray_folder: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "disagg.cluster.janitor", deployment, ray_folder]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)


def sweep(deployment: str, ray_folder: str, patience_s: float = PATIENCE_S) -> None:
    """Waits for the deployment's processes on this node to end, kills those that stay, removes their folders."""
    until = time.monotonic() + patience_s
    while left := _processes(deployment, ray_folder):
        if time.monotonic() > until:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)
    shutil.rmtree(run_folder(deployment), ignore_errors=True)
    if ray_folder:
        shutil.rmtree(ray_folder, ignore_errors=True)


def _processes(deployment: str, ray_folder: str) -> list[int]:
    """Other processes with the deployment's mark in their environment, or its private Ray's folder in their command or
    among their open files: some of Ray's own write a title over the first two."""
    mark = f"{DEPLOYMENT_VARIABLE}={deployment}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in (os.getpid(), os.getppid()):
            continue
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes()
            command = Path(f"/proc/{entry}/cmdline").read_bytes()
        except OSError:
            continue
        is_janitor = b"disagg.cluster.janitor" in command
        is_ours = mark in environment.split(b"\0") or (
            ray_folder and (ray_folder.encode() in command or _has_open(entry, ray_folder))
        )
        if is_ours and not is_janitor:
            found.append(int(entry))
    return found


def _has_open(pid: str, folder: str) -> bool:
    """Whether the process has a file of that folder open, its logs for one."""
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            if os.readlink(f"/proc/{pid}/fd/{fd}").startswith(folder + "/"):
                return True
    except OSError:
        pass  # it ended while we looked
    return False


def main() -> None:
    deployment, ray_folder = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.fork():
        os._exit(0)  # the child belongs to init now, not to the driver's tree
    while os.read(0, 4096):
        pass
    sweep(deployment, ray_folder)


if __name__ == "__main__":
    main()
