"""One HTTP request that is traced, until its answer has ended.

Way:   Tracer.begin -> [HttpTrace] -> its requests, each with a RequestTrace; at the end -> Tracer
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from disagg.coordinator.trace import RequestTrace, new_span_id


@dataclass(slots=True)
class HttpTrace:
    """Times are monotonic seconds. `parent`: the client's span; empty: it has none. `status`: 0 where no answer began;
    `error`: the code of the error that it ended with."""

    path: str
    trace_id: str
    parent: str
    is_sampled: bool
    began_s: float
    now_s: Callable[[], float]
    on_end: Callable[[HttpTrace], None]
    span_id: str = field(default_factory=new_span_id)
    requests: list[RequestTrace] = field(default_factory=list)
    ended_s: float = 0.0
    status: int = 0
    error: str = ""
    model: str = ""  # that was asked for, once it is known

    @property
    def size(self) -> int:
        """Of what it holds: itself, and each request."""
        return 1 + len(self.requests)

    def request(self) -> RequestTrace:
        """For a further request: each sample of an answer is one."""
        found = RequestTrace(self.trace_id, self.is_sampled)
        if self.is_sampled:
            self.requests.append(found)
        return found

    def end(self, status: int, error: str) -> None:
        self.ended_s, self.status, self.error = self.now_s(), status, error
        if self.is_sampled:
            self.on_end(self)
