"""An end of a measured NIXL transfer that can do more: tell memory, forget a dead peer, show what came, gather.

Way:   LaneEnd(program="benchmarks.gpu.end") -> this program
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from transfer.ipc_cache import Identity, forget, identity
from transfer.lane_program import End, serve
from transfer.scatter import contiguous, scattered

KILL_AFTER_S = 0.05
WRITES_S = 1.0


class GpuEnd(End):
    def who(self) -> Identity:
        return identity()

    def used_mb(self) -> float:
        """Of the whole GPU, by every process."""
        import torch

        free, total = torch.cuda.mem_get_info(self.device)
        return float(total - free) / 1e6

    def fill(self, *, value: int) -> None:
        import torch

        for tensor in self._tensors():
            tensor.fill_(value)
        torch.cuda.synchronize(self.device)

    def first_bytes(self) -> list[int]:
        return [int(tensor[0]) for tensor in self._tensors()]

    def write_past_a_kill(self, *, offer: dict[str, Any], size_bytes: int, pid: int) -> dict[str, Any]:
        """One write after the other, while `pid` is killed under them, until NIXL says so."""
        peer, pieces = self._peer(offer), contiguous(size_bytes // len(self.addresses))
        threading.Timer(KILL_AFTER_S, os.kill, (pid, signal.SIGKILL)).start()
        began_s, writes = time.monotonic(), 0
        while time.monotonic() - began_s < WRITES_S:
            try:
                self._once(peer, offer["memory"], pieces)
            except Exception as error:  # noqa: BLE001 - NIXL's own error types
                return {"writes": writes, "ended": f"{type(error).__name__}: {error}"}
            writes += 1
        return {"writes": writes, "ended": ""}

    def unmap(self, *, peer: Sequence[int], addresses: list[int]) -> bool:
        return forget(Identity(*peer), addresses)

    def gather_ms(self, *, size_bytes: int, page_bytes: int, rounds: int) -> float:
        """Scattered pages of every buffer into adjacent ones, by one indexed copy a buffer: what staging would cost."""
        import torch

        pages = size_bytes // len(self.addresses) // page_bytes
        index = torch.tensor(scattered(pages * page_bytes, page_bytes).ours, device=f"cuda:{self.device}") // page_bytes
        staged = torch.empty((pages, page_bytes), dtype=torch.uint8, device=index.device)
        sources = [tensor[: 2 * pages * page_bytes].view(2 * pages, page_bytes) for tensor in self._tensors()]
        times_ms = []
        for _ in range(rounds + 2):
            torch.cuda.synchronize(self.device)
            began_s = time.perf_counter()
            for source in sources:
                torch.index_select(source, 0, index, out=staged)
            torch.cuda.synchronize(self.device)
            times_ms.append((time.perf_counter() - began_s) * 1e3)
        return median(times_ms[2:])

    def _tensors(self) -> list[Any]:
        return [tensor for _, tensor in self._memory]


if __name__ == "__main__":
    serve(GpuEnd(**json.loads(sys.argv[1])))
