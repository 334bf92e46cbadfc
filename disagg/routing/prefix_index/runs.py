"""A radix tree of runs: consecutive blocks of a path that are held alike, as columns of numbers.

A run is a number from 1. Run 0 stands for the empty path: the runs that begin a path are its children. A run takes 44
bytes, and 4 bits a block (fingerprints.py).

Children are found by the key of their first block (key_table.py). After a run was split at a place that only its
fingerprints tell, the first key of its lower part is unknown: it is `tail_of` the upper part, at most one to a run.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from disagg.routing.prefix_index.fingerprints import UNIT_BLOCKS, UNIT_BYTES, Arena, units_of
from disagg.routing.prefix_index.holders import Holders
from disagg.routing.prefix_index.key_table import KeyTable

RUN_BLOCKS_MAX = 512  # so that no operation on one run takes long, and freed places are of like sizes
_number = int.from_bytes
_RUN_BYTES = 44 * 17 // 16  # arrays grow by a 16th


class Runs:
    """The tree. It is changed by `add`, `lengthen`, `shorten`, `split`, `join`, `free` and `hold` alone."""

    def __init__(self) -> None:
        self.keys = array("Q", [0])  # of the first block; 0: unknown
        self.ends = array("I", [0])  # blocks from the path's start to the run's end
        self.parents = array("I", [0])
        self.children = array("I", [0])  # the first one; a tail is always first
        self.holders = array("Q", [0])  # see holders.py
        self._next = array("I", [0])  # among siblings
        self._previous = array("I", [0])
        self._places = array("I", [0])  # of fingerprints
        self._free = array("I")
        self.sets = Holders()
        self.table = KeyTable(self.keys)
        self._arena = Arena()
        self.count = 0
        self.blocks = 0

    @property
    def memory_bytes(self) -> int:
        columns = (
            self.keys, self.ends, self.parents, self.children, self.holders, self._next, self._previous, self._places,
            self._free,
        )  # fmt: skip
        return (
            sum(column.__sizeof__() for column in columns)
            + self.table.memory_bytes
            + self._arena.memory_bytes
            + self.sets.memory_bytes
        )

    @property
    def memory_bytes_at_least(self) -> int:
        """Nearly `memory_bytes`, at once."""
        return len(self.keys) * _RUN_BYTES + self._arena.chunk_bytes + self.sets.memory_bytes

    def blocks_free(self) -> int:
        """How many blocks a run can have that needs no more memory than was freed."""
        return self._arena.units_free * UNIT_BLOCKS - UNIT_BLOCKS if len(self._free) > RUN_BLOCKS_MAX else 0

    @property
    def numbers(self) -> int:
        """One more than the highest number of a run so far."""
        return len(self.keys)

    def start(self, run: int) -> int:
        return self.ends[self.parents[run]]

    def tail_of(self, run: int) -> int:
        """The child whose first key is unknown; 0 if there is none."""
        child = self.children[run]
        return child if child and not self.keys[child] else 0

    def children_of(self, run: int) -> Iterator[int]:
        child = self.children[run]
        while child:
            yield child
            child = self._next[child]

    def only_child_of(self, run: int) -> int:
        """0 if it has none, or several."""
        child = self.children[run]
        return child if child and not self._next[child] else 0

    def common(self, run: int, start: int, prints: bytes, length: int) -> int:
        """How far a path of this length follows the run that begins at `start`: to a place between that and its end."""
        end = self.ends[run]
        stop = end if end < length else length
        first, last = start // UNIT_BLOCKS, -(-stop // UNIT_BLOCKS)
        ours = self._arena.read(self._places[run], last - first)
        theirs = prints[first * UNIT_BYTES : last * UNIT_BYTES]
        if ours == theirs:
            return stop
        differing = (_number(ours, "little") ^ _number(theirs, "little")) >> start % UNIT_BLOCKS * 4
        if not differing:
            return stop
        place = start + ((differing & -differing).bit_length() - 1) // 4
        return place if place < stop else stop

    def hold(self, run: int, holders: int) -> None:
        before = self.holders[run]
        if before != holders:
            self.sets.retain(holders)
            self.sets.release(before)
            self.holders[run] = holders

    def add(self, parent: int, key: int, end: int, prints: bytes, holders: int) -> int:
        """A new child, of the blocks from the parent's end to `end` of the path whose fingerprints these are."""
        run = self._new()
        start = self.ends[parent]
        self.keys[run] = key
        self.ends[run] = end
        self._hang(run, parent)
        self.table.add(run)
        self._places[run] = self._put(start, end, prints)
        self.hold(run, holders)
        self.blocks += end - start
        return run

    def lengthen(self, run: int, end: int, prints: bytes) -> None:
        """A run without children goes on to `end`."""
        self.blocks += end - self.ends[run]
        self._print_anew(run, end, prints)

    def shorten(self, run: int, end: int, prints: bytes) -> None:
        """A run without children ends sooner. The path follows it as far as that."""
        self.blocks -= self.ends[run] - end
        self._print_anew(run, end, prints)

    def split(self, run: int, at: int, key: int) -> int:
        """The upper part, a new run; `run` is the lower part from now on. `key`: of the block at `at`; 0: unknown."""
        start, end, parent = self.start(run), self.ends[run], self.parents[run]
        upper = self._new()
        self.keys[upper] = self.keys[run]
        self.ends[upper] = at
        self._take_place(run, upper)
        self.children[upper] = run
        self._next[run] = self._previous[run] = 0
        self.parents[upper], self.parents[run] = parent, upper
        self.keys[run] = 0
        self.hold(upper, self.holders[run])

        first, last = units_of(start, end)
        prints = bytes(self._arena.read(self._places[run], last - first))
        self._arena.free(self._places[run], last - first)
        above, below = units_of(start, at)[1] - first, at // UNIT_BLOCKS - first
        self._places[upper] = self._arena.put(prints[: above * UNIT_BYTES])
        self._places[run] = self._arena.put(prints[below * UNIT_BYTES :])
        if key:
            self.learn(run, key)
        return upper

    def learn(self, tail: int, key: int) -> None:
        """The first key of a tail is known now. Another child may have it already: the tail remains one."""
        if not self.table.find(key):
            self.keys[tail] = key
            self.table.add(tail)

    def join(self, upper: int) -> None:
        """A run whose only child is held alike becomes one with it, under the child's number."""
        run = self.children[upper]
        start, at, end = self.start(upper), self.ends[upper], self.ends[run]
        first, middle = units_of(start, at)
        below, last = units_of(at, end)
        above = int.from_bytes(self._arena.read(self._places[upper], middle - first), "little")
        under = int.from_bytes(self._arena.read(self._places[run], last - below), "little")
        offset = (at - first * UNIT_BLOCKS) * 4
        both = above & (1 << offset) - 1 | under >> at % UNIT_BLOCKS * 4 << offset
        self._arena.free(self._places[run], last - below)
        self._places[run] = self._arena.put(both.to_bytes((last - first) * UNIT_BYTES, "little"))
        self._arena.free(self._places[upper], middle - first)

        if self.keys[run]:
            self.table.remove(run)
        self.keys[run] = self.keys[upper]
        self._take_place(upper, run)
        self.parents[run] = self.parents[upper]
        self._forget(upper)

    def free(self, run: int) -> int:
        """A run without children goes. Its parent."""
        start, end, parent = self.start(run), self.ends[run], self.parents[run]
        if self.keys[run]:
            self.table.remove(run)
        before, after = self._previous[run], self._next[run]
        if before:
            self._next[before] = after
        else:
            self.children[parent] = after
        if after:
            self._previous[after] = before
        first, last = units_of(start, end)
        self._arena.free(self._places[run], last - first)
        self.blocks -= end - start
        self._forget(run)
        return parent

    def _new(self) -> int:
        self.count += 1
        if self._free:
            return self._free.pop()
        for column in (self.ends, self.parents, self.children, self._next, self._previous, self._places):
            column.append(0)
        self.keys.append(0)
        self.holders.append(0)
        self.table.grow()
        return len(self.keys) - 1

    def _forget(self, run: int) -> None:
        self.hold(run, 0)
        self.keys[run] = self.ends[run] = self.parents[run] = self.children[run] = 0
        self._next[run] = self._previous[run] = 0
        self._free.append(run)
        self.count -= 1
        if not self.count:
            self._arena.free_all()

    def _hang(self, run: int, parent: int) -> None:
        """Makes it a child: the first, or the next after a tail."""
        before = self.tail_of(parent)
        after = self._next[before] if before else self.children[parent]
        self.parents[run] = parent
        self._previous[run], self._next[run] = before, after
        if before:
            self._next[before] = run
        else:
            self.children[parent] = run
        if after:
            self._previous[after] = run

    def _take_place(self, run: int, other: int) -> None:
        """`other` stands where `run` stood, among its siblings and in the table."""
        before, after = self._previous[run], self._next[run]
        self._previous[other], self._next[other] = before, after
        if before:
            self._next[before] = other
        else:
            self.children[self.parents[run]] = other
        if after:
            self._previous[after] = other
        if self.keys[run]:
            self.table.replace(run, other)

    def _put(self, start: int, end: int, prints: bytes) -> int:
        first, last = units_of(start, end)
        return self._arena.put(prints[first * UNIT_BYTES : last * UNIT_BYTES])

    def _print_anew(self, run: int, end: int, prints: bytes) -> None:
        start = self.start(run)
        first, last = units_of(start, self.ends[run])
        if units_of(start, end)[1] != last or end > self.ends[run]:
            self._arena.free(self._places[run], last - first)
            self._places[run] = self._put(start, end, prints)
        self.ends[run] = end
