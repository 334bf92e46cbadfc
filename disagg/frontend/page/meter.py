"""What this frontend's requests do in a second: tokens by rank, first tokens, ends.

Way:   Feed, each second; Service, at each request's end -> [Meter] -> a Sample
Owns:  how many tokens of each live request were counted. Nothing while nobody looks
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from operator import attrgetter
from typing import NamedTuple

import msgspec

from disagg.coordinator.phases import Phase
from disagg.coordinator.request import Request
from disagg.telemetry.quantile import quantile

FIRST_TOKENS_MAX = 2000  # of a second: its percentiles are of these, the first ones
REQUESTS_A_TURN = 500  # that are looked at before others have their turn of the event loop

_PHASE = attrgetter("phase")

Rank = tuple[str, int]  # an engine's life, dp rank


class Sample(msgspec.Struct, array_like=True):
    """One second of the charts. Rates are per second; of a second without a first token the times are None."""

    at_s: float  # wall clock
    made: float  # tokens
    read: float  # prompt tokens, of prompts whose first token came
    ended: float
    failed: float
    running: int
    queued: int
    ttft_ms_p50: float | None
    ttft_ms_p99: float | None


class Second(NamedTuple):
    """What one frontend has counted in it. Rates are per second."""

    sample: Sample
    made: Counter[Rank]
    read: Counter[Rank]
    first_tokens_ms: list[float]  # sorted

    def and_of(self, sample: Sample, first_tokens_ms: list[float]) -> Second:
        """With what another frontend has counted, but for ranks."""
        own, first = self.sample, sorted([*self.first_tokens_ms, *first_tokens_ms])
        return self._replace(
            sample=Sample(
                own.at_s,
                round(own.made + sample.made, 1),
                round(own.read + sample.read, 1),
                round(own.ended + sample.ended, 2),
                round(own.failed + sample.failed, 2),
                own.running + sample.running,
                own.queued + sample.queued,
                _percentile_ms(first, 0.5),
                _percentile_ms(first, 0.99),
            ),
            first_tokens_ms=first,
        )


class Meter:
    """Counts from `begin` to `stop`; `sample` tells what came since the last one. `live`: this frontend's requests, by
    id."""

    def __init__(self, live: Mapping[str, Request]) -> None:
        self._live = live
        self.is_on = False
        self._counted: dict[str, int] = {}  # live request -> tokens
        self._forget()

    def _forget(self) -> None:
        self.made: Counter[Rank] = Counter()
        self.read: Counter[Rank] = Counter()
        self._first_tokens_s: list[float] = []
        self._ended = self._failed = 0

    def begin(self) -> None:
        """Counts from now on."""
        self.is_on = True
        self._counted = {request.id: len(request.emitted_ids) for request in self._live.values() if request.emitted_ids}
        self._forget()

    def stop(self) -> None:
        self.is_on, self._counted = False, {}
        self._forget()

    def ended(self, request: Request) -> None:
        if self.is_on:
            self._count(request)
            self._counted.pop(request.id, None)
            self._ended += 1
            self._failed += request.phase is Phase.FAILED

    async def look(self) -> Counter[str]:
        """Counts what live requests have made, and how many are in each phase."""
        phases: Counter[Phase] = Counter()
        live = list(self._live.values())
        for begin in range(0, len(live), REQUESTS_A_TURN):
            turn = live[begin : begin + REQUESTS_A_TURN]
            if begin:
                await asyncio.sleep(0)
                turn = [request for request in turn if request.id in self._live]  # what has ended was counted then
            phases.update(map(_PHASE, turn))
            for request in turn:
                self._count(request)
        return Counter({phase.name.lower(): count for phase, count in phases.items()})

    def sample(self, at_s: float, took_s: float, queued: int) -> Second:
        """What was counted since the last one, and by rank the tokens made and read in it."""
        first, made, read = [round(each * 1e3, 1) for each in sorted(self._first_tokens_s)], self.made, self.read
        sample = Sample(
            round(at_s, 1),
            round(made.total() / took_s, 1),
            round(read.total() / took_s, 1),
            round(self._ended / took_s, 2),
            round(self._failed / took_s, 2),
            len(self._live) - queued,
            queued,
            _percentile_ms(first, 0.5),
            _percentile_ms(first, 0.99),
        )
        self._forget()
        return Second(sample, _per_second(made, took_s), _per_second(read, took_s), first)

    def _count(self, request: Request) -> None:
        tokens, before = len(request.emitted_ids), self._counted.get(request.id)
        if tokens == (before or 0) or (decode := request.facts.decode) is None:
            return
        if before is None:
            before, reader = 0, request.facts.prefill or decode
            self.read[reader.life, reader.dp_rank] += len(request.prompt_ids)
            first_s = request.timeline.get("first_token")
            if first_s is not None and len(self._first_tokens_s) < FIRST_TOKENS_MAX:
                self._first_tokens_s.append(first_s - request.received_at_s)
        if tokens > before:  # fewer: it has begun anew
            self.made[decode.life, decode.dp_rank] += tokens - before
        self._counted[request.id] = tokens


def _per_second(counts: Counter[Rank], took_s: float) -> Counter[Rank]:
    return Counter({rank: round(count / took_s) for rank, count in counts.items()})


def _percentile_ms(sorted_ms: list[float], share: float) -> float | None:
    return round(quantile(sorted_ms, share), 1) if sorted_ms else None
