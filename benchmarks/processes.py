"""What processes cost: CPU seconds and memory, read from /proc."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

_CPUCLOCK_SCHED = 2


def tree(pid: int) -> list[int]:
    """A process and all its descendants that live now."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [pid, *(child.pid for child in process.children(recursive=True))]
    return []


async def end_within(process: asyncio.subprocess.Process, limit_s: float) -> None:
    """Of one that leads a process group and has been asked to end: what is late is killed."""
    try:
        await asyncio.wait_for(process.wait(), limit_s)
    except TimeoutError:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time of these processes, all threads, also those that ended."""
    total_s = 0.0
    for pid in pids:
        with suppress(OSError):  # it is gone, and what it took with it
            total_s += time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)  # as clock_getcpuclockid(3) makes it
    return total_s


def pss_mb(pids: Iterable[int]) -> float:
    """Proportional set size: what is shared counts once."""
    total_kb = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total_kb += int(line.split()[1])
    return total_kb / 1024
