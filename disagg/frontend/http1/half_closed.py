"""Finds out whether a client that shut its sending side during an answer has left, or waits and reads.

Both look the same to TCP: a FIN. So we ask: we write what every client reads past. From one that has left a reset
comes back, and its request is cancelled; one that only said "no more from me" goes on reading and gets its answer.

Why not cancel at the FIN, as nginx (499) and uvicorn do: docs/decisions.md, 2026-11-29.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

FIRST_ASK_S = 0.01  # most answers are complete by then
FIRST_LOOK_S, LONGEST_S = 0.005, 1.0

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"  # before the answer's head: any number of them is allowed (RFC 9110, 15.2)
COMMENT = b":\n\n"  # within an event stream


class HalfClosed:
    """Asks, and again every LONGEST_S; calls `on_left` once when the client turns out to have left.

    `ask` returns False where nothing can be said (HTTP/1.0 before the answer): then it counts as gone after LONGEST_S.
    """

    def __init__(self, file: int, ask: Callable[[], bool], on_left: Callable[[], None]) -> None:
        self._file, self._ask, self._on_left = file, ask, on_left
        self._wait_s = FIRST_LOOK_S
        self._timer = asyncio.get_running_loop().call_later(FIRST_ASK_S, self._ask_now)

    def stop(self) -> None:
        self._timer.cancel()

    def _ask_now(self) -> None:
        loop = asyncio.get_running_loop()
        self._wait_s = FIRST_LOOK_S
        if self._ask():
            self._timer = loop.call_later(self._wait_s, self._look)
        else:
            self._timer = loop.call_later(LONGEST_S, self._on_left)

    def _look(self) -> None:
        if is_reset(self._file):
            self._on_left()
        elif self._wait_s * 2 > LONGEST_S:
            self._ask_now()
        else:
            self._wait_s *= 2
            self._timer = asyncio.get_running_loop().call_later(self._wait_s, self._look)


def is_reset(file: int) -> bool:
    poll = select.poll()
    poll.register(file, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
