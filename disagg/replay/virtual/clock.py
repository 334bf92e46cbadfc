"""Virtual time: what is to happen, in order. Nothing waits, so hours of a deployment take seconds."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Clock:
    """Of two things due at the same moment the one that was set first happens first."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, when_s: float, action: Callable[..., None], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._due, (when_s, self._count, action, arguments))

    def after(self, delay_s: float, action: Callable[..., None], *arguments: Any) -> None:
        self.at(self.now_s + delay_s, action, *arguments)

    def run(self) -> None:
        """Until nothing is left to happen."""
        due, pop = self._due, heapq.heappop
        while due:
            self.now_s, _, action, arguments = pop(due)
            action(*arguments)
