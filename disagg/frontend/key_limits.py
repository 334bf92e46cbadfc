"""What one API key may use: requests and tokens a minute, requests at once, and which models.

Way:   key checked -> [Meters.of] -> [metered], around an answer that engines make; its head says what is left
In:    security.api_keys, those with a name or a limit
Owns:  the counts of this process alone: frontends share nothing, so each of several gives a key its limits anew
Fails: RateLimited with how long to wait; BadRequest (403) for a model that the key may not name

A limit is a bucket that fills evenly: after a pause of a minute all of it may be used at once, and then its rate. What
an answer will have is not known before: its tokens are taken as they are made, also below zero. They are counted when
somebody asks (the key's next request, a scrape), and at the answer's end: nothing is done at a token.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from disagg.adapters import OF
from disagg.coordinator.request import Request
from disagg.errors import BadRequest, RateLimited
from disagg.frontend.exchange import Exchange
from disagg.frontend.keys import digest

MINUTE_S = 60.0
BUSY_S = 1.0  # to wait where too many requests run
HEAD = b"x-ratelimit-"

Counts = dict[tuple[str | int, ...], int]


class LimitedKey(msgspec.Struct, frozen=True, kw_only=True):
    """0: no limit, or never; no models: all."""

    key: str
    name: str
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrent: int = 0
    models: tuple[str, ...] = ()
    expires_s: float = 0.0  # wall clock


class Bucket:
    def __init__(self, limit: int, now_s: float) -> None:
        self.limit, self._level, self._at_s = limit, float(limit), now_s

    def level(self, now_s: float) -> float:
        self._level = min(self.limit, self._level + (now_s - self._at_s) * self.limit / MINUTE_S)
        self._at_s = now_s
        return self._level

    def wait_s(self, count: int, now_s: float) -> float:
        """Until it holds so many."""
        return max(0.0, (count - self.level(now_s)) * MINUTE_S / self.limit)

    def take(self, count: int, now_s: float) -> None:
        self._level = self.level(now_s) - count


class Running:
    """An answer that runs. `requests`: made for it, once its body is read; `counted`: of their tokens."""

    def __init__(self) -> None:
        self.requests: Sequence[Request] = ()
        self.counted = 0


class Meter:
    """Of one key. `now_s`: any clock that goes evenly."""

    def __init__(self, key: LimitedKey, now_s: Callable[[], float]) -> None:
        self.key, self._now_s = key, now_s
        self._running: set[Running] = set()
        self._requests = Bucket(key.requests_per_minute, now_s()) if key.requests_per_minute else None
        self._tokens = Bucket(key.tokens_per_minute, now_s()) if key.tokens_per_minute else None
        self.requests = 0
        self.tokens: Counter[str] = Counter()  # by kind
        self.refused: Counter[str] = Counter()  # by limit

    def begin(self) -> Running:
        """Raises RateLimited."""
        now_s, key = self._now_s(), self.key
        if key.concurrent and len(self._running) >= key.concurrent:
            self._refuse("concurrent", f"{len(self._running)} requests of this key run, as many as it may have", BUSY_S)
        if self._requests is not None and (wait_s := self._requests.wait_s(1, now_s)):
            self._refuse("requests", f"this key may send {key.requests_per_minute} requests a minute", wait_s)
        if self._tokens is not None:
            self.look()
            if wait_s := self._tokens.wait_s(1, now_s):
                self._refuse("tokens", f"this key may use {key.tokens_per_minute} tokens a minute", wait_s)
        if self._requests is not None:
            self._requests.take(1, now_s)
        self.requests += 1
        running = Running()
        self._running.add(running)
        return running

    def may_name(self, model: str, adapter: str) -> bool:
        """Also a model that is not here, or not yet."""
        names = (adapter, f"{model}{OF}{adapter}") if adapter else (model,)  # however the body names it
        return not self.key.models or any(name in self.key.models for name in names)

    def read(self, model: str, adapter: str, prompt_tokens: int) -> None:
        """Once the body has been read. `adapter`: "" for the model as it is. Raises RateLimited, and BadRequest."""
        now_s, key = self._now_s(), self.key
        if not self.may_name(model, adapter):
            what = f"this key may not use the model '{adapter or model}'; it may use {', '.join(key.models)}"
            raise BadRequest("model", "model_not_allowed", what, http_status=403)
        if self._tokens is not None:
            if prompt_tokens > key.tokens_per_minute:
                what = f"the prompt has {prompt_tokens} tokens, and this key may use {key.tokens_per_minute} a minute"
                self._refuse("tokens", what, 0.0)
            self.look()
            if wait_s := self._tokens.wait_s(prompt_tokens, now_s):
                self._refuse("tokens", f"this key may use {key.tokens_per_minute} tokens a minute", wait_s)
            self._tokens.take(prompt_tokens, now_s)
        self.tokens["prompt"] += prompt_tokens

    def end(self, running: Running) -> None:
        self._running.remove(running)
        self._count(running)

    def look(self) -> None:
        """Counts what running answers have made so far."""
        for running in self._running:
            self._count(running)

    def _count(self, running: Running) -> None:
        new = sum(len(request.emitted_ids) for request in running.requests) - running.counted
        if new <= 0:  # fewer: it has begun anew
            return
        running.counted += new
        self.tokens["output"] += new
        if self._tokens is not None:
            self._tokens.take(new, self._now_s())

    def headers(self) -> Iterator[tuple[bytes, bytes]]:
        """As OpenAI's clients read them."""
        now_s = self._now_s()
        for name, bucket in ((b"requests", self._requests), (b"tokens", self._tokens)):
            if bucket is not None:
                yield HEAD + b"limit-" + name, b"%d" % bucket.limit
                yield HEAD + b"remaining-" + name, b"%d" % max(0, bucket.level(now_s))
                yield HEAD + b"reset-" + name, b"%.3fs" % bucket.wait_s(bucket.limit, now_s)

    def _refuse(self, limit: str, what: str, wait_s: float) -> None:
        self.refused[limit] += 1
        would_do = f"try again in {wait_s:.1f} s" if wait_s else "send a shorter one"
        raise RateLimited(f"key {self.key.name}", what, would_do, wait_s)


class Meters:
    def __init__(self, keys: Iterable[LimitedKey] = (), now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._meters: dict[bytes, Meter] = {}
        self.hold(keys)

    def hold(self, keys: Iterable[LimitedKey]) -> None:
        """These, and no others. One that is as it was goes on counting, whatever its name is now."""
        before, self._meters = self._meters, {}
        for key in keys:
            known = before.get(owner := digest(key.key.encode()))
            is_as_it_was = known is not None and msgspec.structs.replace(known.key, name=key.name) == key
            self._meters[owner] = meter = known if known is not None and is_as_it_was else Meter(key, self._now_s)
            meter.key = key

    def of(self, owner: bytes) -> Meter | None:
        """`owner`: the digest of a key that was checked."""
        return self._meters.get(owner)

    @property
    def told(self) -> dict[str, Counts]:
        """Metric -> labels -> count."""
        requests: Counts = {}
        tokens: Counts = {}
        refused: Counts = {}
        for meter in self._meters.values():
            meter.look()
            name = meter.key.name
            requests[name,] = meter.requests
            tokens |= {(name, kind): count for kind, count in meter.tokens.items()}
            refused |= {(name, limit): count for limit, count in meter.refused.items()}
        return {"disagg_key_requests": requests, "disagg_key_tokens": tokens, "disagg_key_refused": refused}


NO_LIMITS = Meters()


class Use:
    """One answer's use of its key."""

    def __init__(self, exchange: Exchange, meter: Meter, running: Running) -> None:
        self._exchange, self._meter, self._running = exchange, meter, running

    def read(self, model: str, adapter: str, prompt_tokens: int, requests: Sequence[Request]) -> None:
        """Raises RateLimited, and BadRequest."""
        try:
            self._meter.read(model, adapter, prompt_tokens)
        finally:
            _tell(self._exchange, self._meter)
        self._running.requests = requests


@contextmanager
def metered(exchange: Exchange, meters: Meters, owner: bytes) -> Iterator[Use | None]:
    """Around an answer. Raises RateLimited. None: its key has no limits."""
    meter = meters.of(owner)
    if meter is None:
        yield None
        return
    try:
        running = meter.begin()
    finally:
        _tell(exchange, meter)
    try:
        yield Use(exchange, meter, running)
    finally:
        meter.end(running)


def _tell(exchange: Exchange, meter: Meter) -> None:
    """What is left, in the answer's head."""
    fields = exchange.answer_headers
    fields[:] = [field for field in fields if not field[0].startswith(HEAD)]
    fields += meter.headers()
