"""A scheduler's radix tree without a tree: which pages of which prompts are held where, and what it says of them."""

from __future__ import annotations

import itertools
from array import array
from random import Random

from disagg.kv_events.blocks import BlockHasher
from disagg.kv_events.changes import CLEARED, STORED, Change, spelt_out
from disagg.kv_events.events import At, Begun, Event, Removed, Stored, Tier

BLOCK = 4  # tokens of a KV block
HASHER = BlockHasher(b"a secret of tests" * 2, BLOCK)

Node = tuple[str, tuple[int, ...]]  # adapter, and all ids up to its end


def packed(ids: tuple[int, ...]) -> bytes:
    return array("I", ids).tobytes()


class NaiveCache:
    """Nodes are whole prefixes. Each is held in tiers; what a node adds to its parent is what SGLang's node has."""

    def __init__(self, random: Random, page: int = 1) -> None:
        self._random, self._page = random, page
        self._numbers = itertools.count(1)
        self.tiers: dict[Node, Tier] = {}
        self.names: dict[Node, int] = {}
        self.said: list[Event] = [Begun(0)]

    def parent(self, node: Node) -> Node:
        """The longest other node that it begins with."""
        adapter, ids = node
        before = [n for a, n in self.tiers if a == adapter and len(n) < len(ids) and ids[: len(n)] == n]
        return adapter, max(before, key=len, default=())

    def children(self, node: Node) -> list[Node]:
        return [each for each in self.tiers if self.parent(each) == node and each[0] == node[0]]

    def name(self, node: Node) -> int:
        if not node[1]:
            return 0
        if node not in self.names:
            parent = self.parent(node)
            before = self.name(parent)
            self.names[node] = name = next(self._numbers)
            self.said.append(At(name, before, packed(node[1][len(parent[1]) :]), "" if before else node[0]))
        return self.names[node]

    def insert(self, adapter: str, ids: tuple[int, ...]) -> None:
        ids = ids[: len(ids) // self._page * self._page]
        if not ids or (adapter, ids) in self.tiers:
            return
        shared = (0, (), Tier(0))
        for (a, other), tiers in self.tiers.items():
            common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ids, other, strict=False)))
            common = common // self._page * self._page
            if a == adapter and common > shared[0]:
                shared = (common, other, tiers)
        common, other, tiers = shared
        if common and (adapter, ids[:common]) not in self.tiers:
            self.tiers[adapter, ids[:common]] = tiers  # a split: nobody hears of it
        if common < len(ids):
            node = (adapter, ids)
            while (parent := self.parent(node))[1] and not self.tiers[parent] & Tier.DEVICE:
                self._store(parent, Tier.DEVICE)  # loaded back, the last first
                node = parent
            self.tiers[adapter, ids] = Tier(0)
            self._store((adapter, ids), Tier.DEVICE)

    def _store(self, node: Node, tier: Tier) -> None:
        self.tiers[node] |= tier
        self.said.append(Stored(self.name(node), len(node[1]) - len(self.parent(node)[1]), tier))

    def back_up(self) -> None:
        """A node's copy goes to host memory; those before it have been."""
        if self.tiers:
            node = self._random.choice(list(self.tiers))
            if self.tiers[node] & Tier.DEVICE:
                self._store(node, Tier.HOST)

    def evict(self) -> None:
        """A last node leaves a tier."""
        tier = self._random.choice([Tier.DEVICE, Tier.DEVICE, Tier.HOST])
        leaves = [n for n, has in self.tiers.items() if has & tier and self._may_leave(n, tier)]
        if leaves:
            node = self._random.choice(leaves)
            self.said.append(Removed(self.name(node), len(node[1]) - len(self.parent(node)[1]), tier))
            self.tiers[node] &= ~tier
            del self.names[node]
            if not self.tiers[node]:
                del self.tiers[node]

    def _may_leave(self, node: Node, tier: Tier) -> bool:
        left = self.tiers[node] & ~tier
        after = self.children(node)
        if tier is Tier.DEVICE and any(self.tiers[each] & Tier.DEVICE for each in after):
            return False
        return bool(left) or not after

    def held(self) -> dict[int, Tier]:
        """Block key -> the nearest tier that has all of the block."""
        found: dict[int, Tier] = {}
        for (adapter, ids), tiers in self.tiers.items():
            path = HASHER.path(ids, adapter)
            begin = len(self.parent((adapter, ids))[1]) // BLOCK
            for key in path[begin:]:
                found[key] = Tier.DEVICE if tiers & Tier.DEVICE else Tier.HOST
        return found


class Follower:
    """A frontend that believes what it is told."""

    def __init__(self) -> None:
        self.held: dict[int, Tier] = {}
        self._before: dict[int, int] = {}

    def hear(self, changes: list[Change]) -> None:
        for kind, tier, path, count in spelt_out(changes):
            before = 0
            for key in path:
                self._before[key] = before
                before = key
            if kind == CLEARED:
                self.held.clear()
            elif kind == STORED:
                for key in path[-count:]:
                    self.held[key] = tier
            else:
                gone = path[len(path) - count]
                for key in [key for key in self.held if self._follows(key, gone)]:
                    if tier is Tier.HOST:
                        del self.held[key]
                    elif self.held[key] is Tier.DEVICE:
                        self.held[key] = Tier.HOST

    def _follows(self, key: int, first: int) -> bool:
        while key and key != first:
            key = self._before[key]
        return key == first
