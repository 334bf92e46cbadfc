"""An asyncio loop whose time is a number: when every task waits, it jumps to the next timer.

Way:   asyncio.Runner(loop_factory=VirtualLoop) -> [VirtualLoop] -> everything that a simulation runs
Out:   `time()` in virtual seconds, from 0; the same program with the same seeds takes the same steps, in the same order
Fails: Stuck when every task waits and no timer is set: nothing could ever happen again
Owns:  no thread, and no socket to read from: code that needs one does not belong in a simulation
"""

from __future__ import annotations

import asyncio
import heapq
import selectors
from typing import Any


class Stuck(RuntimeError):
    """Every task waits, and none has a deadline."""


class _JumpSelector(selectors.SelectSelector):
    """Asked for what is ready within `timeout`, it says "nothing" and moves the clock by as much."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck("every task waits and none has a deadline")
        if timeout > 0:
            self.now_s += timeout
        return []


class _Timer(asyncio.TimerHandle):
    """Two timers due at the same moment run in the order they were set, whatever else the heap holds."""

    __slots__ = ("_number",)
    _count = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        _Timer._count = self._number = _Timer._count + 1

    def __lt__(self, other: object) -> bool:
        assert isinstance(other, _Timer)
        return (self._when, self._number) < (other._when, other._number)  # type: ignore[attr-defined]


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _JumpSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now_s

    @property
    def is_busy(self) -> bool:
        """Something is to run at once."""
        return bool(self._ready)  # type: ignore[attr-defined]

    def is_quiet_until(self, when_s: float) -> bool:
        """Nothing is to run at once, and no timer before `when_s`."""
        scheduled = self._scheduled  # type: ignore[attr-defined]
        return not self._ready and not (scheduled and scheduled[0]._when < when_s)  # type: ignore[attr-defined]

    def jump_to(self, when_s: float) -> None:
        """As if all had waited until then. It must be quiet until then."""
        if when_s > self._clock.now_s:
            self._clock.now_s = when_s

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        timer = _Timer(when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        raise RuntimeError("a thread would end at a moment that no seed decides")
