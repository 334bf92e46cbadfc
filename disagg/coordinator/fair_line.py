"""A waiting line that is fair to keys: who sends much waits for himself, not in front of others.

Way:   Admission -> [FairLine.add]; each look at who is next goes through it in order
In:    a key (whose request it is), a priority, and what the request costs: prompt tokens to read
Owns:  the order. Higher priorities first; within one, by start tags; of one key first come, first served
Source: start-time fair queueing (P. Goyal, H. Vin, H. Cheng, 1996), to which deficit round robin comes near. The start
        tag of a request is S = max(V, F of its key); then F = S + cost. V is the greatest S that was served
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
KEYS_MAX = 10_000  # whose account is kept before those that owe nothing are dropped


class FairLine(Generic[T]):
    """Items in the order in which they are to be served."""

    def __init__(self) -> None:
        self._entries: list[tuple[int, float, int, T]] = []  # minus priority, start tag, number
        self._at: dict[T, tuple[int, float, int]] = {}
        self._numbers = itertools.count()
        self._served = 0.0  # V
        self._owed: dict[bytes, float] = {}  # F

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        """In order. Items may be taken out while it goes on."""
        for *_, item in list(self._entries):
            if item in self._at:
                yield item

    def __contains__(self, item: T) -> bool:
        return item in self._at

    @property
    def least_priority(self) -> int:
        """Of those that wait; 0 where nobody does."""
        return -self._entries[-1][0] if self._entries else 0

    def add(self, item: T, key: bytes, cost: float, priority: int = 0) -> None:
        """`key`: b"" where requests have no owner: then all are one owner's, first come, first served."""
        start = max(self._served, self._owed.get(key, 0.0))
        self._owed[key] = start + cost
        if len(self._owed) > KEYS_MAX:
            self._owed = {each: owed for each, owed in self._owed.items() if owed > self._served}
        place = (-priority, start, next(self._numbers))
        self._at[item] = place
        insort(self._entries, (*place, item))

    def serve(self, item: T) -> None:
        """Takes it out: it has what it waited for."""
        self._served = max(self._served, self._at[item][1])
        self.remove(item)

    def remove(self, item: T) -> None:
        """Takes it out: it waits no more. Its key has paid for it all the same."""
        place = self._at.pop(item)
        del self._entries[bisect_left(self._entries, place, key=lambda entry: entry[:3])]
        if not self._entries:
            self._owed.clear()
            self._served = 0.0
