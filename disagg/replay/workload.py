"""What is replayed: some of a trace's requests, paced. A seed decides which, and where arrivals fall.

Way:   Trace -> Sampler -> [plan] -> Plan: when each request comes, for a simulated deployment or a real one
Open:  a stretch of the trace, its pace scaled as a whole. Arrivals that share a rounded stamp are spread over it
Closed: users, each with one session after the other; a higher rate means more users. Think times stay as they are, but
        for pauses longer than THINK_MAX_S
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from random import Random

from disagg.plane.ledger import OUTPUT_RESERVED_TOKENS, tokens_to_set_aside
from disagg.replay.measures import WARM_SHARE
from disagg.replay.traces.paths import Paths
from disagg.replay.traces.trace import NOBODY, Trace, TraceError, TraceRequest, ideal_hits

THINK_MAX_S = 60.0
TURNS_MIN = 8  # of a user of a closed loop


@dataclass(frozen=True, slots=True)
class Planned:
    """`at_s`: from the start, or from the end of request `after`. `salt`: prompts with another one share nothing."""

    number: int  # its place in the plan
    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: Sequence[int]
    salt: int
    session: str
    after: int
    path: array[int]
    ideal_tokens: int  # of the prompt, which an endless cache would have


@dataclass(frozen=True)
class Plan:
    """`left_out`: requests of the trace that are too long for the deployment."""

    requests: Sequence[Planned]
    rate: float  # requests a second, as planned
    left_out: int


@dataclass(frozen=True, slots=True)
class _Chosen:
    request: TraceRequest
    at_s: float
    session: str
    after: int = NOBODY
    salt: int = 0


class Sampler:
    """`count` requests of a trace, more of a closed one where it has many users. None is longer, prompt and answer,
    than `request_tokens_max` (0: any)."""

    def __init__(self, trace: Trace, count: int, kv_block_tokens: int, request_tokens_max: int = 0) -> None:
        """Raises TraceError where no request fits."""
        self.trace, self.count, self.kv_block_tokens = trace, count, kv_block_tokens
        longest = request_tokens_max or float("inf")
        self._fits = [
            tokens_to_set_aside(r.prompt_tokens, OUTPUT_RESERVED_TOKENS) <= longest
            and r.prompt_tokens + r.output_tokens <= longest
            for r in trace.requests
        ]
        if not any(self._fits):
            raise TraceError(trace.name, f"has no request of at most {request_tokens_max} tokens", "give it more room")
        self._left_out = self._fits.count(False)
        sessions = _sessions_of(trace) if trace.is_closed else []
        self._sessions = [session for session in sessions if any(self._fits[request.number] for request in session)]
        self._paths = Paths(trace.block_tokens or 1, kv_block_tokens)
        self._path_of: dict[int, array[int]] = {}

    def plan(self, rate: float, seed: int) -> Plan:
        """`rate`: requests a second."""
        random = Random(seed)
        chosen = self._closed(rate, random) if self.trace.is_closed else self._open(rate, random)
        paths = [self._path(each) for each in chosen]
        ideal = ideal_hits(paths)
        requests = [
            Planned(
                number,
                each.at_s,
                each.request.prompt_tokens,
                each.request.output_tokens,
                each.request.blocks,
                each.salt,
                each.session,
                each.after,
                path,
                hits * self.kv_block_tokens,
            )
            for number, (each, path, hits) in enumerate(zip(chosen, paths, ideal, strict=True))
        ]
        return Plan(requests, rate, self._left_out)

    def _open(self, rate: float, random: Random) -> list[_Chosen]:
        fitting = [r for r, fits in zip(self.trace.requests, self._fits, strict=True) if fits]
        first = random.randrange(max(1, len(fitting) - self.count + 1))
        stretch = fitting[first : first + self.count]
        spread_s = self.trace.stamp_s or (stretch[-1].at_s - stretch[0].at_s) / len(stretch)
        placed = sorted(((r.at_s + random.random() * spread_s, r) for r in stretch), key=lambda each: each[0])
        start_s = placed[0][0]
        speed = rate * ((placed[-1][0] - start_s) or 1.0) / len(placed)
        return [_Chosen(r, (at_s - start_s) / speed, r.session) for at_s, r in placed]

    def _closed(self, rate: float, random: Random) -> list[_Chosen]:
        """So many users that they ask at this rate, were they answered as quickly as when they were traced. They come
        one by one, as long as requests are not counted."""
        requests = self.trace.requests
        cycle_s = sum(min(r.at_s, THINK_MAX_S) + r.served_s for r in requests) / len(requests)
        users = max(1, round(rate * cycle_s))
        turns = max(TURNS_MIN, ceil(self.count / users))
        chosen: list[_Chosen] = []
        for user in range(users):
            last, begins_s, end = NOBODY, random.random() * WARM_SHARE * turns * cycle_s, len(chosen) + turns
            while len(chosen) < end:
                session = self._session(random.choice(self._sessions), len(chosen), last, begins_s, user)
                chosen += session[: end - len(chosen)]
                last, begins_s = len(chosen) - 1, THINK_MAX_S
        return chosen

    def _session(
        self, requests: Sequence[TraceRequest], first: int, last: int, begins_s: float, user: int
    ) -> list[_Chosen]:
        """One run of a session, `begins_s` after the request `last`; its own requests are numbered from `first`. What
        waited for a request that is left out comes after the one before that."""
        found: list[_Chosen] = []
        place: dict[int, tuple[int, float]] = {NOBODY: (last, begins_s)}  # whose end a request waits for, and how long
        for request in requests:
            after, delay_s = place[request.after]
            delay_s += min(request.at_s, THINK_MAX_S)
            if self._fits[request.number]:
                place[request.number] = first + len(found), 0.0
                found.append(_Chosen(request, delay_s, f"{user}/{request.session}", after, first + 1))
            else:
                place[request.number] = after, delay_s
        return found

    def _path(self, chosen: _Chosen) -> array[int]:
        request = chosen.request
        if chosen.salt:
            return self._salted(chosen.salt).of(request)
        if request.number not in self._path_of:
            self._path_of[request.number] = self._paths.of(request)
        return self._path_of[request.number]

    def _salted(self, salt: int) -> Paths:
        """Of one run of a session; they come one after the other."""
        if self._paths.seed != salt:
            self._paths = Paths(self.trace.block_tokens, self.kv_block_tokens, salt)
        return self._paths


def _sessions_of(trace: Trace) -> list[list[TraceRequest]]:
    """By their first request: those of sub-agents are with who started them."""
    sessions: list[list[TraceRequest]] = []
    name = ""
    for request in trace.requests:
        top = request.session.partition("/")[0]
        if not sessions or top != name:
            sessions.append([])
            name = top
        sessions[-1].append(request)
    return sessions
