"""SGLang plugin: a decode engine beside a prefill engine on one GPU leaves it more of the card.

Way:   a decode pool's pace_ms -> the engine's environment -> entry point of the group `sglang.srt.plugins`, in every
       scheduler -> [Pace], before each step
Why:   two processes on one GPU run in turns of equal length, however little work one of them has. A decode engine that
       always has a stream takes half of the card, and reading prompts takes twice as long. Fewer steps a second, each
       for more streams, do the same work in less of the card's time
When:  only while a request here waits for its KV, so that a prefill engine has it to read; and not while this engine's
       pool is full, for then nothing is taken in before streams end
Cost:  SGLang hands out a step's tokens once it has begun the next, so they come later by what that one waits
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from disagg.host_spec import is_on

VARIABLE = "DISAGG_DECODE_PACE_MS"


class Pace:
    """At least `pace_s` from one begin to the next, where it is asked for."""

    def __init__(
        self,
        pace_s: float,
        now_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._pace_s, self._now_s, self._sleep = pace_s, now_s, sleep
        self._began_s = now_s() - pace_s

    def begin(self, *, waits: bool) -> None:
        early_s = self._began_s + self._pace_s - self._now_s()
        if waits and early_s > 0:
            self._sleep(early_s)
        self._began_s = self._now_s()


def activate() -> None:
    if VARIABLE not in os.environ or "sglang.srt.managers.scheduler" not in sys.modules or not is_on("pace"):
        return
    from sglang.srt.managers.scheduler import Scheduler

    process = Scheduler.process_decode_queue  # once a turn of the loop, before the batch is chosen
    pace = Pace(float(os.environ[VARIABLE]) / 1000)

    @functools.wraps(process)
    def process_decode_queue(self: Any) -> Any:
        prompts_wait = bool(self.disagg_decode_transfer_queue.queue)
        is_full = bool(self.disagg_decode_prealloc_queue.retracted_queue)
        pace.begin(waits=prompts_wait and not is_full and not self.running_batch.is_empty())
        return process(self)

    Scheduler.process_decode_queue = process_decode_queue
