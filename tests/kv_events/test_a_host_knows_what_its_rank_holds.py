"""The host's tree is the scheduler's, whatever that stores, splits, backs up and evicts; and so is a frontend's."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disagg.kv_events.events import At, Begun, Cleared, Removed, Stored, Tier
from disagg.kv_events.held import Confused
from disagg.kv_events.rank import RankCache
from tests.kv_events.naive import BLOCK, HASHER, Follower, NaiveCache, packed


def rank() -> RankCache:
    return RankCache(HASHER, lambda adapter: adapter)


@given(seed=st.integers(0, 2**32), page_and_tiers=st.sampled_from([*product((1, 2, 4), (0, 1)), (3, 0), (8, 0)]))
@settings(max_examples=50, deadline=None)
def test_any_history_leaves_host_and_frontend_with_what_the_rank_holds(
    seed: int, page_and_tiers: tuple[int, int]
) -> None:
    random, (page, tiers) = Random(seed), page_and_tiers
    cache, host, frontend = NaiveCache(random, page), rank(), Follower()
    late: Follower | None = None
    for _ in range(random.randrange(1, 60)):
        for _ in range(random.randrange(1, 4)):  # in one round of the scheduler
            ids = tuple(random.choices([7, 8], k=random.randrange(1, 30)))
            step = random.random()
            if step < 0.5:
                cache.insert(random.choice(["", "", "pirate"]), ids)
            elif step < 0.7 and tiers:
                cache.back_up()
            else:
                cache.evict()
        changes = host.hear(cache.said)
        cache.said.clear()
        frontend.hear(changes)
        if late is not None:
            late.hear(changes)
        elif random.random() < 0.1:
            late = Follower()
            for frame in host.snapshot():
                late.hear(frame)
        assert frontend.held == cache.held()
        assert host.blocks == len(frontend.held)
    if late is not None:
        assert late.held == frontend.held


def test_an_adapter_and_a_salt_are_namespaces() -> None:
    ids, host = packed(tuple(range(BLOCK))), rank()
    changes = host.hear(
        [
            Begun(0),
            *(At(1, 0, ids), Stored(1, BLOCK, Tier.DEVICE)),
            *(At(2, 0, ids, "pirate"), Stored(2, BLOCK, Tier.DEVICE)),
            *(At(3, 0, ids, "", "salt"), Stored(3, BLOCK, Tier.DEVICE)),
        ]
    )
    assert host.blocks == 3
    assert {change.keys for change in changes[1:]} == {
        HASHER.path(ids, *namespace).tobytes() for namespace in (("", ""), ("pirate", ""), ("", "salt"))
    }


def test_a_block_is_held_once_its_last_page_is() -> None:
    host = rank()
    assert len(host.hear([Begun(0), At(1, 0, packed((1, 2, 3))), Stored(1, 3, Tier.DEVICE)])) == 1
    (stored,) = host.hear([At(2, 1, packed((4, 5))), Stored(2, 2, Tier.DEVICE)])
    assert (stored.kind, stored.count, stored.keys) == ("stored", 1, HASHER.path([1, 2, 3, 4]).tobytes())
    (removed,) = host.hear([Removed(2, 2, Tier.DEVICE)])
    assert (removed.kind, removed.count) == ("removed", 1)
    assert host.blocks == 0


def test_what_is_stored_and_evicted_in_one_round_is_not_told() -> None:
    host = rank()
    host.hear([Begun(0)])
    one = packed(tuple(range(BLOCK)))
    assert host.hear([At(1, 0, one), Stored(1, BLOCK, Tier.DEVICE), Removed(1, BLOCK, Tier.DEVICE)]) == []
    assert host.blocks == 0


@pytest.mark.parametrize(
    "events",
    [
        [Stored(9, BLOCK, Tier.DEVICE)],
        [Removed(9, BLOCK, Tier.DEVICE)],
        [At(9, 8, packed((1,)))],
        [Removed(1, BLOCK, Tier.DEVICE)],  # the block after it is still there
        [At(3, 2, packed(tuple(range(2 * BLOCK)))), Stored(3, BLOCK, Tier.DEVICE)],  # not that in between
        [Cleared(), Stored(2, BLOCK, Tier.DEVICE)],
    ],
)
def test_what_does_not_fit_is_noticed(events: list[Stored | Removed | At]) -> None:
    host, ids = rank(), packed(tuple(range(BLOCK)))
    first = [At(1, 0, ids), Stored(1, BLOCK, Tier.DEVICE), At(2, 1, ids), Stored(2, BLOCK, Tier.DEVICE)]
    host.hear([Begun(0), *first])
    with pytest.raises(Confused):
        host.hear(events)


def test_a_snapshot_tells_nothing_of_what_went_while_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disagg.kv_events.held.BLOCKS_OF_A_FRAME", 2)
    for last in ([Removed(2, BLOCK, Tier.DEVICE)], [Cleared()]):
        host, frontend = rank(), Follower()
        host.hear([Begun(0)])
        for name in (1, 2):
            run = packed(tuple(range(100 * name, 100 * name + 2 * BLOCK)))
            host.hear([At(name, 0, run), Stored(name, 2 * BLOCK, Tier.DEVICE)])
        host.hear([At(3, 2, packed(tuple(range(BLOCK)))), Stored(3, BLOCK, Tier.DEVICE)])
        frames = host.snapshot()
        frontend.hear(next(frames))
        frontend.hear(host.hear([Removed(3, BLOCK, Tier.DEVICE)]))
        if last[0] != Cleared():
            last = [At(4, 1, packed(())), Removed(4, 0, Tier.DEVICE)]
        frontend.hear(host.hear(last))
        for frame in frames:
            frontend.hear(frame)
        assert len(frontend.held) == host.blocks
