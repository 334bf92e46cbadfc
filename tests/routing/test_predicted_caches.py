"""Without events, a rank is taken to hold what its last requests used, as much as its KV has room for."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))  # tests share prefixes.py; they are not a package

from prefixes import Prompts, assert_well_formed, depth

from disagg.routing.predicted_cache import PredictedCache
from disagg.routing.prefix_index.index import PrefixIndex

PROMPTS = Prompts()
SYSTEM = [0] * 10
ONE, TWO, THREE = ([*SYSTEM, choice, *[0] * 29] for choice in (1, 2, 3))


def caches() -> tuple[PrefixIndex, PredictedCache]:
    index = PrefixIndex()
    return index, PredictedCache(index)


def test_what_was_routed_to_a_rank_is_there() -> None:
    index, cache = caches()
    cache.used(7, PROMPTS.path(ONE), 100)
    assert depth(index, 7, PROMPTS.path(ONE)) == 40
    assert depth(index, 7, PROMPTS.path(TWO)) == 10


def test_what_was_used_longest_ago_makes_room_and_what_is_shared_stays() -> None:
    index, cache = caches()
    for prompt in (ONE, TWO, ONE, THREE):
        cache.used(7, PROMPTS.path(prompt), 75)
    assert [depth(index, 7, PROMPTS.path(prompt)) for prompt in (ONE, TWO, THREE)] == [40, 10, 40]
    assert index.blocks_of(7) == 70


def test_a_prompt_longer_than_the_cache_fills_it() -> None:
    index, cache = caches()
    cache.used(7, PROMPTS.path(TWO), 30)
    cache.used(7, PROMPTS.path(ONE), 30)
    assert index.blocks_of(7) == 30
    assert depth(index, 7, PROMPTS.path(ONE)) == 30


def test_a_rank_without_room_and_a_prompt_without_a_block_are_nothing() -> None:
    index, cache = caches()
    cache.used(7, PROMPTS.path(ONE), 0)
    cache.used(8, PROMPTS.path([]), 100)
    assert index.blocks == 0


def test_a_slot_given_to_another_rank_begins_anew() -> None:
    index, cache = caches()
    cache.used(7, PROMPTS.path(ONE), 60)
    cache.remove(7)
    index.clear(7)
    cache.used(7, PROMPTS.path(TWO), 60)
    cache.used(7, PROMPTS.path([3] * 20), 60)
    assert [depth(index, 7, PROMPTS.path(prompt)) for prompt in (ONE, TWO)] == [10, 40]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3), st.integers(0, 12), st.integers(0, 2)), max_size=25))
def test_no_more_than_fits_is_held_and_the_last_prompt_always_is(
    shapes: list[tuple[int, int, int, int]],
) -> None:
    index, cache = caches()
    for shared, choice, more, last in shapes:
        path = PROMPTS.path([0] * shared + [choice] + [0] * more + [last])
        cache.used(7, path, 20)
        assert index.blocks_of(7) <= 20
        assert depth(index, 7, path) == min(20, len(path))
        assert_well_formed(index)
