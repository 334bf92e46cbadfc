"""One policy, one load, one seed, in virtual time; and how much a deployment can carry.

Way:   Sampler.plan -> World -> [simulate] -> Measures
       [capacity]: the highest rate that least_loaded carries with a bounded queue, found by trying
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from disagg.coordinator.admission import Admission
from disagg.replay.deployment import kv_block_tokens_of, request_tokens_max, served_by
from disagg.replay.measures import Answered, Measures, Slo, Told, measures
from disagg.replay.traces.trace import Trace, TraceError
from disagg.replay.virtual.served import Served
from disagg.replay.virtual.world import Pool, Run, World
from disagg.replay.workload import Plan, Sampler
from disagg.role_table import ROLES
from disagg.routing.policies.least_loaded import LeastLoaded
from disagg.routing.policy import Policy
from disagg.simulated_engine.model import pairs_of

QUEUE_MAX = 2.0  # requests a rank without their first token, on average: the one that is read, and one that waits
TRIES = 8  # of a rate, each halving what is not known
DOUBLINGS = 16  # of the rate that all ranks could read uncached; where that is not too much, none is


@dataclass(frozen=True)
class Setting:
    """What all runs of a comparison have in common."""

    trace: Trace
    pools: Sequence[Pool]
    requests: int
    frontends: int
    slo: Slo
    max_tokens: int = 0  # that clients allow; 0: as the longest answer of the trace

    def sampler(self) -> Sampler:
        """Raises TraceError where no request fits."""
        return Sampler(self.trace, self.requests, kv_block_tokens_of(self.pools), request_tokens_max(self.pools))


class Simulation:
    """Runs of one setting. Plans are kept, as several policies get the same."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._sampler = setting.sampler()
        self.plan: Callable[[float, int], Plan] = lru_cache(maxsize=2)(self._sampler.plan)

    def run(self, make_policy: Callable[[], Policy], rate: float, seed: int) -> Measures:
        plan, run = self.play(make_policy, rate, seed)
        answered = [
            Answered(
                served.due_s,
                served.first_s,
                served.ended_s,
                served.prompt_tokens,
                served.output_tokens,
                served.cached_tokens,
                plan.requests[served.number].ideal_tokens,
            )
            for served in run.served
        ]
        roles = [(ROLES[rank.model.role], rank.busy) for rank in run.ranks]
        read_s = [busy.read_s for role, busy in roles if role.reads_prompts]
        decode_s = [busy.decode_s for role, busy in roles if role.takes_kv_from or role.partner is None]
        told = Told(
            read_s,
            decode_s,
            run.refusals,
            run.failed_choices,
            run.choices_us,
        )
        return measures(answered, run.gaps, self.setting.slo, 0, told)

    def play(
        self,
        make_policy: Callable[[], Policy],
        rate: float,
        seed: int,
        *,
        frontends: int = 0,
        change: Callable[[Sequence[Served]], Sequence[Served]] = lambda arrivals: arrivals,
        admission: type[Admission] = Admission,
    ) -> tuple[Plan, Run]:
        """What there was to be served, and how it was. `frontends`: others than the setting's; `change`: what to do
        with requests before they come, as to give them wishes, or to leave some out."""
        plan, setting = self.plan(rate, seed), self.setting
        policies = [make_policy() for _ in range(frontends or setting.frontends)]
        arrivals, followers = served_by(plan, setting.max_tokens or setting.trace.output_tokens_max)
        return plan, World(setting.pools, policies, seed, admission).run(change(arrivals), followers)

    def capacity(self, seed: int = 0) -> float:
        """Requests a second. Raises TraceError where no rate is too much."""
        low, high = 0.0, 2 * self._estimate(seed)
        for _ in range(DOUBLINGS):
            if not self._is_bounded(high, seed):
                break
            low, high = high, 2 * high
        else:
            raise self._too_few(len(self.plan(low, seed).requests))
        for _ in range(TRIES):
            middle = (low + high) / 2
            if self._is_bounded(middle, seed):
                low = middle
            else:
                high = middle
        return low

    def _estimate(self, seed: int) -> float:
        """Requests a second that all ranks could read if nothing were cached."""
        requests = self.plan(1.0, seed).requests
        tokens = sum(each.prompt_tokens for each in requests) / len(requests)
        pairs = sum(pairs_of(each.prompt_tokens, 0) for each in requests) / len(requests)
        return sum(
            pool.engines * pool.model.ranks * pool.model.speed / pool.model.chunk_s(round(tokens), pairs)
            for pool in self._readers
        )

    def _is_bounded(self, rate: float, seed: int) -> bool:
        _, run = self.play(LeastLoaded, rate, seed, frontends=1)
        return _waiting(run.served) <= QUEUE_MAX * sum(pool.engines * pool.model.ranks for pool in self._readers)

    def _too_few(self, requests: int) -> TraceError:
        """So few that all of them may wait at once."""
        ranks = sum(pool.engines * pool.model.ranks for pool in self._readers)
        what = f"{requests} requests do not show what {ranks} ranks can read at most: they carry any rate"
        would_do = f"replay {ceil(2 * QUEUE_MAX) * ranks} or more (--requests), or say the rate (--rate)"
        return TraceError(self.setting.trace.name, what, would_do)

    @property
    def _readers(self) -> list[Pool]:
        return [pool for pool in self.setting.pools if ROLES[pool.model.role].reads_prompts]


def _waiting(every: Sequence[Served]) -> float:
    """Requests without their first token, on average over the second half of arrivals."""
    late = sorted(every, key=lambda served: served.due_s)[len(every) // 2 :]
    from_s, to_s = late[0].due_s, late[-1].due_s
    waited_s = sum(max(0.0, min(served.first_s, to_s) - max(served.due_s, from_s)) for served in every)
    return waited_s / (to_s - from_s) if to_s > from_s else 0.0
