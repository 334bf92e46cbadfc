"""Work that comes in pieces of any size is done a slice a turn of the event loop: between two slices tokens pass.

Way:   KvFeeds of all engines -> [InSlices.add] -> a slice a turn, in order of arrival
Owns:  what has not been done yet: WAITING_MAX pieces at the most. Of more the oldest is done at once, so a frontend
       that cannot keep up reads later, which hosts notice
Fails: never; a piece catches what it raises. One whose owner is gone ends by itself
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator

SLICE_STEPS = 64  # of cache events, that take 5 to 10 µs each
WAITING_MAX = 256


class InSlices:
    """A piece of work is an iterator: what it does until its next value is one step."""

    def __init__(self) -> None:
        self._waiting: deque[Iterator[None]] = deque()
        self._is_due = False

    def add(self, work: Iterator[None]) -> None:
        self._waiting.append(work)
        if len(self._waiting) > WAITING_MAX:
            at_once(self._waiting.popleft())
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._slice)

    def _slice(self) -> None:
        left = SLICE_STEPS
        while left and self._waiting:
            for _ in self._waiting[0]:
                left -= 1
                if not left:
                    break
            else:
                self._waiting.popleft()
        self._is_due = bool(self._waiting)
        if self._is_due:
            asyncio.get_running_loop().call_soon(self._slice)


def at_once(work: Iterator[None]) -> None:
    """All of it."""
    for _ in work:
        pass
