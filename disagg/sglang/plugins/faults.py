"""Faults for tests of ours, in a scheduler; nothing of this is there unless an environment variable asks for it.

DISAGG_TEST_HANG=PATH           when the file PATH exists the scheduler's loop removes it and sleeps, once
DISAGG_TEST_SLOW_TRANSFER=PATH  while the file PATH exists a prefill engine waits before it sends the last of its KV
DISAGG_TEST_NAN=PATH            while the file PATH exists the logits of requests of one temperature, the file's only
                                word, are NaN
In the first two: seconds (60 at most), and after a space an engine's id if only that engine is meant. In place of the
seconds of a slow transfer `held`: until the file is gone.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from disagg.host_spec import LIFE_VARIABLE
from disagg.lives import engine_id_of
from disagg.sglang.plugins.instead import instead_of

HANG_VARIABLE, SLOW_VARIABLE, NAN_VARIABLE = "DISAGG_TEST_HANG", "DISAGG_TEST_SLOW_TRANSFER", "DISAGG_TEST_NAN"
LONGEST_S = 60.0
HELD, LOOK_S = "held", 0.05


def activate() -> None:
    if path := os.environ.get(HANG_VARIABLE):
        _hang(Path(path))
    if path := os.environ.get(SLOW_VARIABLE):
        _slow_transfer(Path(path))
    if path := os.environ.get(NAN_VARIABLE):
        _nan(Path(path))


def _asked(path: Path) -> str:
    """The first word of the file, or 0 where this engine is not meant, or nobody."""
    try:
        asked, *engine_ids = path.read_text().split()
    except (OSError, ValueError):
        return "0"
    ours = engine_id_of(os.environ[LIFE_VARIABLE])
    return asked if not engine_ids or ours in engine_ids else "0"


def _seconds(asked: str) -> float:
    return min(float(asked), LONGEST_S)


def _hang(path: Path) -> None:
    from sglang.srt.managers.scheduler import Scheduler

    @instead_of(Scheduler)
    def process_input_requests(self: Any, *args: Any, **kwargs: Any) -> Any:
        if path.exists() and (seconds := _seconds(_asked(path))):
            path.unlink(missing_ok=True)
            sys.stderr.write(f"{HANG_VARIABLE}: this scheduler sleeps for {seconds:g} s\n")
            time.sleep(seconds)
        return process_input_requests.real(self, *args, **kwargs)


def _slow_transfer(path: Path) -> None:
    from sglang.srt.disaggregation.nixl import conn

    class SlowQueue(conn.FastQueue):  # type: ignore[misc]
        def get(self) -> Any:
            """Called by the thread that sends: the scheduler goes on meanwhile."""
            chunk = super().get()
            if chunk.is_last_chunk:
                _wait(path)
            return chunk

    conn.FastQueue = SlowQueue


def _nan(path: Path) -> None:
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

    @instead_of(SamplingBatchInfo)
    def apply_logits_bias(self: Any, logits: Any) -> Any:
        """Called before each step's tokens are sampled."""
        if path.exists():
            logits.masked_fill_(self.temperatures == float(path.read_text()), float("nan"))
        return apply_logits_bias.real(self, logits)


def _wait(path: Path) -> None:
    asked = _asked(path)
    if asked != HELD:
        time.sleep(_seconds(asked))
        return
    end_s = time.monotonic() + LONGEST_S
    while path.exists() and time.monotonic() < end_s:
        time.sleep(LOOK_S)
