"""Requests that have ended are freed at once, and what is remembered of them is not looked through: the garbage
collector, which stops every stream meanwhile, has nothing to do."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share bench.py; they are not a package
from bench import Plain, Reader, bench, request, until

from disagg.coordinator.attempt import Attempt
from disagg.coordinator.remembered import Remembered
from disagg.process.stub import StubEngine


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("stop_after", [None, 3])
async def test_a_try_is_freed_when_both_legs_have_ended(stop_after: int | None) -> None:
    async with bench(decode=StubEngine(step_s=0.005)) as b:
        r = request(max_tokens=10, text=Plain(stop_after=stop_after) if stop_after else None)
        running = asyncio.create_task(b.coordinator.run(r, Reader()))
        await until(lambda: r.id in b.coordinator.attempts)
        attempt: weakref.ref[Attempt] = weakref.ref(b.coordinator.attempts[r.id])
        await asyncio.wait_for(running, 30)
        await b.settle()
        assert attempt() is None


async def test_what_is_remembered_is_not_looked_through() -> None:
    async with bench() as b:
        r = request(max_tokens=5)
        await b.answer(r)
        kept = b.coordinator.find(r.id)
        assert isinstance(kept, Remembered)
        gc.collect()
        assert not any(gc.is_tracked(each) for each in (kept, kept.facts, kept.timeline))
        other = request(max_tokens=5)
        await b.answer(other)
        assert (other.facts.prefill, other.facts.decode) == (kept.facts.prefill, kept.facts.decode)
        assert other.facts.decode is kept.facts.decode, "a rank's name is one object, however many requests ran there"
