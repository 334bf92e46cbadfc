"""What an engine host has granted: requests and KV tokens on each dp rank, over all its frontends.

Way:   Submit -> PlaneServer -> [Ledger]: granted at once, or refused at once; given back when the engine lets go
Owns:  the count. Each grant is given back exactly once (an assertion, not a hope)
Why:   frontends choose by reports that are a moment old; only the host knows what is taken now
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

# At most this many tokens of an answer are set aside at first, as SGLang's decode does (num_reserved_decode_tokens).
# Most answers end early; where they do not, SGLang retracts requests.
OUTPUT_RESERVED_TOKENS = 512
SPANS_MAX = 1000  # of a rank's reading that are kept: a leg that ends later than so many others counts in full


def kv_tokens_needed(prompt_tokens: int, new_tokens: int, page_size: int) -> int:
    """KV tokens to set aside for one leg, in whole pages."""
    return -(-tokens_to_set_aside(prompt_tokens, new_tokens) // page_size) * page_size


def tokens_to_set_aside(prompt_tokens: int, new_tokens: int) -> int:
    """For one leg, before they are rounded up to pages."""
    return prompt_tokens + (new_tokens if new_tokens < OUTPUT_RESERVED_TOKENS else OUTPUT_RESERVED_TOKENS)


@dataclass(frozen=True, slots=True)
class Capacity:
    """Of each dp rank of one engine."""

    requests: int
    kv_tokens: int
    page_size: int


@dataclass(slots=True, eq=False)
class Grant:
    dp_rank: int
    kv_tokens: int
    is_canary: bool
    to_read: int = 0  # prompt tokens that its engine has still to read
    is_open: bool = True


class Ledger:
    """By dp rank: `requests`, of these `canaries`, `kv_tokens`, and `to_read`: prompt tokens that wait to be read,
    without those that are expected to be cached. `reading`: what has been read so far; `stands`: for how long answers
    stood still meanwhile."""

    def __init__(self, ranks: int, capacity: Capacity) -> None:
        self._capacity = capacity
        self.requests = [0] * ranks
        self.canaries = [0] * ranks
        self.kv_tokens = [0] * ranks
        self.to_read = [0] * ranks
        self.reading = [Reading() for _ in range(ranks)]
        self.stands = [Standing() for _ in range(ranks)]

    def grant(
        self, dp_rank: int, prompt_tokens: int, new_tokens: int, *, is_canary: bool = False, to_read: int = 0
    ) -> Grant | None:
        """Counts one leg and returns its Grant; None where there is no room now. A canary gets it in any case."""
        needed = kv_tokens_needed(prompt_tokens, new_tokens, self._capacity.page_size)
        if not is_canary and not fits(self.requests[dp_rank], self.kv_tokens[dp_rank], needed, self._capacity):
            return None
        self.requests[dp_rank] += 1
        self.canaries[dp_rank] += is_canary
        self.kv_tokens[dp_rank] += needed
        self.to_read[dp_rank] += to_read
        return Grant(dp_rank, needed, is_canary, to_read)

    def has_read(self, grant: Grant) -> None:
        """The leg's prompt waits no more."""
        self.to_read[grant.dp_rank] -= grant.to_read
        grant.to_read = 0

    def give_back(self, grant: Grant) -> None:
        assert grant.is_open, "given back twice"
        grant.is_open = False
        self.has_read(grant)
        self.requests[grant.dp_rank] -= 1
        self.canaries[grant.dp_rank] -= grant.is_canary
        self.kv_tokens[grant.dp_rank] -= grant.kv_tokens


class Reading:
    """What one rank has read since it came up, canaries left out, and how long it was busy with it: from two looks at
    it a frontend learns how quickly it reads."""

    __slots__ = ("_spans", "area", "loaded", "prompts", "seconds", "tokens")

    def __init__(self) -> None:
        self.prompts = 0
        self.tokens = 0  # without cached ones
        self.area = 0.0  # tokens², see `add`
        self.seconds = 0.0
        self.loaded = 0  # cached tokens that were in the host's memory
        self._spans: list[tuple[float, float]] = []  # in which it read, apart from each other and in order

    def add(self, prompt_tokens: int, cached_tokens: int, start_s: float, end_s: float, loaded: int = 0) -> None:
        """A prompt was read from `start_s` to `end_s`. Prompts are read in one batch, so time counts once; and they are
        told of as their legs end, which is not the order in which they were read.

        Attention over a prompt of P tokens of which C are cached costs as the area (P² - C²) / 2.
        """
        self.prompts += 1
        self.tokens += prompt_tokens - cached_tokens
        self.loaded += loaded
        self.area += (prompt_tokens + cached_tokens) * (prompt_tokens - cached_tokens) / 2
        self._count(start_s, max(start_s, end_s))

    def _count(self, start_s: float, end_s: float) -> None:
        spans = self._spans
        first = bisect_left(spans, start_s, key=_end_of)
        after = bisect_right(spans, end_s, first, key=_start_of)
        known_s = sum(min(end, end_s) - max(start, start_s) for start, end in spans[first:after])
        self.seconds += max(0.0, end_s - start_s - known_s)
        if first < after:
            start_s, end_s = min(start_s, spans[first][0]), max(end_s, spans[after - 1][1])
        spans[first:after] = [(start_s, end_s)]
        del spans[:-SPANS_MAX]


class Standing:
    """For how long in all some prompt was being read on one rank: no answer of it goes on meanwhile."""

    __slots__ = ("_count", "_seconds", "_since_s")

    def __init__(self) -> None:
        self._count, self._seconds, self._since_s = 0, 0.0, 0.0

    def begins(self, now_s: float) -> None:
        if not self._count:
            self._since_s = now_s
        self._count += 1

    def ends(self, now_s: float) -> None:
        self._count -= 1
        if not self._count:
            self._seconds += now_s - self._since_s

    def seconds(self, now_s: float) -> float:
        return self._seconds + (now_s - self._since_s if self._count else 0.0)


def _start_of(span: tuple[float, float]) -> float:
    return span[0]


def _end_of(span: tuple[float, float]) -> float:
    return span[1]


def fits(requests: int, kv_tokens: int, needed: int, capacity: Capacity) -> bool:
    """A rank that holds nothing takes whatever one request may need: its estimate may be above what it really holds."""
    return requests == 0 or (requests < capacity.requests and kv_tokens + needed <= capacity.kv_tokens)


def tokens_free(requests: int, kv_tokens: int, capacity: Capacity) -> int:
    """The most tokens to set aside (see above) that `fits` lets one more request have, on a rank that holds some.

    Negative where it may have none."""
    if requests >= capacity.requests:
        return -1
    return (capacity.kv_tokens - kv_tokens) // capacity.page_size * capacity.page_size
