"""Counts what the HTTP layer refused, by reason: for /metrics, and for one line in the log each LOG_S at most.

A log line for each would let whoever sends rubbish fill the disk, or freeze us on a pipe nobody reads.
"""

from __future__ import annotations

import logging
from collections import Counter

log = logging.getLogger(__name__)

LOG_S = 10.0
CODES_MAX = 200  # of errors, that are told apart


class Refusals:
    def __init__(self) -> None:
        self.by_reason: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()  # that clients were told, by code
        self._told: Counter[str] = Counter()
        self._told_at_s = float("-inf")

    def add(self, reason: str) -> None:
        self.by_reason[reason] += 1

    def add_error(self, code: str) -> None:
        """For an answer that is an error, also of a request that engines ran."""
        self.errors[code if code in self.errors or len(self.errors) < CODES_MAX else "other"] += 1

    def tell(self, now_s: float) -> None:
        """At most every LOG_S; nothing where nothing was refused since."""
        if now_s < self._told_at_s + LOG_S or self.by_reason == self._told:
            return
        new = self.by_reason - self._told
        log.warning("refused since the last such line: %s", ", ".join(f"{n} {reason}" for reason, n in new.items()))
        self._told, self._told_at_s = self.by_reason.copy(), now_s
