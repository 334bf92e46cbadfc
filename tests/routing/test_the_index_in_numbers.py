"""What an index says of its size: blocks and runs held, memory within bounds, ranks that share a prefix at no cost."""

from __future__ import annotations

import sys
from array import array
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share prefixes.py; they are not a package

from prefixes import Prompts, assert_well_formed, depth

from disagg.kv_events.events import Tier
from disagg.routing.prefix_index.held import Held
from disagg.routing.prefix_index.index import PrefixIndex

RANDOM = Random(5)
MB = 1_000_000


def keys(count: int) -> array[int]:
    return array("Q", RANDOM.randbytes(8 * count))


def test_many_ranks_with_one_prefix_are_one_run_and_one_group() -> None:
    index, system = PrefixIndex(), keys(40)
    for slot in range(1000):
        index.store(slot, system)
    assert (index.runs, index.blocks) == (1, 40)
    everybody = frozenset(range(1000))
    assert index.overlaps(system + keys(10)) == [Held(40, everybody, everybody)]
    assert index.overlaps(system[:7]) == [Held(7, everybody, everybody)]


def test_the_deepest_group_comes_first_and_tiers_are_told_apart() -> None:
    index, path = PrefixIndex(), keys(30)
    index.store(1, path)
    index.store(2, path[:20])
    index.store(2, path, Tier.HOST)
    index.store(3, path[:10])
    assert index.overlaps(path) == [
        Held(30, frozenset({1}), frozenset({1, 2})),
        Held(20, frozenset({1, 2}), frozenset({1, 2})),
        Held(10, frozenset({1, 2, 3}), frozenset({1, 2, 3})),
    ]
    index.cut(2, path, 5, Tier.HOST)
    index.cut(1, path, 0)
    assert index.overlaps(path) == [
        Held(20, frozenset({2}), frozenset({2})),
        Held(10, frozenset({2, 3}), frozenset({2, 3})),
    ]


def test_a_path_that_grows_block_by_block_stays_one_run() -> None:
    index, path = PrefixIndex(), keys(400)
    for length in range(1, 401):
        index.store(0, path[:length], new=1)
    assert index.runs == 1
    for keep in range(399, 199, -1):
        index.cut(0, path[: keep + 1], keep)
    assert (index.runs, index.blocks, index.blocks_of(0)) == (1, 200, 200)


def test_branches_that_are_gone_leave_no_boundary_behind() -> None:
    index, path = PrefixIndex(), keys(100)
    index.store(0, path)
    for at in range(10, 90, 10):
        index.store(0, path[:at] + keys(5), new=5)
        index.store(1, path[:at])
    assert index.runs > 8
    for known in [path[:at] for at in range(10, 90, 10)]:
        index.cut(1, known, 0)
    index.cut(0, path, 0)
    index.store(0, path)
    assert (index.runs, index.blocks) == (1, 100)


def test_a_rank_that_says_what_is_new_keeps_both_branches_exactly_apart() -> None:
    prompts, index = Prompts(), PrefixIndex()
    path, branch = prompts.path([0] * 40), prompts.path([0] * 20 + [1] * 10)
    index.store(0, path)
    index.store(0, branch, new=10)
    index.cut(0, branch, 20)
    assert [depth(index, 0, p) for p in (path, branch)] == [40, 20]
    index.cut(0, path, 20)
    assert index.blocks == 20


def test_keys_that_agree_by_chance_where_they_part_do_not_take_a_branch_along() -> None:
    """The first block of the branch has the bits of the block beside it, as once in 16 times."""
    index, path = PrefixIndex(), keys(40)
    branch = path[:20] + array("Q", [path[20] ^ 1 << 40, path[21] ^ 0xFF]) + keys(8)
    index.store(0, path)
    index.store(1, branch)
    index.store(1, path, new=20)
    index.cut(1, branch, 20)
    assert depth(index, 1, path) == 40
    assert 18 <= depth(index, 1, branch) <= 21


def test_a_slot_is_free_for_another_rank_as_soon_as_it_is_cleared() -> None:
    index, one, other = PrefixIndex(), keys(30), keys(30)
    for slot in range(8):
        index.store(slot, one)
    index.clear(3)
    index.store(3, other)
    assert index.blocks_of(3) == 30
    assert [held.anywhere for held in index.overlaps(one)] == [frozenset(range(8)) - {3}]
    assert [held.anywhere for held in index.overlaps(other)] == [frozenset({3})]
    while index.sweep(1):
        pass
    assert_well_formed(index)
    assert [held.anywhere for held in index.overlaps(one)] == [frozenset(range(8)) - {3}]


def test_what_a_cleared_rank_held_is_freed_by_the_calls_that_follow() -> None:
    index, system = PrefixIndex(), keys(10)
    for _ in range(100):
        index.store(0, system + keys(20), new=20)
    index.clear(0)
    for _ in range(200):
        index.store(1, system)
    assert (index.runs, index.blocks) == (1, 10)


def test_members_are_used_again() -> None:
    index = PrefixIndex()
    for life in range(300):
        index.store(life, keys(3))
        index.clear(life)
    assert len(index._members._slots) < 40


@pytest.mark.parametrize(("length", "rounds"), [(30, 2500), (3000, 80)])
def test_memory_is_bounded_by_forgetting_whom_most_is_known_of(length: int, rounds: int) -> None:
    index = PrefixIndex(bytes_max=MB)
    for number in range(rounds):
        for slot in range(8):
            index.store(slot, keys(length if slot else 2 * length), new=length)
        if number % 50 == 0:
            assert index.memory_bytes < 1.5 * MB
    assert index.forgotten > 0
    assert index.blocks_of(7) > 0
    path = keys(length)
    for _ in range(100):
        index.store(7, path)
    assert depth(index, 7, path) == length
    assert index.memory_bytes < 1.5 * MB
    while index.sweep():
        pass
    assert_well_formed(index)


def test_memory_told_is_memory_taken() -> None:
    """Within a third: 44 bytes a run and half a byte a block, and what arrays and chunks have in reserve."""
    index = PrefixIndex()
    empty = index.memory_bytes
    for slot in range(2000):
        index.store(slot % 10, keys(400), new=400)
    assert 1.0 < (index.memory_bytes - empty) / (2000 * (44 + 200)) < 1.33
