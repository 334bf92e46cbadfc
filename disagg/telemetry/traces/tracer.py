"""Which requests are traced, and where their traces go.

Way:   Frontend -> [Tracer.begin] -> HttpTrace -> [at its end] -> Sender
In:    the client's traceparent; without a valid one, chance decides
Cost:  of a request that is not sampled, a few µs; where traces are off, there is no Tracer
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from random import Random

from disagg.telemetry.traces.http_trace import HttpTrace
from disagg.telemetry.traces.sender import Sender
from disagg.telemetry.traces.w3c import read_parent

TRACE_BYTES = 16


class Tracer:
    """`ratio`: of requests whose client does not say whether they are sampled."""

    def __init__(
        self,
        sender: Sender,
        ratio: float,
        random: Random | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sender, self._ratio, self._now_s = sender, ratio, now_s
        self._random = random or Random()

    def begin(self, path: str, traceparent: bytes | None) -> HttpTrace:
        parent, now_s = read_parent(traceparent), self._now_s()
        if parent is not None:
            trace_id, span_id, is_sampled = parent
        else:
            trace_id, span_id, is_sampled = os.urandom(TRACE_BYTES).hex(), "", self._random.random() < self._ratio
        return HttpTrace(path, trace_id, span_id, is_sampled, now_s, self._now_s, self._sender.put)

    def stop(self) -> None:
        """Blocks while what waits is sent, for some seconds at most."""
        self._sender.stop()

    @property
    def told(self) -> dict[str, int]:
        """How many spans were sent, and how many dropped, since this process began."""
        return self._sender.told
