"""A trace: what a real service was asked, without its text. Lengths, arrivals, and which prompts begin alike.

Way:   a file -> a reader (read.py) -> [Trace of TraceRequests] -> workload.py, which chooses and paces some of them
Words: a block is `block_tokens` prompt tokens; equal ids mean equal tokens. The last block of a prompt may be short. An
       open trace says when each request comes; in a closed one a request comes so long after the one before it ended
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from disagg.errors import DisaggError

NOBODY = -1


class TraceError(DisaggError):
    """A trace that cannot be read: the file and its line, what is wrong, what would do."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """`after`: the number of the request that must have ended, or NOBODY; `at_s` counts from that end, else from the
    trace's start (in a closed trace: from its session's start)."""

    number: int
    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: Sequence[int] = ()
    session: str = ""
    after: int = NOBODY
    served_s: float = 0.0  # how long the traced service took for it; 0: not told


@dataclass(frozen=True)
class Trace:
    """`requests` by arrival; a closed trace's by session, `after` before who waits for it."""

    name: str
    block_tokens: int  # 0: the trace does not say what prompts share
    requests: Sequence[TraceRequest]
    is_closed: bool = False
    stamp_s: float = 0.0  # arrivals were rounded to multiples of this

    @cached_property
    def output_tokens_max(self) -> int:
        return max(request.output_tokens for request in self.requests)

    @cached_property
    def own_rate(self) -> float | None:
        """Requests a second; None of a closed trace."""
        lasted_s = self.requests[-1].at_s - self.requests[0].at_s
        return None if self.is_closed else len(self.requests) / (lasted_s or 1.0)


def ideal_hits(paths: Iterable[Sequence[int]]) -> list[int]:
    """For each prompt, in order of arrival, the blocks that an endless cache would have."""
    seen: set[int] = set()
    hits = []
    for path in paths:
        count = _leading(path, seen)
        hits.append(count)
        seen.update(path[count:])
    return hits


def _leading(path: Sequence[int], seen: set[int]) -> int:
    """Keys are chained, so what is known of a path is its beginning."""
    low, high = 0, len(path)
    while low < high:
        middle = (low + high) // 2
        if path[middle] in seen:
            low = middle + 1
        else:
            high = middle
    return low
