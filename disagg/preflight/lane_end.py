"""One end of a measured NIXL transfer: a program of its own, since UCX reads its environment once and prints its lane.

Way:   LaneEnd (lane_probe.py) -> `python -m disagg.preflight.lane_end host|GPU` -> one agent, one buffer
In:    stdin, lines of JSON: null asks for this end's offer; an offer (of another end) asks for a transfer to it
Out:   stdout, lines that begin with ANSWER, then JSON; UCX's own lines between them tell the lane
Fails: exits with a traceback; at the end of stdin it ends
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import sys
import time
from typing import Any

ANSWER = "lane-end "
BUFFER_BYTES = 64 << 20
ROUNDS = 8
LIMIT_S = 30.0


class End:
    def __init__(self, gpu: int | None) -> None:
        from nixl._api import nixl_agent, nixl_agent_config

        self.agent = nixl_agent(f"lane-{os.getpid()}-{time.monotonic_ns()}", nixl_agent_config(backends=["UCX"]))
        self.kind = "DRAM" if gpu is None else "VRAM"
        self._buffer, address = _memory(gpu)
        self._place = (address, BUFFER_BYTES, gpu or 0)
        self._registered = self.agent.register_memory([(*self._place, "")], self.kind)

    def offer(self) -> dict[str, str]:
        metadata = base64.b64encode(self.agent.get_agent_metadata()).decode()
        return {"metadata": metadata, "place": json.dumps(self._place), "kind": self.kind}

    def write_to(self, offer: dict[str, str]) -> float:
        """GB/s of the fastest of some rounds: the first sets up connections."""
        peer = self.agent.add_remote_agent(base64.b64decode(offer["metadata"]))
        ours = self.agent.get_xfer_descs([self._place], self.kind)
        theirs = self.agent.get_xfer_descs([tuple(json.loads(offer["place"]))], offer["kind"])
        handle = self.agent.initialize_xfer("WRITE", ours, theirs, peer, b"")
        fastest_s = min(self._once(handle) for _ in range(ROUNDS))
        self.agent.release_xfer_handle(handle)
        self.agent.remove_remote_agent(peer)
        return BUFFER_BYTES / fastest_s / 1e9

    def _once(self, handle: Any) -> float:
        began_s = time.monotonic()
        state = self.agent.transfer(handle)
        while state != "DONE":
            if state == "ERR" or time.monotonic() - began_s > LIMIT_S:
                raise RuntimeError(f"the transfer is {state} after {time.monotonic() - began_s:.1f} s")
            state = self.agent.check_xfer_state(handle)
        return time.monotonic() - began_s


def _memory(gpu: int | None) -> tuple[Any, int]:
    if gpu is None:
        buffer = ctypes.create_string_buffer(BUFFER_BYTES)
        return buffer, ctypes.addressof(buffer)
    import torch

    tensor = torch.zeros(BUFFER_BYTES, dtype=torch.uint8, device=f"cuda:{gpu % torch.cuda.device_count()}")
    torch.cuda.synchronize()
    return tensor, tensor.data_ptr()


def main() -> None:
    end = End(None if sys.argv[1] == "host" else int(sys.argv[1]))
    for line in sys.stdin:
        offer = json.loads(line)
        answer = end.offer() if offer is None else end.write_to(offer)
        sys.stdout.write(f"{ANSWER}{json.dumps(answer)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
