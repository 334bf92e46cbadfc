"""Length buckets, as SGLang's experimental router has them: short and long requests have ranks of their own.

Symbols: u prompt tokens that are cached nowhere; l = P + expected output; BUCKETS; f the share of work, in tokens, of
         shorter requests among the last SEEN
Chooses: ranks are cut into BUCKETS equal parts, in order of number; a request belongs to part ⌊f · BUCKETS⌋ (readers:
         by u, decode: by l); there, of two at random the less loaded one; where that part has no room, the nearest
Source:  sgl-project/sglang, experimental/sgl-router (2026-11). Its boundaries are configured; here each part gets an
         equal share of the tokens of late, as nothing is tuned to a trace
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.routing.cached_prompt import NOT_CACHED
from disagg.routing.endpoints import Endpoint
from disagg.routing.load import Endpoints
from disagg.routing.policies.power_of_two import BetterOfTwo
from disagg.routing.policies.sides import BySide, Picked
from disagg.routing.view import RoutingView

BUCKETS = 4
SEEN = 1000
LEAST_SEEN = 50  # before, there is one bucket


class OfItsLength(BetterOfTwo):
    reads_prefixes = True

    def __init__(self) -> None:
        super().__init__()
        self._lengths: dict[Role, _Lengths] = {}

    def pick(self, role: Role, request: RoutingView, fitting: Sequence[Endpoint], endpoints: Endpoints) -> Picked:
        held = endpoints.cached(request) if ROLES[role].reads_prompts else NOT_CACHED
        length = request.prompt_tokens + min(request.expected_tokens, request.new_tokens)
        if ROLES[role].reads_prompts:
            length = request.prompt_tokens - held.most
        bucket = int(self._lengths.setdefault(role, _Lengths()).place(length) * BUCKETS)
        order = sorted(endpoints.of(role), key=lambda each: (each.engine.number, each.dp_rank))
        part = {each: at * BUCKETS // len(order) for at, each in enumerate(order)}
        nearest = min(abs(part.get(each, 0) - bucket) for each in fitting)
        mates = [each for each in fitting if abs(part.get(each, 0) - bucket) == nearest]
        picked = super().pick(role, request, mates, endpoints)
        cached = held.of(picked.endpoint)[1]
        return Picked(picked.endpoint, {"bucket": bucket, "length": length, **picked.went_by}, cached)


class _Lengths:
    """The last SEEN lengths, in order of age and of size."""

    def __init__(self) -> None:
        self._by_age: deque[int] = deque()
        self._by_size: list[int] = []

    def place(self, length: int) -> float:
        """The share of all tokens that shorter ones have, in [0, 1); 0 while little has been seen."""
        sizes = self._by_size
        share = 0.0
        if len(sizes) >= LEAST_SEEN:
            share = sum(sizes[: bisect_left(sizes, length)]) / (sum(sizes) + 1)
        self._by_age.append(length)
        insort(sizes, length)
        if len(sizes) > SEEN:
            del sizes[bisect_left(sizes, self._by_age.popleft())]
        return share


class LengthBuckets(BySide):
    def __init__(self) -> None:
        side = OfItsLength()
        super().__init__(side, side)
