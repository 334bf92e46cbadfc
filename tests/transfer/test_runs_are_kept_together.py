"""The order of free pages: nothing lost, nothing twice, long runs kept; SGLang's allocator, with it and without."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))  # tests share engine_program.py; they are not a package

from engine_program import last_line_of

from benchmarks.fragmentation import Pages, Pool, asks, runs_of, wear
from disagg.sglang.plugins.kv_runs import in_order as in_order_of_torch


def in_order(free: Pages, count: int) -> Pages:
    return in_order_of_torch(torch.from_numpy(free), count).numpy()


@pytest.mark.parametrize(
    ("count", "begins_with"),
    [
        (1, [9]),  # the shortest run
        (2, [4, 5]),
        (3, [20, 21, 22]),
        (4, [30, 31, 32, 33, 34]),
        (6, [30, 31, 32, 33, 34, 20, 21, 22]),  # none holds it: the longest
    ],
)
def test_the_shortest_run_that_fits_comes_first(count: int, begins_with: list[int]) -> None:
    free = np.array([34, 4, 5, 9, 20, 21, 22, 30, 31, 32, 33])
    ordered = in_order(free, count)
    assert ordered[: len(begins_with)].tolist() == begins_with
    assert sorted(ordered) == sorted(free)


def test_what_follows_are_scraps_first() -> None:
    assert in_order(np.array([1, 2, 3, 5, 7, 8, 10, 11, 12, 13]), 3).tolist() == [1, 2, 3, 5, 7, 8, 10, 11, 12, 13]
    assert in_order(np.array([], np.int64), 3).tolist() == []


@given(st.sets(st.integers(1, 60)), st.integers(1, 70))
def test_no_page_is_lost_and_runs_are_as_few_as_can_be(pages: set[int], count: int) -> None:
    ordered = in_order(np.array(sorted(pages), np.int64), count)
    assert sorted(ordered) == sorted(pages)
    if 0 < count <= len(pages):
        taken = ordered[:count]
        lengths = sorted(np.diff(np.flatnonzero(np.diff(sorted(pages), prepend=-9, append=99) != 1)), reverse=True)
        fewest = int(np.searchsorted(np.cumsum(lengths), count)) + 1
        assert runs_of(taken, taken) <= fewest


def test_a_worn_pool_needs_fewer_runs_than_sglang_alone() -> None:
    requests = list(asks(150, 32768))
    ratio = {
        policy: wear(requests, pool_tokens=131072, page_tokens=16, policy=policy).told()["ratio_p50"]
        for policy in ("unsorted", "sorted", "runs")
    }
    assert ratio["runs"] < ratio["sorted"] < ratio["unsorted"]
    assert ratio["runs"] < 3


def test_a_pool_gives_back_what_it_took() -> None:
    for policy in ("unsorted", "sorted", "address", "runs"):
        pool = Pool(64, policy)
        taken = [pool.extend(10), pool.extend(20), pool.grow(3)]
        assert len(set(np.concatenate(taken))) == 33
        pool.release(taken[1])
        assert pool.available == 51
        assert len(set(pool.extend(51))) == 51


@pytest.mark.engine
def test_sglangs_allocator_gives_as_many_pages_with_it_and_none_twice() -> None:
    plain, ordered = last_line_of("allocate_both_ways.py")
    assert plain["answers"] == ordered["answers"]  # None, or how many tokens; and what is left after each step
    assert ordered["runs"] < plain["runs"]
