"""An engine dies under requests: who is blamed, who waits for an engine to itself, and what those who wait are told."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share bench.py; they are not a package

from bench import SECRET, Bench, bench, request, until

from disagg.coordinator.limits import Limits
from disagg.coordinator.phases import Phase
from disagg.coordinator.request import Blame, Request
from disagg.coordinator.suspects import alone_on, blame, clear, forgive, is_guilty
from disagg.errors import EngineLost, Overloaded, SuspectedPoison
from disagg.plane.client import PlaneClient
from disagg.process.stub import StubEngine
from disagg.roles import Role
from transfer.canary import RankEndpoint, probe_rank


def _positions() -> StubEngine:
    return StubEngine(step_s=0.01, token=None)


def engine_of(r: Request) -> str:
    assert r.facts.decode is not None
    return r.facts.decode.engine_id


@pytest.mark.parametrize(
    ("role", "phase", "tokens", "alone", "is_blamed"),
    [
        (Role.PREFILL, Phase.PREFILLING, 0, False, True),
        (Role.PREFILL, Phase.TRANSFERRING, 0, False, True),
        (Role.PREFILL, Phase.BOOTSTRAPPING, 0, False, False),  # it waited for its turn
        (Role.PREFILL, Phase.DISPATCHED, 0, True, False),  # it never got there
        (Role.DECODE, Phase.PREFILLING, 0, False, False),  # decode had nothing to compute yet
        (Role.DECODE, Phase.TRANSFERRING, 0, False, True),
        (Role.DECODE, Phase.DECODING, 2, False, True),
        (Role.DECODE, Phase.DECODING, 3, False, False),
        (Role.DECODE, Phase.DECODING, 800, True, True),  # nobody else can have done it
        (Role.AGGREGATED, Phase.PREFILLING, 0, False, True),
    ],
)
def test_who_is_blamed(role: Role, phase: Phase, tokens: int, alone: bool, is_blamed: bool) -> None:
    r = request()
    r.phase = phase
    blame(r, "x#1", role, tokens, alone)
    assert bool(r.blames) == is_blamed
    assert alone_on(r) == ({role} if is_blamed else set())


@pytest.mark.parametrize(
    ("alone", "guilty"), [("a", False), ("ca", True), ("cc", False), ("ac", False), ("cccc", False), ("ccccc", True)]
)
def test_two_deaths_alone_or_five_in_company(alone: str, guilty: bool) -> None:
    r = request()
    r.blames = [Blame(f"x#{n}", Role.DECODE, each == "a") for n, each in enumerate(alone)]
    assert is_guilty(r) == guilty


def test_a_trial_that_went_well_ends_the_isolation_and_not_the_memory() -> None:
    r = request()
    r.blames = [Blame("x#1", Role.DECODE, False)]
    clear(r)
    assert alone_on(r) == set()
    r.blames.append(Blame("x#2", Role.DECODE, True))
    assert is_guilty(r)
    forgive(r, lambda life: life == "x#2")
    assert not is_guilty(r)


async def test_a_suspect_that_finds_no_engine_to_itself_is_told_why() -> None:
    async with bench(limits=Limits(queue_s=0.3), decode_0=_positions(), decode_1=_positions()) as b:
        busy = request(max_tokens=10_000)
        running = b.start(busy)
        await until(lambda: len(busy.emitted_ids) > 10)
        where = engine_of(busy)
        suspect = request(max_tokens=1000)
        answering = b.start(suspect)
        await until(lambda: suspect.emitted_ids)
        assert engine_of(suspect) != where
        b.servers["decode-1" if where == "decode-0" else "decode-0"].close()
        with pytest.raises(
            Overloaded, match=r"an engine died under it, and there was no room for it within .* on one where"
        ):
            await asyncio.wait_for(answering, 5)
        assert busy.tries == 1, "nobody was sent to it"
        running.cancel()
        await asyncio.wait([running])


async def test_a_suspect_waits_for_the_engine_that_becomes_idle() -> None:
    async with bench(limits=Limits(), decode_0=_positions(), decode_1=_positions()) as b:
        busy = request(max_tokens=200)
        running = b.start(busy)
        await until(lambda: len(busy.emitted_ids) > 10)
        suspect = request(max_tokens=30)
        answering = b.start(suspect)
        await until(lambda: suspect.emitted_ids)
        b.servers[engine_of(suspect)].close()
        await until(lambda: suspect.phase is Phase.MIGRATING)
        assert await asyncio.wait_for(answering, 10) == ("x" * 30, "length")
        assert running.done(), "it ran before the other one had left"
        assert suspect.emitted_ids == [*range(3, 33)]


async def test_a_canary_is_no_company() -> None:
    """A suspect is sent to where only a canary runs, however long that takes, and counts as alone with it."""
    async with bench(limits=Limits(queue_s=1.0), decode_0=_positions(), decode_1=_positions()) as b:
        killer = request(max_tokens=1000)
        answering = b.start(killer)
        await until(lambda: killer.emitted_ids)
        first = engine_of(killer)
        second = "decode-1" if first == "decode-0" else "decode-0"
        controller = await _canary_on(b, second)
        await until(lambda: b.router.connections.granted[second, 0][0] == 1)
        b.servers[first].close()
        await until(lambda: engine_of(killer) == second and len(killer.emitted_ids) > 2)
        await until(lambda: b.router.connections.granted[second, 0][0] == 2)
        b.servers[second].close()
        with pytest.raises(SuspectedPoison):
            await asyncio.wait_for(answering, 5)
        assert [each.alone for each in killer.blames] == [True, True]
        controller.close()


async def _canary_on(b: Bench, name: str) -> PlaneClient:
    """One that does not end, as beside a peer that is out of order."""
    client = PlaneClient(b.registry.records[name].plane, 1, SECRET, lambda _why: None)
    await client.connect()
    endpoint = RankEndpoint(f"{name}#1", 0, 1, "", client)
    probing = asyncio.create_task(probe_rank(endpoint, 10_000, 60.0))
    probing.add_done_callback(lambda task: task.exception())  # it is lost with its engine
    return client


async def test_an_operator_who_wants_no_second_try_gets_none() -> None:
    async with bench(limits=Limits(migration_limit=0), decode=_positions()) as b:
        r = request(max_tokens=1000)
        answering = b.start(r)
        await until(lambda: len(r.emitted_ids) > 20)
        b.servers["decode-0"].close()
        with pytest.raises(EngineLost):
            await asyncio.wait_for(answering, 2)
