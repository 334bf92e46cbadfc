"""What reading a prompt, moving its KV and a decode step cost on an engine, learnt while it serves.

Way:   Router.observe -> [Costs.observe]; a policy -> [Costs.read_s, transfer_s, step_s]
In:    observations.py, of this frontend's own requests and of hosts' reports
Out:   seconds
Owns:  one law for all engines of a deployment, and for each rank by how much it is slower or faster than the law
"""

from __future__ import annotations

from disagg.routing.cost.fit import Fit
from disagg.routing.cost.prior import Prior
from disagg.routing.endpoints import RankId
from disagg.routing.observations import Answered, Observation, Read, Stepped, Transferred

SMOOTHING = 0.1  # of a rank's own factor, and of the mean answer
FACTOR_RANGE = 0.2, 5.0
RANKS_MAX = 20_000  # whose factor is kept; incarnations come and go


class Costs:
    """Seconds by symbols: c prompts, u tokens to read, a their area in tokens² (plane.ledger.Reading); n legs, k tokens
    of KV; B bytes.

    reading   r0 · c + r1 · u + r2 · a        step   s0 + s1 · n + s2 · k        transfer   x0 + x1 · B
    """

    def __init__(self, prior: Prior) -> None:
        p = self._prior = prior
        self.reading = Fit((p.read_prompt_s, p.read_token_s, p.read_area_s), (1.0, 2000.0, 4e6))
        self.step = Fit((p.step_s, p.step_leg_s, p.step_token_s), (1.0, 16.0, 32_000.0))
        self.transfer = Fit((p.transfer_s, p.transfer_byte_s), (1.0, 2000.0 * p.kv_bytes_per_token))
        self.kv_bytes_per_token = float(p.kv_bytes_per_token)
        self.output_tokens = p.output_tokens
        self.busy = 0.0  # share of the time in which ranks that read prompts are busy with it
        self.reading_factors: dict[RankId, float] = {}  # of ranks that are slower or faster than the law
        self.step_factors: dict[RankId, float] = {}

    def reading_s(self, to_read: int, cached: int) -> float:
        """One prompt of `to_read` + `cached` tokens, on a rank as the law has it."""
        prompt_s, token_s, area_s = self.reading.weights
        return prompt_s + token_s * to_read + area_s * (to_read + 2 * cached) * to_read / 2

    @property
    def drain_token_s(self) -> float:
        """For each token that waits, on a rank as the law has it."""
        return self.reading.weights[1]

    def read_s(self, rank: RankId, to_read: int, cached: int) -> float:
        return self.reading_s(to_read, cached) * self.reading_factors.get(rank, 1.0)

    def drain_s(self, rank: RankId, tokens: int) -> float:
        """Until what waits there is read."""
        return self.drain_token_s * tokens * self.reading_factors.get(rank, 1.0)

    def transfer_s(self, tokens: int) -> float:
        return self.transfer((1.0, tokens * self.kv_bytes_per_token))

    def step_s(self, rank: RankId, legs: int, kv_tokens: float) -> float:
        return self.step((1.0, legs, kv_tokens)) * self.step_factors.get(rank, 1.0)

    def observe(self, seen: Observation) -> None:
        match seen:
            case Read() if seen.seconds > 0 and seen.tokens > 0:
                x = (float(seen.prompts), float(seen.tokens), seen.area)
                _learn(self.reading_factors, seen.rank, self.reading, x, seen.seconds)
            case Stepped() if seen.seconds > 0:
                x = (1.0, float(seen.legs), float(seen.kv_tokens))
                _learn(self.step_factors, seen.rank, self.step, x, seen.seconds)
            case Transferred() if seen.kv_bytes and seen.seconds > 0:
                self.transfer.learn((1.0, float(seen.kv_bytes)), seen.seconds)
                self.kv_bytes_per_token += SMOOTHING * (seen.kv_bytes / seen.prompt_tokens - self.kv_bytes_per_token)
            case Answered():
                self.output_tokens += SMOOTHING / 4 * (seen.new_tokens - self.output_tokens)
        if isinstance(seen, Read) and seen.over_s > 0:
            weight = min(1.0, seen.over_s / 30.0) / 4
            self.busy += weight * (min(1.0, seen.seconds / seen.over_s) - self.busy)


def _learn(factors: dict[RankId, float], rank: RankId, law: Fit, x: tuple[float, ...], seconds: float) -> None:
    factor, expected, (low, high) = factors.get(rank, 1.0), law(x), FACTOR_RANGE
    law.learn(x, seconds / factor)
    if expected > 0:
        factors[rank] = min(high, max(low, factor + SMOOTHING * (seconds / expected - factor)))
    if len(factors) > RANKS_MAX:
        del factors[next(iter(factors))]
