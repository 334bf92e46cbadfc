"""The legs that decode on one rank, and what time their steps take. Between two changes of the batch the steps are not
run one by one: their sum is known.

Step:  Model.decode_step_s of B legs whose KV is C tokens; each step makes C grow by B
Way:   rank -> [add] -> [begin] -> [advance] at the end of some step, which says who is done
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import ceil, sqrt

from disagg.replay.virtual.served import Served
from disagg.simulated_engine.model import Model

Gap = Callable[[float, int], None]  # (seconds between two tokens of a stream, how many gaps of that length)


class DecodeBatch:
    """The running batch of one rank. `on_gap` is told each gap between two tokens of a stream."""

    def __init__(self, model: Model, on_gap: Gap) -> None:
        self._model, self._on_gap = model, on_gap
        self._context_s = model.step_context_s / model.speed
        self.legs: dict[Served, int] = {}  # -> the step after which it has all of its tokens
        self._ends: list[tuple[int, int, Served]] = []
        self._new: list[Served] = []
        self._steps = 0  # run so far
        self.context_tokens = 0  # KV of the legs after these steps
        self._last_s = 0.0  # the end of the last one
        self._begun_s = 0.0

    def __len__(self) -> int:
        return len(self.legs)

    def add(self, served: Served) -> None:
        """Between two steps. Its first token is there already, and more are wanted."""
        ends = self._steps + served.output_tokens - 1
        self.legs[served] = ends
        heapq.heappush(self._ends, (ends, served.number, served))
        self.context_tokens += served.prompt_tokens + 1
        self._new.append(served)

    @property
    def next_step_s(self) -> float:
        return self._model.decode_step_s(len(self.legs), self.context_tokens) / self._model.speed

    @property
    def steps_to_end(self) -> int:
        """Until the first of them is done."""
        return self._ends[0][0] - self._steps

    def lasting_s(self, steps: int) -> float:
        """What the next `steps` take."""
        return steps * self.next_step_s + self._context_s * len(self.legs) * steps * (steps - 1) / 2

    def steps_within(self, seconds: float) -> int:
        """The fewest steps, at least one, that take at least so long."""
        slope, first_s = self._context_s * len(self.legs) / 2, self.next_step_s
        if slope:
            linear = first_s - slope
            steps = max(1, ceil((sqrt(linear * linear + 4 * slope * seconds) - linear) / (2 * slope)))
        else:
            steps = max(1, ceil(seconds / first_s)) if first_s else self.steps_to_end
        while self.lasting_s(steps) < seconds and first_s:  # the root was rounded
            steps += 1
        return steps

    def begin(self, now_s: float) -> None:
        """Steps run from now on, one after the other."""
        first_s, old = self.next_step_s, len(self.legs) - len(self._new)
        if old:
            self._on_gap(now_s - self._last_s + first_s, old)
        for served in self._new:
            self._on_gap(now_s - served.first_s + first_s, 1)
        self._new.clear()
        self._begun_s = now_s

    def advance(self, steps: int) -> list[Served]:
        """So many steps have been run since `begin`. Returns the legs that have all of their tokens."""
        first_s, all_s, count = self.next_step_s, self.lasting_s(steps), len(self.legs)
        if steps > 1:
            self._on_gap((all_s - first_s) / (steps - 1), count * (steps - 1))
        self._last_s = self._begun_s + all_s
        self._steps += steps
        self.context_tokens += count * steps
        done = []
        while self._ends and self._ends[0][0] <= self._steps:
            served = heapq.heappop(self._ends)[2]
            del self.legs[served]
            self.context_tokens -= served.prompt_tokens + served.output_tokens
            done.append(served)
        return done

    def grown_tokens(self, reserved: int) -> int:
        """KV of answers that are longer than `reserved` tokens, beyond those."""
        steps = self._steps
        return sum(max(0, served.output_tokens - (ends - steps) - reserved) for served, ends in self.legs.items())
