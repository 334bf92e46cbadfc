"""The KV blocks of a trace's prompts as routing knows them: a path of keys, each for a whole prefix.

In:    a TraceRequest's own blocks, of whatever size
Out:   array('Q') of the keys of its full KV blocks: equal keys mean equal prompts up to there
Why:   a deployment hashes token ids (keyed by its secret); here the trace's ids stand for tokens, which are never made
"""

from __future__ import annotations

from array import array

from disagg.replay.traces.trace import TraceRequest

_MASK = (1 << 64) - 1
_ODD = 0x9E3779B97F4A7C15
_OTHER_ODD = 0xBF58476D1CE4E5B9


class Paths:
    """`seed` tells the prompts of one run from those of another. A session's prompts mostly go on from the one before,
    so its last path is kept."""

    def __init__(self, trace_block_tokens: int, kv_block_tokens: int, seed: int = 0) -> None:
        self._trace_block_tokens, self.kv_block_tokens, self.seed = trace_block_tokens, kv_block_tokens, seed
        self._last: dict[str, tuple[tuple[int, ...], array[int]]] = {}

    def of(self, request: TraceRequest) -> array[int]:
        """Where the trace has no blocks, no two prompts share anything."""
        count = request.prompt_tokens // self.kv_block_tokens
        if not request.blocks:
            return self._extended(array("Q"), (), count, request.number + 1)
        blocks = tuple(request.blocks)
        if not request.session:
            return self._extended(array("Q"), blocks, count, 0)
        before, path = self._last.get(request.session, ((), array("Q")))
        shared = _common(before, blocks) * self._trace_block_tokens // self.kv_block_tokens
        path = self._extended(path[: min(shared, count)], blocks, count, 0)
        self._last[request.session] = blocks, path
        return path

    def _extended(self, path: array[int], blocks: tuple[int, ...], count: int, own: int) -> array[int]:
        key = path[-1] if path else _mixed(self.seed, own)
        width, size = self._trace_block_tokens, self.kv_block_tokens
        at = -(-len(path) * size // width) if blocks else 0
        for index in range(len(path), count):
            while blocks and at * width < (index + 1) * size:
                key = _mixed(key, blocks[at] + 1)
                at += 1
            key = _mixed(key, 0)
            path.append(key)
        return path


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _mixed(key: int, value: int) -> int:
    key = ((key ^ value) * _ODD + value) & _MASK
    return (key ^ (key >> 29)) * _OTHER_ODD & _MASK | 1  # never 0
