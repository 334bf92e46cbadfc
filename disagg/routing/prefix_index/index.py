"""Which ranks hold which prefixes, in a radix tree of runs that all ranks share.

Way:   engines' KV events, or PredictedCache -> [PrefixIndex] -> policies, by `overlaps` of a request's path
In:    paths of block keys (kv_events/blocks.py), always from the first block on
Owns:  the tree. Nothing here waits. Each call takes time by the runs on its path, not by blocks; `clear` takes none,
       what it leaves behind is freed a little at a time by the calls that follow
Fails: never. When memory runs out, the rank that holds most is forgotten: see `forgotten`

A rank holds whole prefixes: what it loses in the middle of a path, it loses with all that follows. That holds in each
tier by itself; "anywhere" is the deeper of the two.

What is exact, and what is not. The ends of what a rank holds are boundaries of runs, and exact. Where a path leaves a
run at a place where none has left it before, fingerprints of 4 bits a block tell the place: a block too deep once in 16
times, two once in 256. To part a run there for good, one wants to be surer, for where two branches share a block that
is not the same, the loss of one takes the other along. So the run is parted 2 blocks above (exactly at the place where
`new` tells it), and these blocks are in both branches, under the holders of each. Hence:

- `overlaps` may credit a rank with up to 2 blocks too few beside a branch, and by chance with one too many;
- by chance (1.4 % of branches in a stress, docs/decisions.md) a rank loses a branch here that it still holds there,
  when it drops the one beside it. It is credited again when that is stored again.
"""

from __future__ import annotations

from array import array
from operator import itemgetter

from disagg.kv_events.events import Tier
from disagg.routing.prefix_index.fingerprints import fingerprints
from disagg.routing.prefix_index.held import Held
from disagg.routing.prefix_index.members import Members, Slots
from disagg.routing.prefix_index.runs import RUN_BLOCKS_MAX, Runs

SURE_BLOCKS = 3  # so many agree by chance once in 4096 times
PIECE_BLOCKS_MIN = 8  # of a run, when memory is used up and small places are free
SWEPT_BY_A_CALL = 8  # runs looked at, so that a call takes no longer for them than for its own


class PrefixIndex:
    """A slot is a number that its user gives to a rank. After `clear` it may be given to another at once."""

    def __init__(self, bytes_max: int = 1 << 30) -> None:
        self.bytes_max = bytes_max
        self.forgotten = 0  # ranks, because memory ran out
        self.refused = 0  # stores of which the end was left out, because memory had not been freed yet
        self._runs = Runs()
        self._members = Members()
        self._swept_to = 1  # of the sweep that goes on

    def store(self, slot: int, path: array[int], tier: Tier = Tier.DEVICE, new: int | None = None) -> None:
        """The rank holds every block of the path. `new`: how many of the last ones it did not hold before, if known."""
        length = len(path)
        if not length:
            return
        piece = self._room()
        member = self._members.of(slot)
        prints = fingerprints(path)
        known = 0 if new is None else length - new
        run = matched = 0
        while True:
            ways = self._descend(path, prints, run, matched, member=member, known=known)
            run, matched = max(ways, key=itemgetter(1))
            other = self._other_than_told(run, matched, member, int(tier), known)
            if other:
                run, matched = self._split(other, known), known
            elif matched < self._runs.ends[run]:
                run = self._part(run, matched, length)
                matched = self._runs.ends[run]
            else:
                break
        if matched < length:
            if piece:
                self._grow(run, path, prints, member, int(tier), piece)
            else:
                self.refused += 1
        self._hold(run, member, int(tier))
        self._sweep_a_little()

    def cut(self, slot: int, path: array[int], keep: int, tier: Tier = Tier.DEVICE) -> None:
        """Of this path the rank holds no more than the first `keep` blocks in this tier, or in these, and nothing that
        follows the block after them."""
        member = self._members.find(slot)
        if member >= 0 and keep < len(path):
            prints = fingerprints(path)
            for run, matched in self._held_at(member, path, prints, keep):
                self._drop(run, matched, member, int(tier), path, prints, keep)
        self._sweep_a_little()

    def clear(self, slot: int) -> None:
        """The rank holds nothing. The slot may be given to another rank at once."""
        self._members.clear(slot)

    def overlaps(self, path: array[int]) -> list[Held]:
        """Who holds how much of the path: the deepest first; each group's slots are in all groups after it, too."""
        runs, sets, members = self._runs, self._runs.sets, self._members
        found: dict[int, int] = {}  # depth by run
        ends = self._descend(path, fingerprints(path), guess=True)
        for run, depth in ends:
            while run and run not in found:
                found[run] = depth
                run = runs.parents[run]
                depth = runs.ends[run]
        groups: list[Held] = []
        before = device = host = 0
        for run in sorted(found, key=found.__getitem__, reverse=True) if len(ends) > 1 else found:
            holders = runs.holders[run]
            if holders != before:
                before = holders
                masks = sets.masks(holders)
                if masks[0] | device != device or masks[1] | host != host:
                    device |= masks[0]
                    host |= masks[1]
                    _add(groups, found[run], members.slots((device, host)))
        return groups

    def sweep(self, runs_max: int = 500) -> bool:
        """Frees what cleared ranks held, and looks at no more runs than this: 500 take about 0.1 ms. False when nothing
        is left to free. Stores and cuts do a little of it, too."""
        runs, members = self._runs, self._members
        if not members.dying and not members.condemn():
            return False
        dying = members.dying
        stop = min(self._swept_to + runs_max, runs.numbers)
        for run in range(self._swept_to, stop):
            holders = runs.holders[run]
            if holders:
                left = runs.sets.without(holders, dying)
                if left != holders:
                    self._swept(run, left)
        self._swept_to = stop
        if stop == runs.numbers:
            members.bury()
            self._swept_to = 1
        return members.to_sweep

    def blocks_of(self, slot: int) -> int:
        """Blocks that the rank holds, in any tier."""
        return self._members.blocks_of(slot)

    @property
    def blocks(self) -> int:
        """Different blocks in the tree."""
        return self._runs.blocks

    @property
    def runs(self) -> int:
        return self._runs.count

    @property
    def memory_bytes(self) -> int:
        return self._runs.memory_bytes

    # the way down

    def _descend(
        self,
        path: array[int],
        prints: bytes,
        run: int = 0,
        matched: int = 0,
        guess: bool = False,
        member: int = -1,
        known: int = 0,
    ) -> list[tuple[int, int]]:
        """The last run that the path enters, and how many of the path's blocks are in the tree, where it leads through
        this run. Several, where the first blocks of two branches may be the same.

        `guess`: where there is no other way, a tail is entered that agrees with the path for a block or two. `known`:
        so many blocks of the path the member holds already, which may tell that a tail is the way.
        """
        runs, length = self._runs, len(path)
        find, common, ends, keys, children = runs.table.find, runs.common, runs.ends, runs.keys, runs.children
        found, ways = [], [(run, matched)]
        while ways:
            run, matched = ways.pop()
            while matched < length and matched == ends[run]:
                key = path[matched]
                child, tail = find(key), children[run]
                if tail and keys[tail]:
                    tail = 0  # as Runs.tail_of says
                follows = common(child, matched, prints, length) if child else 0
                if tail:
                    along = common(tail, matched, prints, length)
                    is_sure = along - matched >= SURE_BLOCKS
                    if not is_sure and not child and matched < known and along >= min(known, ends[tail]):
                        is_sure = self._is_held(tail, member)
                    is_guessed = guess and not child and along > matched
                    if is_sure or is_guessed or self._enters(tail, matched, along, path, prints):
                        if child:
                            ways.append((child, follows))
                        elif is_sure:
                            runs.learn(tail, key)
                        child, follows = tail, along
                if not child:
                    break
                if runs.parents[child] != run:
                    found.append((run, matched))
                run, matched = child, follows
            if (run, matched) not in found:
                found.append((run, matched))
        return found

    def _enters(self, tail: int, start: int, along: int, path: array[int], prints: bytes) -> bool:
        """Whether the path surely leads through the tail, with which it goes along for less than SURE_BLOCKS."""
        runs, length = self._runs, len(path)
        while tail and along == runs.ends[tail] and along < length:
            child = runs.table.find(path[along])
            if child and runs.parents[child] == tail:
                return True
            tail = runs.tail_of(tail)
            if tail:
                along = runs.common(tail, along, prints, length)
                if along - start >= SURE_BLOCKS:
                    return True
        return False

    # storing

    def _other_than_told(self, run: int, matched: int, member: int, tier: int, known: int) -> int:
        """The run that the path leaves at block `known`, whatever fingerprints say: the member holds it, and says that
        it has not held the path's block there. 0 if there is none."""
        runs = self._runs
        if known <= matched < known + SURE_BLOCKS:
            while run and runs.start(run) >= known:
                run = runs.parents[run]
            if known < runs.ends[run] and runs.sets.tiers(runs.holders[run], member) & tier:
                return run
        return 0

    def _part(self, run: int, matched: int, length: int) -> int:
        """Splits the run where the path ends in it or leaves it. The upper part."""
        sure = matched if matched == length else matched - SURE_BLOCKS + 1
        return self._split(run, max(self._runs.start(run) + 1, sure))

    def _split(self, run: int, at: int, key: int = 0) -> int:
        """The upper part. A sweep may have passed its number already, so it goes without those who are swept."""
        upper = self._runs.split(run, at, key)
        if self._members.dying:
            self._runs.hold(upper, self._runs.sets.without(self._runs.holders[upper], self._members.dying))
        return upper

    def _grow(self, run: int, path: array[int], prints: bytes, member: int, tier: int, piece: int) -> None:
        """Puts the rest of the path into the tree, below this run, in runs of at most `piece` blocks."""
        runs, length = self._runs, len(path)
        holders = runs.sets.set(0, member, tier)
        self._members.count(member, length - runs.ends[run])
        if run and not runs.children[run] and runs.holders[run] == holders:
            end = min(length, runs.start(run) + piece)
            if end > runs.ends[run]:
                runs.lengthen(run, end, prints)
        while (start := runs.ends[run]) < length:
            run = runs.add(run, path[start], min(length, start + piece), prints, holders)

    def _hold(self, run: int, member: int, tier: int) -> None:
        """The rank holds this run and all above it."""
        runs, sets = self._runs, self._runs.sets
        tiers = 0
        while run and not tiers & tier:
            parent, before = runs.parents[run], runs.holders[run]
            tiers = sets.tiers(before, member)
            if not tiers & tier:
                runs.hold(run, sets.set(before, member, tiers | tier))
                if not tiers:
                    self._members.count(member, runs.ends[run] - runs.ends[parent])
            self._join(run)
            run = parent

    def _room(self) -> int:
        """How many blocks a new run may have; 0 if memory ran out. The rank that holds most is forgotten then, and what
        it held is freed by and by."""
        if self._runs.memory_bytes_at_least < self.bytes_max:
            return RUN_BLOCKS_MAX
        piece = self._runs.blocks_free()
        if piece < PIECE_BLOCKS_MIN:
            if not self._members.to_sweep and (slot := self._members.largest()) is not None:
                self._members.clear(slot)
                self.forgotten += 1
            self.sweep()
            piece = self._runs.blocks_free()
        return piece if piece >= PIECE_BLOCKS_MIN else 0

    # losing

    def _held_at(self, member: int, path: array[int], prints: bytes, keep: int) -> list[tuple[int, int]]:
        """The run in which the rank holds block `keep` of the path, and how far the path follows it. Several, where
        that may be in more than one branch: better to forget one too many than to believe in one that is gone."""
        runs, length = self._runs, len(path)
        found: list[tuple[int, int]] = []
        explained = (
            False  # the path ends where a branch does, that nobody holds more of: it is that branch that is lost
        )
        ways = [(0, 0, 0)]
        while ways:
            top, run, matched = ways.pop()
            is_end = matched < runs.ends[run] or matched == length
            if matched > keep and not top:
                top = run
            if is_end or not (children := self._children_held(run, path[matched], member)):
                if top:
                    found.append((top, matched))
                    explained |= matched == length == runs.ends[run] and not runs.children[run]
                continue
            ways += [(top, child, runs.common(child, matched, prints, length)) for child in children]
        if not explained:
            return found
        return [
            (run, matched)
            for run, matched in found
            if matched == length or matched - keep >= SURE_BLOCKS or (runs.keys[run] and runs.start(run) == keep)
        ]

    def _children_held(self, run: int, key: int, member: int) -> list[int]:
        """Those that a path with this key next may go on in, as far as the member holds them."""
        children = (self._runs.table.find(key), self._runs.tail_of(run))
        return [child for child in children if child and self._is_held(child, member)]

    def _is_held(self, run: int, member: int) -> bool:
        return bool(self._runs.sets.tiers(self._runs.holders[run], member))

    def _drop(self, run: int, matched: int, member: int, tier: int, path: array[int], prints: bytes, keep: int) -> None:
        """The rank loses the run from block `keep` on, and all below it."""
        runs, start = self._runs, self._runs.start(run)
        tiers = runs.sets.tiers(runs.holders[run], member)
        if not tiers & tier:
            return
        if keep > start:
            if not tiers & ~tier and not runs.children[run] and runs.holders[run] == runs.sets.set(0, member, tiers):
                self._members.count(member, keep - runs.ends[run])
                runs.shorten(run, keep, prints)
                return
            is_sure = matched == len(path) or matched - keep >= SURE_BLOCKS
            self._split(run, keep, path[keep] if is_sure else 0)
        parent = runs.parents[run]
        below, lost = [run], []
        while below:
            run = below.pop()
            before = runs.holders[run]
            tiers = runs.sets.tiers(before, member)
            if tiers & tier:
                lost.append(run)
                runs.hold(run, runs.sets.set(before, member, tiers & ~tier))
                if not tiers & ~tier:
                    self._members.count(member, runs.start(run) - runs.ends[run])
                below.extend(runs.children_of(run))
        for run in reversed(lost):  # children before their parents
            self._tidy(run)
        self._join(parent)

    def _swept(self, run: int, left: int) -> None:
        parent = self._runs.parents[run]
        self._runs.hold(run, left)
        self._tidy(run)
        self._join(parent)

    def _sweep_a_little(self) -> None:
        if self._members.to_sweep:
            self.sweep(SWEPT_BY_A_CALL)

    def _tidy(self, run: int) -> None:
        """Frees a run that nobody holds, and those above it that were kept for its sake; or joins it with its child."""
        runs = self._runs
        if runs.holders[run]:
            self._join(run)
            return
        while runs.ends[run] and not runs.holders[run] and not runs.children[run]:
            run = runs.free(run)
        self._join(run)

    def _join(self, upper: int) -> None:
        """Joins a run with its child, where nothing keeps them apart any more."""
        runs = self._runs
        child = runs.only_child_of(upper)
        if (
            upper
            and child
            and runs.holders[upper] == runs.holders[child]
            and runs.ends[child] - runs.start(upper) <= RUN_BLOCKS_MAX
        ):
            runs.join(upper)


def _add(groups: list[Held], depth: int, slots: Slots) -> None:
    if groups and groups[-1].blocks == depth:
        groups.pop()  # another branch as deep as that
    if slots[1] and (not groups or groups[-1].device != slots[0] or groups[-1].anywhere != slots[1]):
        groups.append(Held(depth, *slots))
