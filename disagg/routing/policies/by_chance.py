"""What sides that draw have in common."""

from __future__ import annotations

import random

from disagg.routing.policy import Surroundings


class ByChance:
    """A side that draws: with the deployment's random numbers."""

    def __init__(self) -> None:
        self._random = random.Random()

    def settle(self, surroundings: Surroundings) -> None:
        self._random = surroundings.random
