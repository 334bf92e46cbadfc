"""Idle engines are probed: two failures in a row make one sick; busy engines, and one failure, do not."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from scene import Scene, begin_request, scene

from disagg.cluster.canaries import blame, is_due
from disagg.registry.records import State
from disagg.roles import Role
from transfer.canary import FAKE_HOST

pytestmark = pytest.mark.usefixtures("quick")

PAIR = (Role.PREFILL, Role.DECODE)


@pytest.mark.parametrize(
    ("quiet_s", "since_last_s", "failures", "node_is_busy", "due"),
    [
        (0.0, 99.0, 0, False, False),  # busy
        (0.0, 99.0, 1, False, False),
        (9.0, 99.0, 0, False, False),
        (99.0, 9.0, 0, False, False),
        (10.0, 10.0, 0, False, True),
        (10.0, 10.0, 0, True, False),  # it shares its cores with an engine at work
        (60.0, 60.0, 0, True, True),
        (20.0, 1.0, 1, False, True),  # after a failure: again soon
        (20.0, 0.5, 1, False, False),
    ],
)
def test_when_a_canary_is_due(
    quiet_s: float, since_last_s: float, failures: int, node_is_busy: bool, due: bool
) -> None:
    assert is_due(quiet_s, since_last_s, failures, node_is_busy, 10.0) is due


def test_who_is_to_blame_for_a_pair_that_fails() -> None:
    pair = ("p0", "d0")
    assert blame(pair, {}) == {"p0", "d0"}
    assert blame(pair, {("p0", "d1"): True}) == {"d0"}
    assert blame(pair, {("p1", "d0"): True}) == {"p0"}
    assert blame(pair, {("p0", "d1"): True, ("p1", "d0"): True}) == {"d0"}
    assert blame(pair, {("p0", "d1"): False, ("p1", "d0"): True}) == {"p0"}
    assert blame(pair, {("p0", "d1"): False, ("p1", "d0"): False}) == {"p0", "d0"}
    assert blame(pair, {("p0", "d1"): False}) == {"p0"}  # of decode nothing is known
    assert blame(pair, {("p1", "d0"): False}) == {"d0"}
    assert blame(pair, {("p0", "d1"): False, ("p1", "d0"): False, ("p2", "d0"): True}) == {"p0"}


async def _turn(s: Scene) -> None:
    """A look when all are due."""
    await asyncio.sleep(0.08)
    for turns in s.canaries._turns.values():
        turns.last_at_s -= 60.0
    await s.canaries.look()


async def test_each_idle_rank_hums_alone_and_every_third_time_the_pair_sings() -> None:
    async with scene(*PAIR) as s:
        await s.canaries.look()  # begins to count
        decode = s.nodes["decode-0"].engine
        decode.legs.clear()
        for _ in range(3):
            await _turn(s)
        hosts = [leg.bootstrap.host for leg in decode.legs if leg.bootstrap]
        assert hosts == [FAKE_HOST, FAKE_HOST, FAKE_HOST, "127.0.0.1"]
        hum = decode.legs[0]
        assert (list(hum.prompt_ids), hum.sampling["max_new_tokens"], len(hum.id)) == ([10, 11, 12, 13], 2, 34)
        assert hum.bootstrap is not None
        assert hum.bootstrap.room == hum.dp_rank == 0
        assert s.nodes["prefill-0"].engine.legs[-1].sampling["max_new_tokens"] == 1
        server = s.nodes["decode-0"].server
        assert server
        assert server.ledger.canaries == server.ledger.requests == [0]


async def test_an_engine_that_hangs_at_rest_is_sick_at_the_second_canary() -> None:
    async with scene(*PAIR) as s:
        await s.canaries.look()
        s.nodes["decode-0"].engine.hangs = True
        await _turn(s)
        assert s.record("decode-0").state is State.READY
        await _turn(s)  # the first one's leg never ended: it is ours, so the engine still counts as idle
        await s.until(lambda: (1, "quarantined") in s.states("decode-0"))
        await s.until_ready("decode-0", 2)
        assert s.record("prefill-0").incarnation == 1


async def test_one_failure_is_forgiven() -> None:
    async with scene(Role.AGGREGATED) as s:
        await s.canaries.look()
        engine = s.nodes["aggregated-0"].engine
        for _ in range(2):
            engine.hangs = True
            await _turn(s)
            engine.hangs = False
            await _turn(s)
        assert s.record("aggregated-0").state is State.READY
        assert s.record("aggregated-0").incarnation == 1


async def test_a_busy_engine_gets_no_canary() -> None:
    async with scene(Role.AGGREGATED) as s:
        await s.canaries.look()
        client, engine = await s.client("aggregated-0"), s.nodes["aggregated-0"].engine
        engine.hangs = True
        begin_request(client)
        await s.until(lambda: s.live("aggregated-0").others_requests == 1)
        count = len(engine.legs)
        for _ in range(4):
            await _turn(s)
        assert len(engine.legs) == count
        assert s.record("aggregated-0").state is State.READY
        client.close()


async def test_a_client_that_comes_during_a_canary_makes_its_failure_no_sign() -> None:
    async with scene(Role.AGGREGATED) as s:
        await s.canaries.look()
        client, engine = await s.client("aggregated-0"), s.nodes["aggregated-0"].engine
        engine.hangs = True
        await _turn(s)
        turning = asyncio.create_task(_turn(s))
        server = s.nodes["aggregated-0"].server
        assert server
        await s.until(lambda: server.ledger.canaries == [2])
        begin_request(client)
        await turning
        await asyncio.sleep(0.1)
        assert s.record("aggregated-0").state is State.READY
        client.close()


async def test_a_pair_whose_kv_does_not_move_is_found_and_the_guilty_one_replaced() -> None:
    async with scene(*PAIR, Role.DECODE) as s:
        await s.canaries.look()
        port = int(s.record("prefill-0").bootstrap.split(":")[1])
        s.nodes["decode-1"].engine.no_transfer_with = {port}
        for _ in range(5):
            await _turn(s)
        await s.until_ready("decode-1", 2)
        assert s.record("decode-0").incarnation == s.record("prefill-0").incarnation == 1
        quarantined = next(r for r in s.seen if r.state is State.QUARANTINED)
        assert "transfer prefill-0#1 -> decode-1#1" in quarantined.detail


async def test_a_look_at_many_engines_looks_at_each_a_few_times() -> None:
    looks = 0

    class Engine:
        """What a look needs of a LiveEngine that is busy."""

        is_retiring, others_requests = False, 1

        def __init__(self, number: int) -> None:
            self.life, self._record = f"aggregated-{number}#1", SimpleNamespace(node=f"10.0.0.{number // 8}")

        @property
        def record(self) -> SimpleNamespace:
            nonlocal looks
            looks += 1
            return self._record

        def quiet_s(self) -> float:
            return 0.0

    async with scene() as s:
        for number in range(250):
            engine: Any = Engine(number)
            s.prover.up[engine.life] = engine
            await s.registry.add_met(engine.life, engine.life)
        await s.canaries.look()
        assert 0 < looks <= 3 * 250
        s.prover.up.clear()
