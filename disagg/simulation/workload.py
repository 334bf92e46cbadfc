"""The requests of a soak, and when each comes: a real service's trace, made smaller.

In:    benchmarks/data's trace (arrival, lengths, and which 512-token blocks of prompts are equal)
Out:   request after request: the same index is always the same request, whatever else is asked
Why:   prompts and answers are divided by constants and arrivals brought nearer, so that a million requests can be
       simulated; bursts, long tails and shared prefixes stay as they are
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

TRACE = Path(__file__).parents[2] / "benchmarks" / "data" / "mooncake-conversation-first-half.jsonl.gz"
TRACE_BLOCK_TOKENS = 512
SHORTER_PROMPTS, SHORTER_ANSWERS, FASTER = 64, 16, 18.0  # times


class _Row(msgspec.Struct):
    timestamp: float  # ms
    input_length: int
    output_length: int
    hash_ids: list[int]


@dataclass(frozen=True, slots=True)
class TraceRequest:
    at_s: float
    prompt: list[int]
    max_tokens: int
    ignore_eos: bool


class Workload:
    def __init__(self) -> None:
        self._rows = _rows()
        self._lap_ms = self._rows[-1].timestamp + 1000

    def __getitem__(self, index: int) -> TraceRequest:
        lap, at = divmod(index, len(self._rows))
        row, block = self._rows[at], TRACE_BLOCK_TOKENS // SHORTER_PROMPTS
        prompt = [lap % 200 + 1]  # another lap's prompts are not cached
        for hash_id in row.hash_ids:
            first = 300 + hash_id * block % 30_000
            prompt += range(first, first + block)
        del prompt[max(1, row.input_length // SHORTER_PROMPTS) :]
        return TraceRequest(
            at_s=(lap * self._lap_ms + row.timestamp) / 1e3 / FASTER,
            prompt=prompt,
            max_tokens=max(1, row.output_length // SHORTER_ANSWERS),
            ignore_eos=index % 3 != 0,
        )


@cache
def _rows() -> list[_Row]:
    decode = msgspec.json.Decoder(_Row).decode
    with gzip.open(TRACE) as lines:
        return [decode(line) for line in lines]
