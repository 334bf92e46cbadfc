"""The KV blocks that one dp rank holds, as a tree: a block's parent is the one before it in its prompt.

Way:   RankCache (rank.py) names the blocks that came and went -> [HeldBlocks] -> Changes, and snapshots
In:    block keys of a whole prefix each, so that equal keys are the same block; which tier each is in
Owns:  the tree. A block is dropped when no tier has it
Fails: Confused where a block would be nearer than the one before it: caches give up what comes last first, so
       something that was said is missing
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator

import msgspec

from disagg.kv_events.changes import CLEARED, REMOVED, STORED, Change
from disagg.kv_events.events import Tier

NOWHERE, HOST, DEVICE = range(3)  # the nearest tier that has a block
KEY_BYTES = 8
RECENT_PATHS = 256
BLOCKS_OF_A_FRAME = 1000  # of a snapshot: looking at them takes a millisecond


class Confused(Exception):
    """What a scheduler said does not fit what it said before."""


class Block(msgspec.Struct, eq=False, gc=False):  # parents know no children, so there are no cycles
    """`on_device`: how many of the scheduler's nodes have it there: two, where a page is no part of a block, or where
    what a node has depends on the id that follows it (EAGLE). `nearest`: as of the last `settle`, which is what
    frontends know."""

    key: int
    parent: Block | None  # None: a root's
    depth: int  # blocks up to here
    on_device: int = 0
    in_host: bool = False
    nearest: int = NOWHERE
    held_after: int = 0  # children that some tier has
    near_after: int = 0  # those that are on the device


def root(key: int) -> Block:
    """Where the prompts of one namespace begin. It has no tokens, and is everywhere."""
    return Block(key, None, 0, nearest=DEVICE)


class HeldBlocks:
    """`put` and `take` as events come; `settle` once what happened at the same time has been said."""

    def __init__(self) -> None:
        self._blocks: dict[int, Block] = {}
        self._touched: dict[Block, None] = {}
        self._recent = _Recent()

    def __len__(self) -> int:
        return len(self._blocks)

    def child(self, parent: Block, key: int) -> Block:
        """The block of that key, which may be held nowhere yet."""
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = Block(key, parent, parent.depth + 1)
            self._touched[block] = None
        return block

    def put(self, block: Block, tier: Tier) -> None:
        if tier == Tier.DEVICE:
            block.on_device += 1
        else:
            block.in_host = True
        self._touched[block] = None

    def take(self, block: Block, tier: Tier) -> None:
        if tier == Tier.HOST:
            block.in_host = False
        elif block.on_device:
            block.on_device -= 1
        self._touched[block] = None

    def clear(self) -> list[Change]:
        self._blocks.clear()
        self._touched.clear()
        return [Change(CLEARED)]

    def settle(self) -> list[Change]:
        """What has changed since the last time. What is gone comes first; what a run follows comes before it."""
        touched, self._touched = self._touched, {}
        nearer, farther = list[Block](), list[Block]()
        for block in touched:
            now = DEVICE if block.on_device else HOST if block.in_host else NOWHERE
            if now > block.nearest:
                nearer.append(block)
            elif now < block.nearest:
                farther.append(block)
            elif not now:
                self._blocks.pop(block.key, None)  # it only lay on the way to another one
            if now != block.nearest:
                self._count(block, now)
        self._check(nearer, farther)
        paths = _Paths(self._recent)
        changes = [paths.change(REMOVED, _REMOVED_FROM[last.nearest], last, count) for last, count in _runs(farther)]
        changes += [paths.change(STORED, _STORED_IN[last.nearest], last, count) for last, count in _runs(nearer)]
        for block in farther:
            if block.nearest == NOWHERE:
                del self._blocks[block.key]
        return changes

    def _count(self, block: Block, now: int) -> None:
        parent, before = block.parent, block.nearest
        assert parent is not None
        parent.held_after += (now != NOWHERE) - (before != NOWHERE)
        parent.near_after += (now == DEVICE) - (before == DEVICE)
        block.nearest = now

    def _check(self, nearer: Iterable[Block], farther: Iterable[Block]) -> None:
        for block in nearer:
            assert block.parent is not None
            if block.parent.nearest < block.nearest:
                raise Confused("a block is held, and the one before it is not")
        for block in farther:
            if block.near_after if block.nearest == HOST else block.held_after:
                raise Confused("a block is gone, and one after it is not")

    def snapshot(self) -> Iterator[list[Change]]:
        """All that is held, a frame at a time. Blocks may come and go between two frames: each frame is what is so
        when it is asked for, and whoever also gets all changes from the first frame on knows all in the end."""
        told, paths, changes, looked_at = set[Block](), _Paths(self._recent), list[Change](), 0
        for block in list(self._blocks.values()):
            looked_at += 1
            is_last = not (block.near_after if block.nearest == DEVICE else block.held_after)
            if block.nearest != NOWHERE and is_last and self._blocks.get(block.key) is block:  # else it is gone
                change = paths.change(STORED, _STORED_IN[block.nearest], block, _untold(block, told))
                changes.append(change)
                looked_at += len(change.keys) // KEY_BYTES
            if looked_at >= BLOCKS_OF_A_FRAME:
                yield changes
                paths, changes, looked_at = _Paths(self._recent), [], 0
        yield changes


_REMOVED_FROM = {NOWHERE: Tier.HOST, HOST: Tier.DEVICE}  # by where they are now
_STORED_IN = {HOST: Tier.HOST, DEVICE: Tier.DEVICE}


def _untold(block: Block, told: set[Block]) -> int:
    """How many blocks, it and those just before it in the same tier, are not told yet. They are from now on."""
    count, each = 0, block
    while each.depth and each.nearest == block.nearest and each not in told:
        told.add(each)
        count += 1
        assert each.parent is not None
        each = each.parent
    return count


def _runs(blocks: list[Block]) -> list[tuple[Block, int]]:
    """The blocks in runs of parents and children that are in the same tier now: (the last one, how many); the deepest
    first."""
    runs, left = list[tuple[Block, int]](), dict.fromkeys(sorted(blocks, key=_depth, reverse=True))
    while left:
        last = next(iter(left))
        del left[last]
        count, parent = 1, last.parent
        while parent is not None and parent in left and parent.nearest == last.nearest:
            del left[parent]
            count, parent = count + 1, parent.parent
        runs.append((last, count))
    return runs


def _depth(block: Block) -> int:
    return block.depth


class _Recent:
    """Paths of blocks that changes ended at or before lately: the next ones are mostly near. A key stands for a whole
    path, so that what is here stays true."""

    def __init__(self) -> None:
        self._paths: dict[int, bytes] = {}  # by the last key, the least recent first

    def path(self, last: Block) -> bytes:
        """The keys of the blocks up to this one."""
        new, each, paths = list[int](), last, self._paths
        while each.depth and each.key not in paths:
            new.append(each.key)
            assert each.parent is not None
            each = each.parent
        path = paths.pop(each.key, b"") + array("Q", reversed(new)).tobytes()
        self.keep(path)
        return path

    def keep(self, path: bytes) -> None:
        if path:
            self._paths[int.from_bytes(path[-KEY_BYTES:], sys.byteorder)] = path
            if len(self._paths) > RECENT_PATHS:
                del self._paths[next(iter(self._paths))]


class _Paths:
    """Writes the changes of one frame."""

    def __init__(self, recent: _Recent) -> None:
        self._recent, self._before = recent, b""

    def change(self, kind: str, tier: Tier, last: Block, count: int) -> Change:
        """`last`: of the `count` blocks that change."""
        path, before = self._recent.path(last), self._before
        if kind == REMOVED:
            self._recent.keep(path[: -count * KEY_BYTES])
        shared = _common_keys(before, path)
        self._before = path
        return Change(kind, tier, shared, path[shared * KEY_BYTES :], count)


def _common_keys(one: bytes, other: bytes) -> int:
    """How many keys both begin with: by halving, as comparing bytes costs next to nothing."""
    low, high = 0, min(len(one), len(other)) // KEY_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        if one[: middle * KEY_BYTES] == other[: middle * KEY_BYTES]:
            low = middle
        else:
            high = middle - 1
    return low
