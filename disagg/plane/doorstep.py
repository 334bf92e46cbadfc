"""Connections that came to one listener and have not proven the deployment's secret yet.

Way:   framing.Connection -> [Doorstep]
Owns:  the order in which they came; UNPROVEN_MAX wait at most: one more sends the longest away, as a peer of ours
       proves itself within a round trip. What was sent away is told in the log, a line each LOG_S at most
Fails: never
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Protocol

log = logging.getLogger(__name__)

UNPROVEN_MAX = 256
LOG_S = 10.0
TOO_MANY = "too many waited"


class Unproven(Protocol):
    def close(self, why: str) -> None: ...


class Doorstep:
    """Of the listener `where`."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._waiting: dict[Unproven, None] = {}  # the longest first
        self._sent_away: Counter[str] = Counter()  # by reason, since the last line
        self._told_at_s = float("-inf")

    def __len__(self) -> int:
        return len(self._waiting)

    def came(self, connection: Unproven) -> None:
        if len(self._waiting) >= UNPROVEN_MAX:
            longest = next(iter(self._waiting))
            self.left(longest, TOO_MANY)
            longest.close(TOO_MANY)
        self._waiting[connection] = None

    def close(self) -> None:
        """Nobody is listened to any more."""
        waiting, self._waiting = list(self._waiting), {}
        for connection in waiting:
            connection.close("it stops")

    def entered(self, connection: Unproven) -> None:
        """It has proven the secret."""
        self._waiting.pop(connection, None)

    def left(self, connection: Unproven, why: str) -> None:
        """It is closed, proven or not."""
        if connection in self._waiting:
            del self._waiting[connection]
            self._tell(why)

    def _tell(self, why: str) -> None:
        self._sent_away[why] += 1
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._told_at_s + LOG_S:
            said = ", ".join(f"{count}: {reason}" for reason, count in self._sent_away.items())
            log.warning("%s: peers without the deployment's secret, since the last such line: %s", self._where, said)
            self._sent_away.clear()
            self._told_at_s = now_s
