"""How many descriptors a KV transfer needs once the pools have served for a while, and what that costs.

    python -m benchmarks.fragmentation [--requests 1500] [--pool-tokens 262144] [--json FILE]

Requests of a public trace (benchmarks/data) go through two pools that are always nearly full: a prefill's, which keeps
prompts for reuse and evicts the least recently used branches, and a decode's, which takes a prompt's pages at once and
then a page a request when one is full. SGLang's paged allocator is followed page for page in how its free list is
ordered (for page 1 it has another class, which disagg/sglang/plugins/kv_runs.py leaves alone):

  unsorted  what is freed is taken next: SGLang, aggregated
  sorted    freed pages wait; they are merged and sorted when the list runs short: SGLang, PD
  address   merged and sorted before every prompt: the lowest pages first
  runs      the shortest run that holds the whole prompt (or chunk) first, then scraps: disagg/sglang/plugins/kv_runs.py

A transfer's descriptor is a run of pages adjacent on both sides, once for each of the model's buffers.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from disagg.sglang.plugins.kv_runs import in_order

Pages = NDArray[np.int64]

TRACE = Path(__file__).parent / "data" / "mooncake-conversation-first-half.jsonl.gz"
BLOCK_TOKENS = 512  # of the trace's hashes
CHUNK_TOKENS = 8192  # SGLang's chunked_prefill_size on such cards: each chunk is allocated, and sent, for itself
BUFFERS, TOKEN_BYTES = 72, 144 << 10  # 36 layers, K and V: an 8B Qwen3
DESCRIPTOR_S, RATE_BYTE_S = 2.6e-6, 540e9  # measured on an H200: the first for single writes, the second adjacent
WARM = 0.4  # of the requests come before any is counted: the pools must be worn


class Pool:
    """SGLang's free list: an array of which the front is taken, and what was freed since it was last merged."""

    def __init__(self, pages: int, policy: str) -> None:
        self.pages, self.policy = pages, policy
        self._free: Pages = np.arange(1, pages + 1)
        self._staged: list[Pages] = []
        self.available = pages

    def extend(self, count: int) -> Pages:
        """A prompt's, or a chunk's."""
        if self.policy in ("address", "runs"):
            self._merge()
        if self.policy == "runs":
            self._free = in_order(torch.from_numpy(self._free), count).numpy()
        return self._take(count)

    def grow(self, count: int) -> Pages:
        """A page for each of so many requests."""
        return self._take(count)

    def release(self, pages: Pages) -> None:
        self.available += len(pages)
        if self.policy == "unsorted":
            self._free = np.concatenate((np.sort(pages), self._free))
        else:
            self._staged.append(pages)

    def _take(self, count: int) -> Pages:
        if count > len(self._free):
            self._merge()
        assert count <= len(self._free), "asked for more than is free"
        taken, self._free = self._free[:count], self._free[count:]
        self.available -= count
        return taken

    def _merge(self) -> None:
        if self._staged:
            self._free = np.sort(np.concatenate((self._free, *self._staged)))
            self._staged = []


def runs_of(ours: Pages, theirs: Pages) -> int:
    """As SGLang groups them: a run is broken where either side is."""
    return int(np.count_nonzero((np.diff(ours) != 1) | (np.diff(theirs) != 1))) + 1


@dataclass(slots=True)
class Ask:
    input_tokens: int
    output_tokens: int
    blocks: list[int]


@dataclass(slots=True)
class _Block:
    pages: Pages
    used_at: int
    parent: int | None
    children: int = 0
    is_locked: bool = False


class PrefixPool:
    """The prefill's pool behind a cache of prefixes, in blocks of the trace; the least recently used ends go first."""

    def __init__(self, pool: Pool, page_tokens: int) -> None:
        self._pool, self._page_tokens, self._now = pool, page_tokens, 0
        self._blocks: dict[int, _Block] = {}

    def prefill(self, ask: Ask) -> list[Pages]:
        """The prompt's pages by chunk; what a prefix brings belongs to the first."""
        self._now += 1
        tokens = [min(BLOCK_TOKENS, ask.input_tokens - at) for at in range(0, ask.input_tokens, BLOCK_TOKENS)]
        found: list[int] = []
        for block in ask.blocks[: len(tokens)]:
            if block not in self._blocks:
                break
            found.append(block)
        for block in found:
            self._blocks[block].used_at, self._blocks[block].is_locked = self._now, True
        fresh = list(zip(ask.blocks[len(found) :], tokens[len(found) :], strict=False))
        chunks = [[self._blocks[block].pages for block in found]] if found else []
        parent = found[-1] if found else None
        for at in range(0, len(fresh), CHUNK_TOKENS // BLOCK_TOKENS):
            chunk = fresh[at : at + CHUNK_TOKENS // BLOCK_TOKENS]
            counts = [-(-count // self._page_tokens) for _, count in chunk]
            self._evict(sum(counts))
            taken = np.split(self._pool.extend(sum(counts)), np.cumsum(counts)[:-1])
            for (block, _), pages in zip(chunk, taken, strict=True):
                self._blocks[block] = _Block(pages, self._now, parent, is_locked=True)
                if parent is not None:
                    self._blocks[parent].children += 1
                parent = block
            chunks.append(taken)
        for block in ask.blocks[: len(tokens)]:
            self._blocks[block].is_locked = False
        return [np.concatenate(chunk) for chunk in chunks]

    def _evict(self, pages: int) -> None:
        while self._pool.available < pages:
            ends = [(b.used_at, name) for name, b in self._blocks.items() if not b.children and not b.is_locked]
            for _, name in sorted(ends):
                while True:  # SGLang evicts a node of its tree, which is a branch as far as it is nobody else's
                    block = self._blocks.pop(name)
                    self._pool.release(block.pages)
                    if block.parent is None:
                        break
                    parent = self._blocks[block.parent]
                    parent.children -= 1
                    if parent.children or parent.is_locked or parent.used_at > block.used_at:
                        break
                    name = block.parent
                if self._pool.available >= pages:
                    return


@dataclass(slots=True)
class _Running:
    pages: list[Pages]
    tokens: int
    left: int


@dataclass(slots=True)
class Worn:
    """What transfers were like, once the pools were worn."""

    policy: str
    page_tokens: int
    runs: list[int] = field(default_factory=list)
    fresh_runs: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def times_s(self, runs: list[int]) -> NDArray[np.float64]:
        return np.array(self.tokens) * TOKEN_BYTES / RATE_BYTE_S + np.array(runs) * BUFFERS * DESCRIPTOR_S

    def told(self) -> dict[str, Any]:
        ratios = self.times_s(self.runs) / self.times_s(self.fresh_runs)
        return {
            "policy": self.policy,
            "page_tokens": self.page_tokens,
            "transfers": len(self.runs),
            "runs_p50": float(np.median(self.runs)),
            "runs_p95": float(np.quantile(self.runs, 0.95)),
            "descriptors_p50": float(np.median(self.runs)) * BUFFERS,
            "pages_p50": float(np.median(-(-np.array(self.tokens) // self.page_tokens))),
            "ms_p50": float(np.median(self.times_s(self.runs)) * 1e3),
            "ms_p95": float(np.quantile(self.times_s(self.runs), 0.95) * 1e3),
            "fresh_ms_p50": float(np.median(self.times_s(self.fresh_runs)) * 1e3),
            "ratio_p50": float(np.median(ratios)),
            "ratio_p95": float(np.quantile(ratios, 0.95)),
            "over_3x": float(np.mean(ratios > 3)),
        }


def wear(asks: list[Ask], *, pool_tokens: int, page_tokens: int, policy: str) -> Worn:
    """A decode that is as full as it can be: the next request comes as soon as its prompt has room."""
    prefill = PrefixPool(Pool(pool_tokens // page_tokens, policy), page_tokens)
    decode = Pool(pool_tokens // page_tokens, policy)
    running: list[_Running] = []
    worn = Worn(policy, page_tokens)
    for number, ask in enumerate(asks):
        pages = -(-ask.input_tokens // page_tokens)
        while decode.available < pages + reserve_pages(running, page_tokens):
            running = _step(decode, running, page_tokens)
        chunks = prefill.prefill(ask)
        taken = decode.extend(sum(map(len, chunks)))
        parts = np.split(taken, np.cumsum([len(chunk) for chunk in chunks])[:-1])
        if number >= WARM * len(asks):
            worn.runs.append(sum(runs_of(ours, theirs) for ours, theirs in zip(chunks, parts, strict=True)))
            worn.fresh_runs.append(-(-ask.input_tokens // CHUNK_TOKENS))
            worn.tokens.append(ask.input_tokens)
        running.append(_Running([taken], ask.input_tokens, ask.output_tokens))
    return worn


def reserve_pages(running: list[_Running], page_tokens: int) -> int:
    """SGLang holds back 512 tokens a running request."""
    return -(-512 * (len(running) + 1) // page_tokens)


def _step(pool: Pool, running: list[_Running], page_tokens: int) -> list[_Running]:
    """So many decode steps as one page takes: each request grows by it, or ends."""
    growing = [request for request in running if request.left > 0]
    for request, page in zip(growing, pool.grow(len(growing)), strict=True):
        request.pages.append(np.array([page]))
        request.left -= page_tokens
    for request in running:
        if request.left <= 0:
            pool.release(np.concatenate(request.pages))
    return [request for request in running if request.left > 0]


def asks(count: int, longest_tokens: int) -> Iterator[Ask]:
    with gzip.open(TRACE, "rt") as lines:
        told = (json.loads(line) for line in lines)
        short = (one for one in told if 0 < one["input_length"] <= longest_tokens)
        for one in islice(short, count):
            yield Ask(one["input_length"], one["output_length"], one["hash_ids"])


def line_of(row: dict[str, Any]) -> str:
    return (
        f"{row['page_tokens']:>4} {row['policy']:<9} {row['runs_p50']:>8.0f} {row['runs_p95']:>6.0f} "
        f"{row['pages_p50']:>8.0f} {row['ms_p50']:>7.2f} {row['ms_p95']:>7.2f} {row['fresh_ms_p50']:>6.2f} "
        f"{row['ratio_p50']:>9.1f} {row['ratio_p95']:>6.1f} {row['over_3x']:>5.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--pool-tokens", type=int, default=262144)
    parser.add_argument("--pages", type=int, nargs="*", default=[1, 16, 64, 128])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    requests = list(asks(arguments.requests, arguments.pool_tokens // 4))
    rows = []
    print(
        f"{'page':>4} {'policy':<9} {'runs p50':>8} {'p95':>6} {'of pages':>8} {'ms p50':>7} {'p95':>7} {'fresh':>6} "
        f"{'ratio p50':>9} {'p95':>6} {'>3x':>5}"
    )
    for page_tokens in arguments.pages:
        for policy in ("unsorted", "sorted", "address", "runs"):
            worn = wear(requests, pool_tokens=arguments.pool_tokens, page_tokens=page_tokens, policy=policy)
            rows.append(worn.told())
            print(line_of(rows[-1]), flush=True)
    if arguments.json:
        told = {"requests": arguments.requests, "pool_tokens": arguments.pool_tokens, "rows": rows}
        arguments.json.write_text(f"{json.dumps(told, indent=1)}\n")


if __name__ == "__main__":
    main()
