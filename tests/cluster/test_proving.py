"""Proving many pairs: several at a time, no engine in two probes at once, and nobody waits for another's failure.

Time is virtual; a probe is a sleep, so that what is seen here is the prover alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from disagg import worker_role
from disagg.cluster import proving
from disagg.cluster.proving import PROBES_MAX, RETRY_S, Prover
from disagg.registry.memory import MemoryRegistry
from disagg.registry.records import EngineRecord, State
from disagg.roles import Role
from disagg.simulation.loop import VirtualLoop
from transfer.canary import CanaryFailed, RankEndpoint

PROBE_S = 1.0


class Client:
    def __init__(self) -> None:
        self.gone: list[str] = []

    def tell_peer_gone(self, life: str) -> None:
        self.gone.append(life)


class Live:
    """What the prover needs of a LiveEngine."""

    def __init__(self, engine_id: str, role: Role, group: str, ranks: int) -> None:
        self.record = EngineRecord(
            id=engine_id, role=role, state=State.STARTING, incarnation=1, ranks=ranks, group=group
        )
        self.life = self.record.life
        self.client = Client()
        self.is_retiring = False
        self.sign_age_s = 0.0

    def endpoints(self) -> list[RankEndpoint]:
        client: Any = self.client
        ranks = self.record.ranks
        return [RankEndpoint(self.life, rank, ranks, "", client) for rank in range(ranks)]


class World:
    def __init__(self) -> None:
        self.registry = MemoryRegistry()
        self.prover = Prover(self.registry, self._on_proven, self._on_failed, Random(1))
        self.live: dict[str, Live] = {}
        self.fails: set[tuple[str, str]] = set()
        self.hangs: set[tuple[str, str]] = set()  # for proving.PROBE_S
        self.probing: Counter[str] = Counter()  # by life
        self.probes: list[tuple[str, str]] = []
        self.most_at_once = 0
        self.proven: list[str] = []
        self.failed: list[str] = []

    def add(self, role: Role, number: int, group: str = "", ranks: int = 1) -> Live:
        live: Any = Live(f"{role}-{number}", role, group, ranks)
        self.live[live.life] = live
        self.prover.add(live)
        return live  # type: ignore[no-any-return]

    def add_many(self, count: int) -> None:
        for number in range(count):
            self.add(Role.PREFILL, number)
            self.add(Role.DECODE, number)

    async def probe(
        self, prefill: RankEndpoint | None, decode: RankEndpoint, room: int, limit_s: float, _: object
    ) -> None:
        pair = (prefill or decode).life, decode.life
        lives = set(pair)
        self.probes.append(pair)
        self.probing.update(lives)
        self.most_at_once = max(self.most_at_once, sum(self.probing.values()) // 2)
        assert max(self.probing.values()) == 1, "an engine is in two probes at once"
        try:
            if pair in self.hangs:
                await asyncio.sleep(proving.PATIENCE_S)
                self.probing.subtract(lives)  # from now on the two meet others meanwhile
                lives = set()
                await asyncio.sleep(limit_s - proving.PATIENCE_S)
            await asyncio.sleep(PROBE_S)
            if pair in self.fails | self.hangs:
                raise CanaryFailed("canary", "it does not move")
        finally:
            self.probing.subtract(lives)

    async def until(self, what: Callable[[], bool], limit_s: float = 1000.0) -> float:
        """Returns when it was so."""
        async with asyncio.timeout(limit_s):
            while not what():
                await asyncio.sleep(0.01)
        return asyncio.get_running_loop().time()

    async def _on_proven(self, life: str) -> None:
        self.proven.append(life)

    async def _on_failed(self, life: str, why: str) -> None:
        assert why
        self.failed.append(life)


@asynccontextmanager
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    it = World()
    monkeypatch.setattr(worker_role, "probe_pair", it.probe)
    running = asyncio.create_task(it.prover.run())
    try:
        yield it
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert len(it.prover._rooms) == 0


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await scenario()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(whole())


def test_several_pairs_at_a_time_and_no_engine_in_two(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with world(monkeypatch) as w:
            w.add_many(10)
            done_s = await w.until(lambda: len(w.registry.met) == 100)
            assert w.most_at_once >= 8
            assert done_s < 25 * PROBE_S, "one after another it would be 100"
            assert Counter(w.proven) == dict.fromkeys(w.live, 10)
            assert len(w.probes) == 100, "each pair once"

    play(scenario)


def test_so_many_at_a_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with world(monkeypatch) as w:
            w.add_many(PROBES_MAX + 10)
            await w.until(lambda: len(w.registry.met) > 2 * PROBES_MAX)
            assert w.most_at_once == PROBES_MAX

    play(scenario)


def test_a_pair_that_fails_holds_up_no_other_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with world(monkeypatch) as w:
            bad = ("prefill-0#1", "decode-0#1")
            w.hangs.add(bad)
            w.add_many(4)
            done_s = await w.until(lambda: len(w.registry.met) == 15)
            # The two lose their time with each other once, and then meet all others before they try again.
            assert done_s < proving.PROBE_S + RETRY_S + 8 * PROBE_S
            others = [w.live[life].record.id for life in w.live if life not in bad]
            assert not {life.split("#")[0] for life in w.failed} & set(others)
            await w.until(lambda: w.probes.count(bad) >= 3)
            w.hangs.clear()
            await w.until(lambda: bad in w.registry.met)

    play(scenario)


def test_others_do_not_wait_for_a_pair_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with world(monkeypatch) as w:
            w.hangs.add(("prefill-0#1", "decode-0#1"))
            w.add_many(6)
            free_of_it = 25  # pairs of the five others
            done_s = await w.until(lambda: len(w.registry.met) >= free_of_it)
            assert done_s < 12 * PROBE_S

    play(scenario)


def test_a_life_that_ends_in_the_midst_is_met_by_nobody_and_blamed_on_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with world(monkeypatch) as w:
            w.add_many(3)
            await asyncio.sleep(PROBE_S / 2)
            dead = "decode-1#1"
            assert w.probing[dead] == 1
            w.fails |= {(prefill, dead) for prefill in w.live}  # its connection is lost, and the probe with it
            w.live[dead].is_retiring = True
            w.prover.remove(dead)
            await w.registry.forget(dead)
            assert w.live["prefill-0#1"].client.gone == [dead]
            await w.until(lambda: len(w.registry.met) == 6)
            await asyncio.sleep(10 * RETRY_S)
            assert not w.registry.met.met_with(dead)
            assert w.failed == []
            w.live[dead] = w.add(Role.DECODE, 7)
            await w.until(lambda: len(w.registry.met) == 9)

    play(scenario)


def test_a_life_that_ends_between_two_ranks_is_an_end_of_that_probe_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with world(monkeypatch) as w:
            w.add(Role.PREFILL, 0, ranks=2)
            w.add(Role.DECODE, 0, ranks=2)
            await asyncio.sleep(PROBE_S / 2)
            w.prover.remove("decode-0#1")
            w.add(Role.DECODE, 1, ranks=2)
            await w.until(lambda: len(w.registry.met) == 1)
            assert w.registry.met.met_with("prefill-0#1") == {"decode-1#1"}

    play(scenario)


def test_a_success_of_an_engine_that_has_just_been_quarantined_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with world(monkeypatch) as w:
            w.add_many(1)
            await asyncio.sleep(PROBE_S / 2)
            w.live["decode-0#1"].is_retiring = True
            await asyncio.sleep(10 * PROBE_S)
            assert len(w.registry.met) == 0
            assert w.proven == w.failed == []

    play(scenario)


def test_only_engines_of_one_group_meet_and_an_aggregated_one_meets_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with world(monkeypatch) as w:
            for number, group in enumerate("xxy"):
                w.add(Role.PREFILL, number, group)
                w.add(Role.DECODE, number, group)
            w.add(Role.AGGREGATED, 0, "x")
            await asyncio.sleep(20 * PROBE_S)
            within = {(f"prefill-{p}#1", f"decode-{d}#1") for p in range(2) for d in range(2)}
            alone = ("aggregated-0#1", "aggregated-0#1")
            assert set(w.registry.met) == within | {("prefill-2#1", "decode-2#1"), alone}
            assert w.proven.count("aggregated-0#1") == 1

    play(scenario)


def test_each_rank_of_a_pair_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with world(monkeypatch) as w:
            w.add(Role.PREFILL, 0, ranks=2)
            w.add(Role.DECODE, 0, ranks=3)
            await w.until(lambda: len(w.registry.met) == 1)
            assert len(w.probes) == 6

    play(scenario)


def test_a_canary_has_its_engines_alone_and_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with world(monkeypatch) as w:
            w.add_many(10)
            mine = ("prefill-3#1", "decode-4#1")
            began_s = asyncio.get_running_loop().time()
            async with w.prover.alone_with(*mine):
                assert asyncio.get_running_loop().time() - began_s <= PROBE_S, "after the probes that run"
                for _ in range(100):
                    assert not any(w.probing[life] for life in mine)
                    await asyncio.sleep(PROBE_S / 10)
            await w.until(lambda: len(w.registry.met) == 100)

    play(scenario)


def test_canaries_on_the_same_engine_come_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with world(monkeypatch) as w:
            inside: Counter[str] = Counter()

            async def canary(*lives: str) -> None:
                async with w.prover.alone_with(*lives):
                    inside.update(lives)
                    assert max(inside.values()) == 1
                    try:
                        await asyncio.sleep(PROBE_S)
                    finally:
                        inside.subtract(lives)

            async with asyncio.timeout(100), asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(canary(*lives))
                    for lives in (("a", "b"), ("b", "c"), ("a", "c"), ("a",), ("d",), ("d", "a"))
                ]
                await asyncio.sleep(PROBE_S / 2)
                tasks[0].cancel()  # it has them
                tasks[1].cancel()  # it waits
            assert len(w.prover._meetings) == 0
            assert not w.prover._meetings._claims

    play(scenario)


def test_an_error_of_ours_ends_the_prover_and_is_no_failure_of_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        registry = MemoryRegistry()

        async def breaks(*_of: object) -> None:
            raise RuntimeError("a bug")

        prover = Prover(registry, breaks, breaks, Random(1))
        monkeypatch.setattr(worker_role, "probe_pair", World().probe)
        live: Any = Live("aggregated-0", Role.AGGREGATED, "", 1)
        prover.add(live)
        with pytest.raises(ExceptionGroup) as caught:
            await prover.run()
        assert caught.group_contains(RuntimeError, match="a bug")

    play(scenario)
