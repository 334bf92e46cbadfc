"""What reading a prompt, moving its KV and a decode step cost on an engine, learnt while it serves.

Way:   Router.observe -> [Costs.observe]; a policy -> [Costs.read_s, transfer_s, step_s]
In:    observations.py, of this frontend's own requests and of hosts' reports
Out:   seconds
Owns:  one law for all engines of a deployment, and for each rank by how much it is slower or faster than the law
"""

from __future__ import annotations

from disagg.routing.cost.fit import FACTOR_MAX, Fit
from disagg.routing.cost.prior import Prior
from disagg.routing.endpoints import RankId
from disagg.routing.observations import Answered, Observation, Read, Stepped, Transferred

SMOOTHING = 0.1  # of a rank's own factor, and of the mean answer
DRAIN_TOKENS = 200_000  # the mean time of a token is that of the last so many
BUSY_S = 30.0  # over which it is seen how busy ranks are
FACTOR_RANGE = 0.2, 5.0
EVEN = 0.15
RANKS_MAX = 20_000  # whose factor is kept; incarnations come and go


class Costs:
    """Seconds by symbols: c prompts, u tokens to read, a their area in tokens² (plane.ledger.Reading); n legs, k tokens
    of KV; B bytes.

    reading   r0 · c + r1 · u + r2 · a        step   s0 + s1 · n + s2 · k        transfer   x0 + x1 · B
    """

    def __init__(self, prior: Prior) -> None:
        p = prior
        self.reading = Fit((p.read_prompt_s, p.read_token_s, p.read_area_s), (1.0, 2000.0, 4e6))
        self.step = Fit((p.step_s, p.step_leg_s, p.step_token_s), (1.0, 16.0, 32_000.0))
        self.transfer = Fit((p.transfer_s, p.transfer_byte_s), (1.0, 2000.0 * p.kv_bytes_per_token))
        self.kv_bytes_per_token = float(p.kv_bytes_per_token)
        self.output_tokens = p.output_tokens
        self.drain_token_s = self.reading((1.0, 2000.0, 2e6)) / 2000  # for each token that waits
        self._busy: dict[RankId, tuple[float, float]] = {}
        self._busy_sum = 0.0
        self.busy = 0.0  # share of the time in which ranks that read prompts are busy with it
        self.reading_factors = Factors()
        self.step_factors = Factors()

    def reading_s(self, to_read: int, cached: int) -> float:
        """One prompt of `to_read` + `cached` tokens, on a rank as the law has it."""
        prompt_s, token_s, area_s = self.reading.weights
        return prompt_s + token_s * to_read + area_s * (to_read + 2 * cached) * to_read / 2

    def read_s(self, rank: RankId, to_read: int, cached: int) -> float:
        return self.reading_s(to_read, cached) * self.reading_factors.of(rank)

    def drain_s(self, rank: RankId, tokens: int) -> float:
        """Until what waits there is read."""
        return self.drain_token_s * tokens * self.reading_factors.of(rank)

    def transfer_s(self, tokens: int) -> float:
        return self.transfer((1.0, tokens * self.kv_bytes_per_token))

    def _note_busy(self, seen: Read) -> None:
        """By rank, over the last BUSY_S or so."""
        busy_s, over_s = self._busy.get(seen.rank, (0.0, 0.0))
        self._busy_sum -= _share(busy_s, over_s)
        fades = BUSY_S / (BUSY_S + seen.over_s)
        busy_s, over_s = busy_s * fades + seen.seconds, over_s * fades + seen.over_s
        self._busy[seen.rank] = busy_s, over_s
        self._busy_sum += _share(busy_s, over_s)
        if len(self._busy) > RANKS_MAX:
            self._busy_sum -= _share(*self._busy.pop(next(iter(self._busy))))
        self.busy = self._busy_sum / len(self._busy)

    def step_s(self, rank: RankId, legs: int, kv_tokens: float) -> float:
        return self.step((1.0, legs, kv_tokens)) * self.step_factors.of(rank)

    def observe(self, seen: Observation) -> None:
        match seen:
            case Read():
                self._note_read(seen)
            case Stepped() if seen.seconds > 0:
                x = (1.0, float(seen.legs), float(seen.kv_tokens))
                _learn(self.step_factors, seen.rank, self.step, x, seen.seconds)
            case Transferred() if seen.kv_bytes and seen.seconds > 0:
                self.transfer.learn((1.0, float(seen.kv_bytes)), seen.seconds)
                self.kv_bytes_per_token += SMOOTHING * (seen.kv_bytes / seen.prompt_tokens - self.kv_bytes_per_token)
            case Answered():
                self.output_tokens += SMOOTHING / 4 * (seen.new_tokens - self.output_tokens)

    def _note_read(self, seen: Read) -> None:
        if seen.over_s > 0:
            self._note_busy(seen)
        if seen.tokens > 0 and seen.seconds > 0:
            x = (float(seen.prompts), float(seen.tokens), seen.area)
            _learn(self.reading_factors, seen.rank, self.reading, x, seen.seconds)
            share = min(1.0, seen.tokens / DRAIN_TOKENS)
            token_s = min(seen.seconds / seen.tokens, FACTOR_MAX * self.drain_token_s)  # as in the laws
            self.drain_token_s += share * (token_s - self.drain_token_s)


class Factors:
    """By how much each rank is slower than the law. Near 1 it is 1: no rank is to be preferred for the noise of
    measurements."""

    def __init__(self) -> None:
        self._seen: dict[RankId, float] = {}
        self.uneven: dict[RankId, float] = {}  # those that are not 1

    def of(self, rank: RankId) -> float:
        return self.uneven.get(rank, 1.0)

    def note(self, rank: RankId, seconds: float, expected_s: float) -> None:
        old, (low, high) = self._seen.get(rank, 1.0), FACTOR_RANGE
        seen = min(high, max(low, seconds / expected_s))
        self._seen[rank] = new = old * (seen / old) ** SMOOTHING
        if abs(new - 1) > EVEN:
            self.uneven[rank] = new
        else:
            self.uneven.pop(rank, None)
        if len(self._seen) > RANKS_MAX:
            gone = next(iter(self._seen))
            del self._seen[gone]
            self.uneven.pop(gone, None)


def _share(busy_s: float, over_s: float) -> float:
    return min(1.0, busy_s / over_s) if over_s else 0.0


def _learn(factors: Factors, rank: RankId, law: Fit, x: tuple[float, ...], seconds: float) -> None:
    law.learn(x, seconds)  # before: what it has still to learn is no rank's own
    expected_s = law(x)
    if expected_s > 0:
        factors.note(rank, seconds, expected_s)
