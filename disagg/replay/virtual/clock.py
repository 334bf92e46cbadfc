"""Virtual time: what is to happen, in order. Nothing waits, so hours of a deployment take seconds.

Way:   [Clock.at] -> [Clock.run], on a VirtualLoop, whose tasks and timers have their turns in between
Why:   most of what happens needs no task and no timer of asyncio, which cost ten times as much
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Any

from disagg.simulation.loop import VirtualLoop


class Clock:
    """Of two things due at the same moment the one that was set first happens first; tasks go before both."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._sleeps_until_s = -1.0  # -1: it is at work
        self._failure: BaseException | None = None
        self._timer: asyncio.TimerHandle | None = None  # while it sleeps

    @property
    def now_s(self) -> float:
        return self.loop.time()

    def at(self, when_s: float, action: Callable[..., None], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._due, (when_s, self._count, action, arguments))
        if when_s < self._sleeps_until_s:
            self._sleep_until(when_s)

    def after(self, delay_s: float, action: Callable[..., None], *arguments: Any) -> None:
        self.at(self.loop.time() + delay_s, action, *arguments)

    def run(self) -> None:
        """Until nothing is left to happen; timers of asyncio alone do not count. What a callback raises ends it, and is
        raised here."""
        self.loop.call_soon(self._go_on)
        self.loop.set_exception_handler(self._failed)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()
        if self._failure is not None:
            raise self._failure

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._failure = self._failure or context.get("exception") or RuntimeError(context["message"])
        loop.stop()

    def _go_on(self) -> None:
        self._sleeps_until_s, self._timer = -1.0, None
        due, loop, pop = self._due, self.loop, heapq.heappop
        while due:
            when_s = due[0][0]
            if not loop.is_quiet_until(when_s):
                self._sleep_until(when_s)
                return
            _, _, action, arguments = pop(due)
            loop.jump_to(when_s)
            action(*arguments)
        if loop.is_busy:
            self._sleep_until(loop.time())
        else:
            loop.stop()

    def _sleep_until(self, when_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._sleeps_until_s, self._timer = when_s, self.loop.call_at(when_s, self._go_on)
