"""What else ran on this machine meanwhile: throughput taken beside somebody's build is no throughput."""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks.processes import cpu_s, tree

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_BUSY = (1, 2, 3, 6, 7, 8)  # of /proc/stat's first line: user, nice, system, irq, softirq, steal


class Others:
    """From its making on; our own share is this process's and its descendants' that live throughout."""

    def __init__(self) -> None:
        self._began_s, self._busy_s, self._own_s = time.perf_counter(), _busy_s(), cpu_s(tree(os.getpid()))

    def share(self) -> float:
        """Of all cores' time, what neither we nor idleness had."""
        all_s = (time.perf_counter() - self._began_s) * (os.cpu_count() or 1)
        others_s = (_busy_s() - self._busy_s) - (cpu_s(tree(os.getpid())) - self._own_s)
        return max(0.0, others_s / all_s)


def _busy_s() -> float:
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return sum(int(fields[at]) for at in _BUSY) * _TICK_S
