"""What reading a prompt, moving its KV and a decode step cost on an engine, learnt while it serves.

Way:   Router.observe -> [Costs.observe]; a policy -> [Costs.read_s, transfer_s, step_s]
In:    observations.py, of this frontend's own requests and of hosts' reports
Out:   seconds
Owns:  one law for all engines of a deployment, and by how much each rank, and each way between two engines, is slower
       or faster than the law
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from disagg.routing.cost.busy import Busy
from disagg.routing.cost.factors import Factors, Key
from disagg.routing.cost.fit import FACTOR_MAX, Fit
from disagg.routing.cost.prior import Prior
from disagg.routing.cost.ways import Ways
from disagg.routing.endpoints import Endpoint, RankId
from disagg.routing.observations import Answered, Observation, Read, Stepped, Transferred

SMOOTHING = 0.1  # of a token's bytes
ANSWERS_SMOOTHING = 0.025  # of the mean answer
DRAIN_TOKENS = 200_000  # the mean time of a token is that of the last so many
LOOK_S = 1.0  # how often it is seen to what has not been measured for long


class Costs:
    """Learns by the clock `now_s`; `age` is to be called now and then: what was measured long ago counts less.

    Seconds by symbols: c prompts, u tokens to read, a their area in tokens² (plane.ledger.Reading), w cached ones
    that are in the host's memory; n legs, k tokens of KV; B bytes.

    reading   r0 · c + r1 · u + r2 · a + r3 · w        step   s0 + s1 · n + s2 · k        transfer   x0 + x1 · B
    """

    def __init__(self, prior: Prior, now_s: Callable[[], float] = time.monotonic) -> None:
        p, self._now_s, self._look_s = prior, now_s, 0.0
        self.reading = Fit(
            (p.read_prompt_s, p.read_token_s, p.read_area_s, p.read_loaded_s), (1.0, 2000.0, 4e6, 2000.0)
        )
        self.step = Fit((p.step_s, p.step_leg_s, p.step_token_s), (1.0, 16.0, 32_000.0))
        self.transfer = Fit((p.transfer_s, p.transfer_byte_s), (1.0, 2000.0 * p.kv_bytes_per_token))
        self.kv_bytes_per_token = float(p.kv_bytes_per_token)
        self.output_tokens = p.output_tokens
        self.drain_token_s = self.reading((1.0, 2000.0, 2e6, 0.0)) / 2000  # for each token that waits
        self.busy = Busy()
        self.reading_factors = Factors[RankId]()
        self.step_factors = Factors[RankId]()
        self.ways = Ways()

    def age(self, ranks: Callable[[], Iterable[Endpoint]] = tuple) -> None:
        """Before a choice. `ranks`: all that read prompts."""
        if (now_s := self._now_s()) >= self._look_s:
            self._look_s = now_s + LOOK_S
            self.busy.age(now_s, {rank.id for rank in ranks() if rank.sent_tokens})
            self.reading_factors.age(now_s)
            self.step_factors.age(now_s)
            self.ways.age(now_s)

    def reading_s(self, to_read: int, cached: int, loaded: int = 0) -> float:
        """One prompt of `to_read` + `cached` tokens, on a rank as the law has it. `loaded`: of those cached, what is in
        its host's memory."""
        prompt_s, token_s, area_s, loaded_s = self.reading.weights
        return prompt_s + token_s * to_read + area_s * (to_read + 2 * cached) * to_read / 2 + loaded_s * loaded

    def read_s(self, rank: RankId, to_read: int, cached: int, loaded: int = 0) -> float:
        return self.reading_s(to_read, cached, loaded) * self.reading_factors.of(rank)

    def drain_s(self, rank: RankId, tokens: int) -> float:
        """Until what waits there is read."""
        return self.drain_token_s * tokens * self.reading_factors.of(rank)

    def transfer_s(self, tokens: int) -> float:
        setup_s, byte_s = self.transfer.weights
        return setup_s + byte_s * (tokens * self.kv_bytes_per_token)

    def step_s(self, rank: RankId, legs: int, kv_tokens: float) -> float:
        base_s, leg_s, token_s = self.step.weights
        return (base_s + leg_s * legs + token_s * kv_tokens) * self.step_factors.of(rank)

    def observe(self, seen: Observation) -> None:
        match seen:
            case Read():
                self._note_read(seen)
            case Stepped() if seen.seconds > 0:
                step = (1.0, float(seen.legs), float(seen.kv_tokens))
                self._learn(self.step_factors, seen.rank, self.step, step, seen.seconds)
            case Transferred() if seen.kv_bytes and seen.seconds > 0:
                x = (1.0, float(seen.kv_bytes))
                way = seen.prefill.engine_id, seen.decode.engine_id
                self.transfer.learn(x, seen.seconds)  # before, as in _learn
                self.ways.note(way, seen.shared, seen.seconds, self.transfer(x), self._now_s())
                self.kv_bytes_per_token += SMOOTHING * (seen.kv_bytes / seen.prompt_tokens - self.kv_bytes_per_token)
            case Answered():
                self.output_tokens += ANSWERS_SMOOTHING * (seen.new_tokens - self.output_tokens)

    def _note_read(self, seen: Read) -> None:
        if seen.over_s > 0:
            self.busy.note(seen.rank, seen.seconds, seen.over_s, self._now_s())
        if seen.tokens > 0 and seen.seconds > 0:
            x = (float(seen.prompts), float(seen.tokens), seen.area, float(seen.loaded))
            self._learn(self.reading_factors, seen.rank, self.reading, x, seen.seconds)
            share = min(1.0, seen.tokens / DRAIN_TOKENS)
            token_s = min(seen.seconds / seen.tokens, FACTOR_MAX * self.drain_token_s)  # as in the laws
            self.drain_token_s += share * (token_s - self.drain_token_s)

    def _learn(self, factors: Factors[Key], rank: Key, law: Fit, x: tuple[float, ...], seconds: float) -> None:
        law.learn(x, seconds)  # before: what it has still to learn is no rank's own
        expected_s = law(x)
        if expected_s > 0:
            factors.note(rank, seconds, expected_s, self._now_s())
