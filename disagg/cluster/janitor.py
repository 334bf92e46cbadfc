"""The last one out: removes what a deployment left on this node, even when its driver was SIGKILLed.

Way:   `disagg serve` starts it first and holds its standard input; when that closes it sweeps, and ends
In:    a line on its standard input that says NOW: what need not be waited for is killed at once
Owns:  nothing while the deployment lives. It leaves the driver's process tree at once, because `ray job stop` kills
       every process of the job, and an engine's reaper needs a moment more than that
Safe:  a process is the deployment's if it carries its mark in its environment (random, of this run), or descends from
       one that does. Nothing else is killed: not who reads a log of Ray's, not who stands in its folder. A process is
       its id and its start time, and the signal goes to its descriptor: an id that was given out anew is left alone
       (psutil compares, then signals the id, which may be another's by then; and it knows no sessions)

Usage: python -m disagg.cluster.janitor DEPLOYMENT SESSION FOLDER...
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

DEPLOYMENT_VARIABLE = "DISAGG_DEPLOYMENT"  # as in disagg/host_spec.py, whose imports would cost a third of a second
PATIENCE_S = 4.0  # reapers end their engines by themselves meanwhile
GIVE_UP_S = 20.0  # of a process that cannot be killed: it hangs in the kernel
POLL_S = 0.05
NOW = b"now\n"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Janitor:
    """The driver's end: its process sweeps when this is closed, or when the driver is gone."""

    def __init__(self, deployment: str, folders: list[str]) -> None:
        session = os.getsid(0)
        command = [sys.executable, "-P", "-m", "disagg.cluster.janitor", deployment, str(session), *folders]
        environment = {name: value for name, value in os.environ.items() if name != DEPLOYMENT_VARIABLE}
        # Inherited: until it ignores them itself, no signal to the whole tree can end it.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, start_new_session=True
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def hurry(self) -> None:
        """Called where the driver is about to end without having stopped anything."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            os.write(self._process.stdin.fileno(), NOW)

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    started: int  # in ticks since the machine's start
    parent: int
    session: int

    @property
    def identity(self) -> tuple[int, int]:
        return self.pid, self.started


def sweep(
    deployment: str, folders: list[str], *, session: int, patience_s: float = PATIENCE_S, now: bool = False
) -> None:
    """Waits for the deployment's processes on this node to end, kills those that stay, removes `folders`.

    `session`: the driver's. Its processes are Ray's, which have nothing to give back, and so have frontends of which
    nobody wants to wait for the last answers (`now`); reapers have an engine's shared memory.
    """
    search = Search(deployment)
    began_s = time.monotonic()
    while left := search.look():
        waited_s = time.monotonic() - began_s
        if waited_s > patience_s + GIVE_UP_S:
            break
        for process in left:
            if waited_s > patience_s or process.session == session or (now and is_frontend(process)):
                kill(process)
        time.sleep(POLL_S)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


class Search:
    """Who belongs to a deployment. One that was seen to stays so when its parent has died."""

    def __init__(self, deployment: str) -> None:
        self._mark = f"{DEPLOYMENT_VARIABLE}={deployment}".encode()
        self._known: set[tuple[int, int]] = set()

    def look(self) -> list[Process]:
        there = {process.pid: process for process in processes()}
        ours: dict[int, bool] = {}

        def is_ours(process: Process) -> bool:
            if process.pid not in ours:
                ours[process.pid] = False  # a ring of parents cannot be, but while we read, ids change hands
                parent = there.get(process.parent)
                ours[process.pid] = (
                    process.identity in self._known
                    or self._mark in environment_of(process.pid)
                    or (parent is not None and is_ours(parent))
                )
            return ours[process.pid]

        found = [process for process in there.values() if process.pid != os.getpid() and is_ours(process)]
        self._known = {process.identity for process in found}
        return found


def processes() -> list[Process]:
    """Those that live, as far as we may know."""
    found = [process_of(int(entry)) for entry in os.listdir("/proc") if entry.isdigit()]
    return [process for process in found if process is not None]


def process_of(pid: int) -> Process | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] in "ZX":
        return None
    return Process(pid, started=int(fields[19]), parent=int(fields[1]), session=int(fields[3]))


def environment_of(pid: int) -> list[bytes]:
    """As it was at the process's start. Ray's processes write their titles over it, unless SPT_NOENV is in it."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []  # another user's, or gone


def is_frontend(process: Process) -> bool:
    try:
        return b"disagg.frontend.main" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    except OSError:
        return False


def kill(process: Process) -> None:
    """SIGKILL to this very process."""
    with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(process.pid)
        try:
            current = process_of(process.pid)
            if current is not None and current.identity == process.identity:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)


def main() -> None:
    deployment, session, folders = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    if os.fork():
        os._exit(0)  # the child belongs to init now, not to the driver's tree
    now = False
    while said := os.read(0, 4096):
        now = now or NOW in said
    sweep(deployment, folders, session=session, now=now)


if __name__ == "__main__":
    main()
