"""Measures how KV gets from one process to another: a real NIXL transfer between two small processes.

Way:   probe -> [LaneEnd, an actor on each of two nodes] -> lane_end.py -> transport as UCX names it, GB/s
Owns:  its end's process, which ends when its pipe does: with the actor
Fails: StartError when an end does not come up, or the transfer fails
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from typing import Any

from disagg.engine.lane import LaneReader
from disagg.errors import StartError
from disagg.preflight.lane_end import ANSWER

ANSWER_LIMIT_S = 60.0
LINES_TOLD = 5


class LaneEnd:
    """One end, where it runs. As a Ray actor, or as it is."""

    def __init__(self, gpu: int | None = None) -> None:
        environment = os.environ | {"UCX_PROTO_INFO": "y", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "disagg.preflight.lane_end", "host" if gpu is None else str(gpu)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
        )
        self._reader = LaneReader()
        self._answers: queue.Queue[Any] = queue.Queue()
        self._last: list[str] = []
        self.transport = ""
        threading.Thread(target=self._read, name="lane end", daemon=True).start()

    def offer(self) -> dict[str, str]:
        answer: dict[str, str] = self._ask(None)
        return answer

    def write_to(self, offer: dict[str, str]) -> tuple[str, float]:
        """(transport in UCX's words, GB/s)."""
        gbyte_s = float(self._ask(offer))
        return self.transport, gbyte_s

    def _ask(self, question: Any) -> Any:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: its last words are the answer
            self._process.stdin.write(f"{json.dumps(question)}\n")
            self._process.stdin.flush()
        try:
            answer = self._answers.get(timeout=ANSWER_LIMIT_S)
        except queue.Empty:
            answer = None
        if answer is None:
            said = "; ".join(self._last) or "nothing"
            raise StartError("lane probe", f"a NIXL process gave no answer and said {said}", "see `ucx_info -d` there")
        return answer

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                self._answers.put(json.loads(line.removeprefix(ANSWER)))
            else:
                self.transport = self._reader.read(line) or self.transport
                self._last = [*self._last, line.strip()][-LINES_TOLD:]
        self._answers.put(None)
