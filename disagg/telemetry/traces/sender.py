"""Sends traces from a thread of its own, off the way of tokens; a collector that is away costs a count.

Way:   HttpTrace, ended -> [Sender] -> tree.py -> otlp.py -> the collector
Owns:  what waits: at most WAITING_MAX traces; one more is dropped, and counted. So is a batch that the collector does
       not take: nothing is kept for later
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from disagg.telemetry.traces.http_trace import HttpTrace
from disagg.telemetry.traces.tree import Span, spans_of

log = logging.getLogger(__name__)

WAITING_MAX = 2048  # traces
BATCH_MAX = 256  # traces
SETTLE_S = 1.0  # prefill's last word may come after the answer's end
LOOK_S = 0.5
STOP_S = 1.0

Export = Callable[[Sequence[tuple[str, Span]]], bool]  # (trace id, span); whether the collector took them


class Sender:
    """`export` blocks, and is called in the thread alone. `model`: as clients say it."""

    def __init__(
        self,
        model: str,
        export: Export,
        *,
        settle_s: float = SETTLE_S,
        waiting_max: int = WAITING_MAX,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model, self._export, self._now_s = model, export, now_s
        self._settle_s, self._waiting_max = settle_s, waiting_max
        self._waiting: deque[HttpTrace] = deque()
        self._over = threading.Event()
        self._is_heard = True
        self.told = {"sent": 0, "dropped": 0}  # spans; of a trace that found no place, one
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, limit_s: float = STOP_S) -> None:
        """What waits is sent once more."""
        self._over.set()
        self._thread.join(limit_s)

    def put(self, trace: HttpTrace) -> None:
        if len(self._waiting) >= self._waiting_max:
            self.told["dropped"] += 1
            return
        self._waiting.append(trace)

    def _run(self) -> None:
        while not self._over.wait(LOOK_S):
            self.send_due()
        self.send_due(all_of_them=True)

    def send_due(self, *, all_of_them: bool = False) -> None:
        """Sends what has ended long enough ago."""
        while batch := self._due(all_of_them):
            spans = [(trace.trace_id, span) for trace in batch for span in spans_of(trace, self._model)]
            is_heard = self._export(spans)
            self.told["sent" if is_heard else "dropped"] += len(spans)
            if is_heard != self._is_heard:
                self._is_heard = is_heard
                what = "takes spans again" if is_heard else "does not take spans: they are dropped, and counted"
                log.warning("the collector of telemetry.traces.endpoint %s", what)

    def _due(self, all_of_them: bool) -> list[HttpTrace]:
        batch: list[HttpTrace] = []
        until_s = self._now_s() - self._settle_s
        while self._waiting and len(batch) < BATCH_MAX and (all_of_them or self._waiting[0].ended_s <= until_s):
            batch.append(self._waiting.popleft())
        return batch
