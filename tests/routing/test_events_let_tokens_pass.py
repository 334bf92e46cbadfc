"""However many cache events come at once, a frontend's event loop turns between a few of them and the next."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Iterator
from typing import Any

from disagg.kv_events.changes import STORED, Change
from disagg.kv_events.events import Tier
from disagg.plane.messages import KvChanged, KvStart
from disagg.roles import Role
from disagg.routing.endpoints import Endpoint, Engine
from disagg.routing.in_slices import SLICE_STEPS, WAITING_MAX, InSlices
from disagg.routing.kv_feed import KvFeed
from disagg.routing.prefix_index.index import PrefixIndex

BLOCK_TOKENS = 16


class Counting(PrefixIndex):
    """`stores`: since it was last set to 0."""

    stores = 0

    def store(self, slot: int, path: array[int], tier: Tier = Tier.DEVICE, new: int | None = None) -> None:
        self.stores += 1
        super().store(slot, path, tier, new)


def feed(index: PrefixIndex, slices: InSlices, slot: int) -> KvFeed:
    engine, nothing = Engine(f"e-{slot}", f"e-{slot}#1", Role.PREFILL, slot), None
    engine.endpoints = [Endpoint(engine, 0, "", nothing, nothing, slot=slot)]  # type: ignore[arg-type]
    made = KvFeed(engine, index, BLOCK_TOKENS, lambda: None, do=slices.add)
    made.on_kv(KvStart(1, BLOCK_TOKENS, {0: 0}))
    return made


def stored(begins: int, count: int) -> KvChanged:
    """So many blocks, none of which follows another."""
    keys = [array("Q", [(begins + at + 1) << 32]).tobytes() for at in range(count)]
    return KvChanged(0, begins, [Change(STORED, Tier.DEVICE, 0, key, 1) for key in keys], 0.0)


async def turns(index: Counting) -> list[int]:
    """Stores of each turn of the loop, until there are none."""
    found: list[int] = []
    while not found or found[-1]:
        index.stores = 0
        await asyncio.sleep(0)
        found.append(index.stores)
    return found


async def test_the_loop_turns_between_a_few_events_and_the_next_however_they_come() -> None:
    index, slices = Counting(), InSlices()
    feeds = [feed(index, slices, slot) for slot in range(8)]
    await asyncio.sleep(0)
    for each in feeds:
        each.on_kv(stored(0, 10 * SLICE_STEPS))
        each.on_kv(stored(10 * SLICE_STEPS, 5))
    assert index.stores == 0, "it was done while a socket is read, and others have frames too"
    found = await turns(index)
    assert max(found) <= SLICE_STEPS
    assert sum(found) == 8 * (10 * SLICE_STEPS + 5)
    assert [index.blocks_of(slot) for slot in range(8)] == [10 * SLICE_STEPS + 5] * 8
    assert all(not each.gaps for each in feeds)


async def test_what_waits_when_the_connection_ends_is_dropped_as_its_slot_may_be_anothers() -> None:
    index, slices = Counting(), InSlices()
    gone = feed(index, slices, 0)
    gone.on_kv(stored(0, 3 * SLICE_STEPS))
    await asyncio.sleep(0)
    assert 0 < index.blocks_of(0) < 3 * SLICE_STEPS
    gone.close()
    index.clear(0)
    another = feed(index, slices, 0)
    another.on_kv(stored(0, 1))
    await turns(index)
    assert index.blocks_of(0) == 1


async def test_no_more_waits_than_a_limit() -> None:
    """What comes beyond it is done as it comes, the oldest first: so less is read, and nothing is lost."""
    slices, done = InSlices(), list[int]()

    def work(number: int) -> Iterator[None]:
        done.append(number)
        yield

    for number in range(WAITING_MAX + 10):
        slices.add(work(number))
    assert done == list(range(10))
    for _ in range(2 * WAITING_MAX // SLICE_STEPS + 2):
        await asyncio.sleep(0)
    assert done == list(range(WAITING_MAX + 10))


def test_without_a_loop_all_is_done_at_once() -> None:
    index: Any = Counting()
    engine, nothing = Engine("e", "e#1", Role.PREFILL, 0), None
    engine.endpoints = [Endpoint(engine, 0, "", nothing, nothing, slot=0)]  # type: ignore[arg-type]
    made = KvFeed(engine, index, BLOCK_TOKENS, lambda: None)
    made.on_kv(KvStart(1, BLOCK_TOKENS, {0: 0}))
    made.on_kv(stored(0, 500))
    assert index.blocks_of(0) == 500
