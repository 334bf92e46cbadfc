"""KV memory of one rank: what its legs hold, and a radix tree of prompts that were read; the oldest leaf goes first.

Way:   a leg's turn -> [match, lock, make_room] -> chunks -> [extend] -> the end of its transfer or answer -> [unlock]
In:    paths of chained keys: a key is equal where the whole prompt up to its block is
Owns:  tokens: those of legs (`own_tokens`), and blocks of the tree, of which some leg reads the locked ones
Fails: make_room says False where even an empty tree would not do; nothing has changed then
As:    SGLang's radix cache: nodes are runs of blocks, split where prompts part; a leaf goes as a whole
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable

# (whether blocks are new or gone, a path, where it ends, how many of its last blocks are meant)
OnEvent = Callable[[bool, "array[int]", int, int], None]
NO_PATH: array[int] = array("Q")


class Node:
    """The blocks path[start:end]; path[:start] are those of its parents. `path` is shared with whoever made it."""

    __slots__ = ("children", "end", "parent", "path", "readers", "start", "used")

    def __init__(self, path: array[int], start: int, end: int, parent: Node | None) -> None:
        self.path, self.start, self.end, self.parent = path, start, end, parent
        self.children: dict[int, Node] = {}  # by their first key
        self.readers = 0  # legs that read it, or one below
        self.used = 0  # when it was matched last, in matches


class PrefixCache:
    """`block_tokens` 0: nothing is cached."""

    def __init__(self, kv_tokens: int, block_tokens: int, on_event: OnEvent | None = None) -> None:
        self.kv_tokens, self.block_tokens = kv_tokens, block_tokens
        self.own_tokens = 0
        self.root = Node(NO_PATH, 0, 0, None)
        self.blocks = 0
        self._locked_blocks = 0
        self._uses = 0
        self._leaves: list[tuple[int, int, Node]] = []  # that may go, if `used` is still theirs
        self._numbers = 0
        self._on_event = on_event

    @property
    def locked_tokens(self) -> int:
        """Held by legs, their own and what they read of the tree."""
        return self.own_tokens + self._locked_blocks * self.block_tokens

    def match(self, path: array[int], blocks_max: int) -> Node:
        """The node where the longest cached beginning of `path` ends; `end` says how many blocks that is."""
        self._uses += 1
        return self._walk(self.root, path, min(blocks_max, len(path)) if self.block_tokens else 0)

    def lock(self, node: Node, above: Node | None = None) -> None:
        """One more leg reads it and what is before it, up to `above`, which the leg reads already."""
        at: Node | None = node
        while at is not None and at is not above:
            if not at.readers:
                self._locked_blocks += at.end - at.start
            at.readers += 1
            at = at.parent

    def unlock(self, node: Node) -> None:
        at: Node | None = node
        while at is not None:
            at.readers -= 1
            if not at.readers:
                self._locked_blocks -= at.end - at.start
                self._may_go(at)
            at = at.parent

    def make_room(self, tokens: int) -> bool:
        """Evicts until so many tokens are free."""
        lacking = self.own_tokens + self.blocks * self.block_tokens + tokens - self.kv_tokens
        if lacking <= 0:
            return True
        if lacking > (self.blocks - self._locked_blocks) * self.block_tokens:
            return False
        while lacking > 0:
            lacking -= self._evict_oldest() * self.block_tokens
        return True

    def extend(self, node: Node, path: array[int], blocks: int) -> Node:
        """A leg that reads `node` has computed its prompt up to `blocks`: the tree takes them over, and the leg reads
        them. Where another leg was quicker there is nothing to take."""
        if not self.block_tokens or blocks <= node.end:
            return node
        deepest = self._walk(node, path, blocks)
        new = blocks - deepest.end
        if new:
            leaf = Node(path, deepest.end, blocks, deepest)
            leaf.used = self._uses
            deepest.children[path[deepest.end]] = leaf
            deepest = leaf
            self.blocks += new
            if self._on_event is not None:
                self._on_event(True, path, blocks, new)
        self.lock(deepest, above=node)
        return deepest

    def _walk(self, node: Node, path: array[int], blocks_max: int) -> Node:
        """From `node` down, as far as `path` goes with the tree; the last node is split where they part."""
        while node.end < blocks_max:
            child = node.children.get(path[node.end])
            if child is None:
                break
            if child.end <= blocks_max and path[child.end - 1] == child.path[child.end - 1]:
                child.used = self._uses
                node = child
                continue
            low, high = child.start + 1, min(child.end, blocks_max)
            while low < high:  # keys are chained: equal ones come first
                middle = (low + high + 1) // 2
                if path[middle - 1] == child.path[middle - 1]:
                    low = middle
                else:
                    high = middle - 1
            return self._split(child, low)
        return node

    def _split(self, child: Node, at: int) -> Node:
        parent = child.parent
        assert parent is not None, "the root has no blocks"
        upper = Node(child.path, child.start, at, parent)
        upper.readers, upper.used = child.readers, self._uses
        upper.children[child.path[at]] = child
        parent.children[child.path[child.start]] = upper
        child.start, child.parent = at, upper
        return upper

    def _may_go(self, node: Node) -> None:
        if not node.readers and not node.children and node.parent is not None:
            self._numbers += 1
            heapq.heappush(self._leaves, (node.used, self._numbers, node))

    def _evict_oldest(self) -> int:
        """Returns how many blocks that gave."""
        while True:
            used, _, node = heapq.heappop(self._leaves)
            if node.readers or node.children or node.parent is None:
                continue
            if node.used != used:
                self._may_go(node)
                continue
            parent, count = node.parent, node.end - node.start
            del parent.children[node.path[node.start]]
            node.parent = None
            self.blocks -= count
            if self._on_event is not None:
                self._on_event(False, node.path, node.end, count)
            self._may_go(parent)
            return count
