"""Sends traces from a thread of its own, off the way of tokens; a collector that is away costs a count.

Way:   HttpTrace, ended -> [Sender] -> tree.py -> otlp.py -> the collector
Owns:  what waits: WAITING_MAX and one trace at most; one more is dropped, and counted. So is a batch that the collector
       does not take, or that cannot be made into spans: nothing is kept for later
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

# Traces and their requests: one body may have hundreds of samples or inputs, each with spans of its own.
WAITING_MAX = 8192
BATCH_MAX = 256
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
        self._is_heard, self._is_broken = True, False
        # Each is written by one thread: the event loop's, or ours.
        self._put, self._refused = 0, 0
        self._taken, self._sent, self._dropped = 0, 0, 0
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, limit_s: float = STOP_S) -> None:
        """What waits is sent once more."""
        self._over.set()
        self._thread.join(limit_s)

    @property
    def told(self) -> dict[str, int]:
        """Spans; of what never became spans, its traces and their requests."""
        return {"sent": self._sent, "dropped": self._dropped + self._refused}

    def put(self, trace: HttpTrace) -> None:
        if self._put - self._taken >= self._waiting_max:
            self._refused += trace.size
            return
        self._put += trace.size
        self._waiting.append(trace)

    def _run(self) -> None:
        while not self._over.wait(LOOK_S):
            self.send_due()
        self.send_due(all_of_them=True)

    def send_due(self, *, all_of_them: bool = False) -> None:
        """Sends what has ended long enough ago."""
        while batch := self._due(all_of_them):
            try:
                spans = self._spans(batch)
                is_heard = self._export(spans)
            except Exception:
                self._dropped += sum(trace.size for trace in batch)
                if not self._is_broken:
                    self._is_broken = True
                    log.exception("traces that cannot be sent are dropped, and counted; further ones without a word")
                continue
            if is_heard:
                self._sent += len(spans)
            else:
                self._dropped += len(spans)
            if is_heard != self._is_heard:
                self._is_heard = is_heard
                what = "takes spans again" if is_heard else "does not take spans: they are dropped, and counted"
                log.warning("the collector of telemetry.traces.endpoint %s", what)

    def _spans(self, batch: Sequence[HttpTrace]) -> list[tuple[str, Span]]:
        spans: list[tuple[str, Span]] = []
        for trace in batch:
            spans += [(trace.trace_id, span) for span in spans_of(trace, self._model)]
            time.sleep(0)  # the event loop's turn
        return spans

    def _due(self, all_of_them: bool) -> list[HttpTrace]:
        batch: list[HttpTrace] = []
        size, until_s = 0, self._now_s() - self._settle_s
        while self._waiting and size < BATCH_MAX and (all_of_them or self._waiting[0].ended_s <= until_s):
            batch.append(self._waiting.popleft())
            size += batch[-1].size
        self._taken += size
        return batch
