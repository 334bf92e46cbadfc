"""Holds one end of a measured NIXL transfer where it runs: on this machine, or as a Ray actor on another.

Way:   preflight's probe, `disagg bench transfer` -> [LaneEnd, one at each end] -> lane_program.py -> NIXL
Owns:  its end's process, which ends when its pipe does: with the actor
Fails: StartError when an end does not come up, or a transfer fails
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from disagg.errors import StartError
from transfer.lane import LaneReader
from transfer.lane_program import ANSWER

ANSWER_LIMIT_S = 120.0
LINES_TOLD = 5
PROBE_BYTES = 64 << 20


class LaneEnd:
    """The process of one end. Its methods are those of lane_program.End, with their answers; `close` ends the
    process."""

    def __init__(
        self,
        gpu: int | None = None,
        *,
        buffers: int = 1,
        buffer_bytes: int = PROBE_BYTES,
        num_threads: int = 0,
        env: Mapping[str, str] | None = None,
        program: str = "transfer.lane_program",
    ) -> None:
        path = os.pathsep.join(filter(None, sys.path))
        about = {"gpu": gpu, "buffers": buffers, "buffer_bytes": buffer_bytes, "num_threads": num_threads}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", program, json.dumps(about)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "UCX_PROTO_INFO": "y", "PYTHONPATH": path, **(env or {})},
            text=True,
        )
        self._reader = LaneReader(gpu=gpu is not None)
        self._answers: queue.Queue[Any] = queue.Queue()
        self._last: list[str] = []
        self._transport = ""
        self._reading = threading.Thread(target=self._read, name="lane end", daemon=True)
        self._reading.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def offer(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.ask("offer")
        return answer

    def write_to(self, offer: dict[str, Any]) -> tuple[str, float]:
        """(transport in UCX's words, GB/s of the fastest of several writes of the whole buffer)."""
        written = self.ask("write", offer=offer, size_bytes=PROBE_BYTES)
        return self._transport, written["bytes"] / min(written["ms"]) / 1e6

    def transport(self) -> str:
        """Of the largest messages so far, in UCX's words; several are joined with +."""
        return self._transport

    def ask(self, what: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: its last words are the answer
            self._process.stdin.write(f"{json.dumps({'do': what, **arguments})}\n")
            self._process.stdin.flush()
        try:
            answer, is_said = self._answers.get(timeout=ANSWER_LIMIT_S)
        except queue.Empty:
            answer, is_said = None, False
        if not is_said:
            said = "; ".join(self._last) or "nothing"
            raise StartError("lane probe", f"a NIXL process gave no answer and said {said}", "see `ucx_info -d` there")
        return answer

    def close(self) -> None:
        self._process.kill()
        self._reading.join()
        with self._process:  # closes its pipes
            pass

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                self._answers.put((json.loads(line.removeprefix(ANSWER)), True))
            else:
                self._transport = self._reader.read(line) or self._transport
                self._last = [*self._last, line.strip()][-LINES_TOLD:]
        self._answers.put((None, False))


@contextlib.contextmanager
def ends_here(gpus: Sequence[int | None], about: Mapping[str, Any]) -> Iterator[tuple[LaneEnd, LaneEnd]]:
    """The writer and the reader, two processes on this machine."""
    with contextlib.ExitStack() as closing:
        ends = [LaneEnd(gpu, **about) for gpu in gpus]
        for end in ends:
            closing.callback(end.close)
        yield ends[0], ends[1]
