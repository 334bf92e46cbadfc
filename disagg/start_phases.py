"""Where the seconds of an engine's start go.

Way:   host -> "ready" -> supervisor, which adds its own -> the engine's record and a line in the driver's log
Out:   seconds by phase, in their order, without gaps: their sum is the time from the first to the last
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any


class Phases:
    """`began_s`: of `now_s`, usually the monotonic clock, which all processes of a machine share."""

    def __init__(self, began_s: float = 0.0, now_s: Callable[[], float] | None = None) -> None:
        self._now_s = now_s or time.monotonic
        self._last_s = began_s or self._now_s()
        self.seconds: dict[str, float] = {}

    def end(self, phase: str) -> None:
        """Ends a phase: the time since the end of the previous one was this phase's."""
        now_s = self._now_s()
        self.seconds[phase] = round(now_s - self._last_s, 2)
        self._last_s = now_s

    def split(self, phase: str, told: Mapping[str, Any] | None) -> None:
        """Takes out of `engine` what SGLang tells of its slowest rank (from 0.5.20 on): how long its processes took
        to come up, and in the scheduler the weights, the KV pool and the CUDA graphs."""
        if not told or not told.get("scheduler_e2e"):
            return
        whole_s, scheduler_s = self.seconds.pop(phase), float(told["scheduler_e2e"])
        parts = {
            "weights": float(told.get("load_weight", 0.0)),
            "kv": float(told.get("kv_cache_allocation", 0.0)),
            "graphs": sum(map(float, told.get("cuda_graph", {}).values())),
        }
        self.seconds["children"] = round(max(whole_s - scheduler_s, 0.0), 2)
        self.seconds |= {name: round(seconds, 2) for name, seconds in parts.items()}
        self.seconds[phase] = round(max(min(whole_s, scheduler_s) - sum(parts.values()), 0.0), 2)


def told(seconds: Mapping[str, float]) -> str:
    """For a log: "12.3 s (process 0.4, imports 5.1, …)"; what took no time is left out."""
    parts = ", ".join(f"{phase} {spent:.1f}" for phase, spent in seconds.items() if spent >= 0.05)
    return f"{sum(seconds.values()):.1f} s ({parts})"
