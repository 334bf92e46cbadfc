"""A request that kills the engine it runs on, as sampling values do that become inf or NaN in a batch.

Way:   a test -> Request.sampling["poison"] -> the simulated rank that computes for it, which then dies
"""

from __future__ import annotations

from typing import NamedTuple

from disagg.roles import Role

DEATH_S = 0.2  # from the scheduler's end to its host's


class Poison(NamedTuple):
    """Kills engines of `role`, from `tokens` of prompt and answer on; with `in_company` only beside other requests."""

    role: str
    tokens: int
    in_company: bool = False

    def kills(self, role: Role, tokens: int, legs: int) -> bool:
        return role.value == self.role and tokens >= self.tokens and (legs > 1 or not self.in_company)
