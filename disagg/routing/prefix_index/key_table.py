"""Run by the key of its first block: a hash table that grows by one bucket at a time, so that nobody ever waits for it.

(Linear hashing, W. Litwin 1980: the bucket to be split next moves through the table, whether it is full or not.)
"""

from __future__ import annotations

from array import array


class KeyTable:
    """Chains of runs through `self._after`, indexed by run. 8 bytes a run."""

    def __init__(self, keys: array[int]) -> None:
        self._keys = keys  # by run; those that are in the table do not change
        self._after = array("I", [0])  # by run: the next one in its bucket; 0: none
        self._buckets = array("I", [0])
        self._mask = 0  # of the least power of two that is no less than the buckets
        self._count = 0

    @property
    def memory_bytes(self) -> int:
        return self._after.__sizeof__() + self._buckets.__sizeof__()

    def grow(self) -> None:
        """There is one run more."""
        self._after.append(0)

    def find(self, key: int) -> int:
        """The run whose first block has this key; 0 if there is none."""
        bucket = key >> 8 & self._mask
        if bucket >= len(self._buckets):
            bucket = key >> 8 & self._mask >> 1
        run = self._buckets[bucket]
        keys, after = self._keys, self._after
        while run and keys[run] != key:
            run = after[run]
        return run

    def add(self, run: int) -> None:
        self._count += 1
        if self._count > len(self._buckets):
            self._split()
        bucket = self._bucket(run)
        self._after[run] = self._buckets[bucket]
        self._buckets[bucket] = run

    def remove(self, run: int) -> None:
        self._count -= 1
        self._replace(run, self._after[run])

    def replace(self, run: int, other: int) -> None:
        """Another run, with the same key, takes the place of this one."""
        self._after[other] = self._after[run]
        self._replace(run, other)

    def _replace(self, run: int, other: int) -> None:
        bucket = self._bucket(run)
        at = self._buckets[bucket]
        if at == run:
            self._buckets[bucket] = other
            return
        while self._after[at] != run:
            at = self._after[at]
        self._after[at] = other

    def _bucket(self, run: int) -> int:
        bucket = self._keys[run] >> 8 & self._mask
        return bucket if bucket < len(self._buckets) else bucket & self._mask >> 1

    def _split(self) -> None:
        """Shares the runs of one bucket between itself and a new one."""
        new = len(self._buckets)
        if new > self._mask:
            self._mask = 2 * self._mask + 1
        old = new & self._mask >> 1
        run = self._buckets[old]
        self._buckets[old] = 0
        self._buckets.append(0)
        while run:
            after = self._after[run]
            bucket = self._bucket(run)
            self._after[run] = self._buckets[bucket]
            self._buckets[bucket] = run
            run = after
