"""What it costs a frontend to know what ranks have cached: a look-up, an event, and memory.

    python -m benchmarks.routing_index [--ranks 100] [--blocks 100000] [--affine] [--json FILE]

Way:   prompts shared as in the Mooncake conversation trace -> BlockHasher, PrefixIndex -> CPU time of this thread
Out:   a look-up is the hash of a prompt's ids and `overlaps`; events are stores and cuts of whole paths; memory is what
       the process has gained (RSS) once `ranks` ranks hold `blocks` blocks each
       --ranks 1000 --blocks 1000000 is a thousand million placements, and takes minutes

The trace (its first half, 5,719 requests, blocks of 512 tokens) begins each prompt with the same block. 64.5 % of the
prompts share no more; the others follow an earlier one for HIT blocks and go on for MORE, the former for FRESH. The
lists below are those lengths at LEVELS of their distributions, between which we interpolate. Requests go to random
ranks, so that a conversation is spread over many; with --affine each goes where the one went that it follows.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import median

import psutil

from disagg.kv_events.blocks import BlockHasher
from disagg.routing.prefix_index.index import PrefixIndex

LEVELS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
FRESH = (1, 1, 2, 11, 27, 53, 183, 240)
HIT = (1, 1, 4, 11, 28, 52, 161, 240)
MORE = (0, 1, 2, 2, 8, 21, 57, 120)
FRESH_SHARE = 0.645
TRACE_BLOCK = 512 // 64  # blocks of ours in one of the trace's
RECENT = 4000  # prompts that one may follow
LOOKUPS = ((16, 500), (1000, 8000))  # ranks, tokens
EVENTS = 20_000


@dataclass(frozen=True, slots=True)
class Lookup:
    ranks: int
    tokens: int
    hash_us: float
    lookup_us: float
    both_us: float  # medians
    both_us_p99: float


@dataclass(frozen=True, slots=True)
class Events:
    store_blocks_s: float
    cut_blocks_s: float
    call_ms_max: float  # the longest that a stream waits for one of them
    long_ms: float  # a change of 5,000 blocks at once
    clear_ms_max: float  # of a rank, and of any slice of what is freed after it


@dataclass(frozen=True, slots=True)
class Memory:
    ranks: int
    placements: int
    different_blocks: int
    runs: int
    told_bytes: int
    rss_bytes: int
    store_us: float


def prompts(random: Random, ranks: int, affine: bool) -> Iterator[tuple[int, array[int], int]]:
    """Rank, path, and how many of the path's last blocks are new to everybody."""
    system = _keys(random, TRACE_BLOCK)
    recent: deque[tuple[array[int], int]] = deque(maxlen=RECENT)
    while True:
        rank = random.randrange(ranks)
        if random.random() < FRESH_SHARE or not recent:
            new = _length(random, FRESH)
            path = system + _keys(random, new)
        else:
            hit, new = _length(random, HIT), _length(random, MORE)
            tried = [recent[random.randrange(len(recent))] for _ in range(16)]
            followed, there = min(tried, key=lambda one: len(one[0]) - hit if len(one[0]) >= hit else 3000)
            path = followed[:hit] + _keys(random, new)
            if affine:
                rank = there
        recent.append((path, rank))
        yield rank, path, new


def _length(random: Random, lengths: tuple[int, ...]) -> int:
    level = random.random()
    at = next(i for i in range(1, len(LEVELS)) if level <= LEVELS[i])
    part = (level - LEVELS[at - 1]) / (LEVELS[at] - LEVELS[at - 1])
    return round(TRACE_BLOCK * (lengths[at - 1] + part * (lengths[at] - lengths[at - 1])))


def _keys(random: Random, count: int) -> array[int]:
    return array("Q", random.randbytes(8 * count))


def lookup(ranks: int, tokens: int) -> Lookup:
    random = Random(ranks)
    hasher, index = BlockHasher(b"s" * 32, 64), PrefixIndex()
    ids = random.choices(range(1000, 150_000), k=tokens)
    path = hasher.path(ids)
    for rank in range(ranks):  # all hold its first blocks, fewer hold more, one in 16 all of it
        share = random.choice((0.1, 0.1, 0.1, 0.3, 0.6)) if rank % 16 else 1.0
        index.store(rank, path[: max(2, int(share * len(path)))] + _keys(random, 20))
    hashing, looking, both = [], [], []
    for _ in range(2000):
        began = time.thread_time_ns()
        fresh = hasher.path(ids)
        hashed = time.thread_time_ns()
        index.overlaps(fresh)
        ended = time.thread_time_ns()
        hashing.append((hashed - began) / 1e3)
        looking.append((ended - hashed) / 1e3)
        both.append((ended - began) / 1e3)
    return Lookup(ranks, tokens, median(hashing), median(looking), median(both), sorted(both)[len(both) * 99 // 100])


def events(random: Random) -> Events:
    index = PrefixIndex()
    stream = prompts(random, 64, affine=False)
    changes = [next(stream) for _ in range(EVENTS)]
    gc.disable()
    store_s, stored, longest = 0.0, 0, 0.0
    for rank, path, new in changes:
        began = time.thread_time()
        index.store(rank, path)
        took = time.thread_time() - began
        store_s, longest, stored = store_s + took, max(longest, took), stored + max(new, 1)
    cut_s, cut = 0.0, 0
    for rank, path, new in changes[: EVENTS // 2]:
        began = time.thread_time()
        index.cut(rank, path, len(path) - new)
        took = time.thread_time() - began
        cut_s, longest, cut = cut_s + took, max(longest, took), cut + max(new, 1)
    long = _keys(random, 5000)
    began = time.thread_time()
    index.store(0, long)
    long_s = time.thread_time() - began
    clears, more = list[float](), True
    began = time.thread_time()
    index.clear(1)
    while more:
        clears.append(time.thread_time() - began)
        began = time.thread_time()
        more = index.sweep()
    gc.enable()
    return Events(stored / store_s, cut / cut_s, longest * 1e3, long_s * 1e3, max(clears) * 1e3)


def memory(random: Random, ranks: int, blocks: int, affine: bool) -> Memory:
    gc.collect()
    process = psutil.Process()
    before = process.memory_info().rss
    index = PrefixIndex(bytes_max=1 << 40)
    stream = prompts(random, ranks, affine)
    wanted, placements, stores, took_s = ranks * blocks, 0, 0, 0.0
    while placements < wanted:
        changes = [next(stream) for _ in range(1000)]
        began = time.thread_time()
        for rank, path, _ in changes:
            index.store(rank, path)
        took_s += time.thread_time() - began
        stores += 1000
        placements = sum(index.blocks_of(rank) for rank in range(ranks))
    gained = process.memory_info().rss - before
    return Memory(ranks, placements, index.blocks, index.runs, index.memory_bytes, gained, took_s / stores * 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=100)
    parser.add_argument("--blocks", type=int, default=100_000)
    parser.add_argument("--affine", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    held = memory(Random(17), arguments.ranks, arguments.blocks, arguments.affine)
    print(
        f"{held.ranks} ranks, {held.placements / 1e6:.0f} M placements: {held.different_blocks / 1e6:.1f} M blocks in "
        f"{held.runs / 1e6:.2f} M runs, {held.rss_bytes / 1e6:.0f} MB (told: {held.told_bytes / 1e6:.0f}), "
        f"{held.rss_bytes / held.placements:.2f} bytes a placement; a store {held.store_us:.1f} µs",
        flush=True,
    )
    lookups = [lookup(ranks, tokens) for ranks, tokens in LOOKUPS]
    for row in lookups:
        print(
            f"{row.tokens} tokens, {row.ranks} ranks: hash {row.hash_us:.1f} + look-up {row.lookup_us:.1f} = "
            f"{row.both_us:.1f} µs (p99 {row.both_us_p99:.0f})",
            flush=True,
        )
    changed = events(Random(18))
    print(
        f"stored {changed.store_blocks_s / 1e6:.1f} M, cut {changed.cut_blocks_s / 1e6:.1f} M blocks/s; longest call "
        f"{changed.call_ms_max:.2f} ms, of 5,000 blocks {changed.long_ms:.2f} ms, clear {changed.clear_ms_max:.2f} ms"
    )
    if arguments.json:
        figures = {"memory": asdict(held), "lookups": [asdict(row) for row in lookups], "events": asdict(changed)}
        arguments.json.write_text(f"{json.dumps(figures, indent=1)}\n")


if __name__ == "__main__":
    main()
