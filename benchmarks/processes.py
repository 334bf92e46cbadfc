"""Programs of ours that a benchmark runs beside itself, and what processes cost: CPU seconds and memory.

Owns:  a program that is `running`: it ends when its context does, or when this process dies, by the end of its input
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from disagg import process_tree

STOP_S = 15.0
_CPUCLOCK_SCHED = 2


@asynccontextmanager
async def running(
    module: str, *words: str, limit_s: float, environment: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[int, int]]:
    """Pid and port of a module that is run, once it calls `serve`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *words),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = b""
        async with asyncio.timeout(limit_s):
            while not line.startswith(b"port "):
                line = await process.stdout.readline()
                assert line, f"{module} has ended"
        yield process.pid, int(line.removeprefix(b"port "))
    finally:
        process.stdin.close()
        await end_within(process, STOP_S)


async def serve(port: int) -> None:
    """The other side of `running`: says the port, and returns when the input ends."""
    print(f"port {port}", flush=True)
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, lambda: None if os.read(0, 4096) else over.set())
    await over.wait()


def tree(pid: int) -> list[int]:
    """A process and all its descendants that live now; of 0, which stands for none, nothing."""
    return [pid, *process_tree.tree(pid)] if pid else []


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
