"""Paths and token ids of a trace's prompts say the same of what they share."""

from __future__ import annotations

from pathlib import Path

import pytest

from disagg.replay.endpoint.prompts import FIRST_ID, prompt_ids
from disagg.replay.traces.paths import Paths
from disagg.replay.traces.read import read_trace
from disagg.replay.traces.trace import TraceRequest, ideal_hits
from disagg.replay.workload import Sampler

DATA = Path(__file__).parent / "data"
BLOCK = 64


def shared(one: list[int], other: list[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@pytest.mark.parametrize("name", ["mooncake-200.jsonl.gz", "agentic-200.jsonl.gz", "azure-200.csv"])
def test_prompts_share_as_many_kv_blocks_as_tokens(name: str) -> None:
    trace = read_trace(DATA / name)
    plan = Sampler(trace, 12, BLOCK).plan(1.0, seed=3)
    chosen = plan.requests[:8]
    ids = [prompt_ids(each, trace.block_tokens, 32_000) for each in chosen]
    for planned, tokens in zip(chosen, ids, strict=True):
        assert len(tokens) == planned.prompt_tokens
        assert len(planned.path) == planned.prompt_tokens // BLOCK
        assert min(tokens) >= FIRST_ID
        assert max(tokens) < 32_000
    for a, one in enumerate(ids):
        for b, other in enumerate(ids[:a]):
            assert shared(list(chosen[a].path), list(chosen[b].path)) == shared(one, other) // BLOCK


def test_a_path_that_goes_on_from_the_last_one_is_the_same_as_one_made_anew() -> None:
    trace = read_trace(DATA / "agentic-200.jsonl.gz")
    going_on = Paths(trace.block_tokens, BLOCK)
    for request in trace.requests[:30]:
        assert going_on.of(request) == Paths(trace.block_tokens, BLOCK).of(request)


@pytest.mark.parametrize("trace_block", [16, 512])
def test_blocks_of_other_sizes_are_cut_to_kv_blocks(trace_block: int) -> None:
    def request(number: int, *blocks: int) -> TraceRequest:
        return TraceRequest(number, 0.0, len(blocks) * trace_block, 1, blocks)

    paths = Paths(trace_block, BLOCK)
    one, other = paths.of(request(0, *range(40))), paths.of(request(1, *range(17), *range(100, 123)))
    assert shared(list(one), list(other)) == 17 * trace_block // BLOCK


def test_prompts_of_another_seed_share_nothing() -> None:
    request = TraceRequest(0, 0.0, 1024, 1, (1, 2))
    assert not set(Paths(512, BLOCK, seed=1).of(request)) & set(Paths(512, BLOCK, seed=2).of(request))


def test_an_endless_cache_hits_what_came_before() -> None:
    assert ideal_hits([[1, 2, 3], [1, 2, 4], [1, 2, 4, 5], [9]]) == [0, 2, 3, 0]
