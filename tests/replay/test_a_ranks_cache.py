"""KV memory of a simulated rank against what its events say, whatever legs come and go."""

from __future__ import annotations

from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from disagg.replay.virtual.prefix_cache import Node, PrefixCache

BLOCK = 4
PROMPTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=40)


def path_of(branches: list[int]) -> array[int]:
    """Chained keys: each stands for all branches taken so far."""
    return array("Q", (int("1" + "".join(map(str, branches[: at + 1])), 2) for at in range(len(branches))))


class Told:
    """What an index would believe, by the events alone."""

    def __init__(self) -> None:
        self.keys: set[int] = set()

    def __call__(self, is_stored: bool, path: array[int], end: int, count: int) -> None:
        meant = set(path[end - count : end])
        if is_stored:
            assert not meant & self.keys, "stored twice"
            assert set(path[: end - count]) <= self.keys, "a prefix is missing"
            self.keys |= meant
        else:
            assert meant <= self.keys, "removed, and was not there"
            self.keys -= meant


@settings(max_examples=150, deadline=None)
@given(PROMPTS, st.data())
def test_events_tell_what_is_cached_and_what_is_read_stays(prompts: list[list[int]], data: st.DataObject) -> None:
    told = Told()
    cache = PrefixCache(kv_tokens=10 * BLOCK, block_tokens=BLOCK, on_event=told)
    held: list[tuple[Node, array[int], int]] = []  # what each leg reads, its path, its own tokens
    for branches in prompts:
        path = path_of(branches)
        node = cache.match(path, len(path))
        assert set(path[: node.end]) <= told.keys
        assert node.end == len(path) or path[node.end] not in told.keys, "the match is the longest"
        cache.lock(node)
        own = (len(path) - node.end) * BLOCK
        if not cache.make_room(own):
            cache.unlock(node)
        else:
            cache.own_tokens += own
            before = node.end
            node = cache.extend(node, path, len(path))
            cache.own_tokens -= (node.end - before) * BLOCK
            held.append((node, path, own - (node.end - before) * BLOCK))
        while held and (len(held) > 3 or data.draw(st.booleans())):
            node, path, own = held.pop(0)
            assert set(path[: node.end]) <= told.keys, "a prompt that is read was evicted"
            cache.unlock(node)
            cache.own_tokens -= own
        assert cache.blocks == len(told.keys)
        assert cache.own_tokens + cache.blocks * BLOCK <= cache.kv_tokens
    for node, _, own in held:
        cache.unlock(node)
        cache.own_tokens -= own
    assert (cache.own_tokens, cache.locked_tokens) == (0, 0)
    assert cache.make_room(cache.kv_tokens)
    assert not told.keys


def test_the_prompt_that_was_used_last_stays() -> None:
    cache = PrefixCache(kv_tokens=4 * BLOCK, block_tokens=BLOCK)
    old, new = path_of([0, 0]), path_of([1, 1])
    for path in (old, new, old):
        node = cache.match(path, 2)
        cache.lock(node)
        cache.unlock(cache.extend(node, path, 2))
    assert cache.make_room(2 * BLOCK)
    assert (cache.match(old, 2).end, cache.match(new, 2).end) == (2, 0)


def test_without_a_prefix_cache_nothing_is_kept() -> None:
    cache = PrefixCache(kv_tokens=64, block_tokens=0)
    path = path_of([0, 1])
    node = cache.match(path, 2)
    assert cache.extend(node, path, 2) is node
    assert cache.blocks == 0
