"""One end of a measured NIXL transfer: a program of its own, since UCX reads its environment once and prints its lane.

Way:   LaneEnd (lane_end.py) -> `python -m transfer.lane_program '{"gpu": null, …}'` -> one agent, some buffers
In:    stdin, lines of JSON: {"do": "offer" | "write" | "forget" | "copy", …}: a method of End and its arguments
Out:   stdout, lines that begin with ANSWER, then JSON; UCX's own lines between them tell the lane
Fails: exits with a traceback; at the end of stdin it ends
"""

from __future__ import annotations

import base64
import ctypes
import functools
import json
import mmap
import os
import sys
import time
from typing import Any

from transfer.scatter import Pieces, contiguous, scattered

ANSWER = "lane-end "
WRITE_LIMIT_S = 60.0
ROW_LIMIT_S = 5.0  # of all rounds of one measurement, but for the first LEAST_ROUNDS
LEAST_ROUNDS = 3


class End:
    """`buffers` of `buffer_bytes` each, of the host or of a GPU, registered with an agent of its own."""

    def __init__(self, *, gpu: int | None, buffers: int, buffer_bytes: int, num_threads: int = 0) -> None:
        from nixl._api import nixl_agent, nixl_agent_config

        config = nixl_agent_config(backends=["UCX"], num_threads=num_threads)
        self.agent = nixl_agent(f"lane-{os.getpid()}-{time.monotonic_ns()}", config)
        self.kind, self.device = ("DRAM", 0) if gpu is None else ("VRAM", _device(gpu))
        take = _host if gpu is None else functools.partial(_on_gpu, self.device)
        self._memory = [take(buffer_bytes) for _ in range(buffers)]
        self.addresses = [address for address, _ in self._memory]
        self.buffer_bytes = buffer_bytes
        places = [(address, buffer_bytes, self.device, "") for address in self.addresses]
        self._registered = self.agent.register_memory(places, self.kind)
        self._peers: dict[str, str] = {}  # metadata -> the agent's name

    def offer(self) -> dict[str, Any]:
        metadata = base64.b64encode(self.agent.get_agent_metadata()).decode()
        memory = {"kind": self.kind, "device": self.device, "addresses": self.addresses}
        return {"metadata": metadata, "memory": memory, "pid": os.getpid()}

    def write(
        self, *, offer: dict[str, Any], size_bytes: int, page_bytes: int | None = None, rounds: int = 8, warm: int = 1
    ) -> dict[str, Any]:
        """`size_bytes` in all, an equal share a buffer; scattered in pages of `page_bytes`, if said."""
        share_bytes = size_bytes // len(self.addresses)
        pieces = scattered(share_bytes, page_bytes) if page_bytes else contiguous(share_bytes)
        peer = self._peer(offer)
        prepare_ms, write_ms = [], []
        began_s = time.monotonic()
        for number in range(warm + rounds):
            if number >= warm + LEAST_ROUNDS and time.monotonic() - began_s > ROW_LIMIT_S:
                break
            prepare_s, write_s = self._once(peer, offer["memory"], pieces)
            if number >= warm:
                prepare_ms.append(prepare_s * 1e3)
                write_ms.append(write_s * 1e3)
        descriptors = len(pieces.ours) * len(self.addresses)
        sent_bytes = descriptors * pieces.piece_bytes
        return {"bytes": sent_bytes, "descriptors": descriptors, "prepare_ms": prepare_ms, "ms": write_ms}

    def forget(self, *, offer: dict[str, Any]) -> None:
        self.agent.remove_remote_agent(self._peers.pop(offer["metadata"]))

    def copy(self, *, size_bytes: int, rounds: int = 8) -> dict[str, Any]:
        """How long this machine itself takes to copy as many bytes: memcpy on one core, or device to device."""
        assert 2 * size_bytes <= self.buffer_bytes
        copy = self._copy_on_host if self.kind == "DRAM" else self._copy_on_gpu
        copy(size_bytes)
        return {"bytes": size_bytes, "ms": [copy(size_bytes) * 1e3 for _ in range(rounds)]}

    def _peer(self, offer: dict[str, Any]) -> str:
        metadata = offer["metadata"]
        if metadata not in self._peers:
            name = self.agent.add_remote_agent(base64.b64decode(metadata))
            self._peers[metadata] = name.decode() if isinstance(name, bytes) else name
        return self._peers[metadata]

    def _once(self, peer: str, memory: dict[str, Any], pieces: Pieces) -> tuple[float, float]:
        began_s = time.perf_counter()
        ours = self.agent.get_xfer_descs(_places(self.addresses, pieces.ours, pieces, self.device), self.kind)
        theirs = _places(memory["addresses"], pieces.theirs, pieces, memory["device"])
        handle = self.agent.initialize_xfer("WRITE", ours, self.agent.get_xfer_descs(theirs, memory["kind"]), peer, b"")
        posted_s = time.perf_counter()
        state = self.agent.transfer(handle)
        while state != "DONE":
            if state == "ERR" or time.perf_counter() - posted_s > WRITE_LIMIT_S:
                raise RuntimeError(f"the transfer is {state} after {time.perf_counter() - posted_s:.1f} s")
            state = self.agent.check_xfer_state(handle)
        ended_s = time.perf_counter()
        self.agent.release_xfer_handle(handle)
        return posted_s - began_s, ended_s - posted_s

    def _copy_on_host(self, size_bytes: int) -> float:
        began_s = time.perf_counter()
        ctypes.memmove(self.addresses[0] + size_bytes, self.addresses[0], size_bytes)
        return time.perf_counter() - began_s

    def _copy_on_gpu(self, size_bytes: int) -> float:
        import torch

        tensor = self._memory[0][1]
        torch.cuda.synchronize(self.device)
        began_s = time.perf_counter()
        tensor[size_bytes : 2 * size_bytes].copy_(tensor[:size_bytes])
        torch.cuda.synchronize(self.device)
        return time.perf_counter() - began_s


def _places(addresses: list[int], offsets: list[int], pieces: Pieces, device: int) -> Any:
    import numpy as np  # NIXL's own dependency: where there is none, this module is imported still (LaneEnd)

    at = np.add.outer(np.array(addresses, np.uint64), np.array(offsets, np.uint64)).ravel()
    return np.column_stack((at, np.full_like(at, pieces.piece_bytes), np.full_like(at, device)))


def _host(size_bytes: int) -> tuple[int, Any]:
    memory = mmap.mmap(-1, size_bytes)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    ctypes.memset(address, 1, size_bytes)  # the pages are there before time is taken
    return address, memory


def _device(gpu: int) -> int:
    """An actor may see fewer GPUs than its node has."""
    import torch

    return gpu % int(torch.cuda.device_count())


def _on_gpu(device: int, size_bytes: int) -> tuple[int, Any]:
    import torch

    tensor = torch.zeros(size_bytes, dtype=torch.uint8, device=f"cuda:{device}")
    torch.cuda.synchronize(device)
    return tensor.data_ptr(), tensor


def serve(end: Any) -> None:
    """Answers until stdin ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        answer = getattr(end, asked.pop("do"))(**asked)
        sys.stdout.write(f"{ANSWER}{json.dumps(answer)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve(End(**json.loads(sys.argv[1])))
