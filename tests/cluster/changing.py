"""A simulated deployment that operators change, and a load on it of which no request may fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import yaml

from disagg.config.schema import Deployment
from disagg.load import parse_config
from disagg.registry.orders import Answer, Apply, Asked, Order, Progress, Stage
from disagg.registry.records import State
from disagg.simulated_engine.tokens import answer
from disagg.simulation.loop import VirtualLoop
from disagg.simulation.world import SimulatedDeployment, Stream

PREFILL = {"page_size": 16, "chunk_tokens": 512, "prefill_token_s": 0.0001}
DECODE = {"page_size": 16, "step_s": 0.01, "kv_tokens": 65536}
GAP_S = 0.05  # between two requests of the load


def tree(prefill: Any = 2, decode: Any = 2, **more: Any) -> dict[str, Any]:
    """`prefill`, `decode`: how many, or the pools themselves."""
    return {
        "version": 1,
        "name": "changing",
        "device": "simulated",
        "model": {"path": "smollm2"},
        "prefill": {"replicas": prefill, "engine": dict(PREFILL)} if isinstance(prefill, int) else prefill,
        "decode": {"replicas": decode, "engine": dict(DECODE)} if isinstance(decode, int) else decode,
        **more,
    }


def configured(**said: Any) -> Deployment:
    return parse_config(yaml.safe_dump(tree(**said)))


def apply(**said: Any) -> Apply:
    return Apply(yaml.safe_dump(tree(**said)), "changed.yaml")


def in_virtual_time(scenario: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario())  # type: ignore[arg-type]


class Load:
    """Requests that come all the time, one after the other, whatever happens; each must have its whole answer."""

    def __init__(self, sim: SimulatedDeployment) -> None:
        self._sim = sim
        self.streams: list[Stream] = []
        self.task = asyncio.create_task(self._run(), name="load")

    async def _run(self) -> None:
        while True:
            self.streams.append(self._sim.open([len(self.streams), *range(100)], 40))
            await asyncio.sleep(GAP_S)

    async def end(self) -> int:
        """How many there were. Raises what failed."""
        self.task.cancel()
        for number, stream in enumerate(self.streams):
            assert await stream.rest() == answer([number, *range(100)], 40, ignore_eos=True)
        return len(self.streams)


class Operator:
    def __init__(self, sim: SimulatedDeployment) -> None:
        self._sim = sim

    async def asks(self, order: Order, *, yes: bool = False, dry_run: bool = False) -> Answer:
        return await self._sim.changes.ask(Asked(order, yes=yes, dry_run=dry_run))

    async def begins(self, order: Order, *, yes: bool = False) -> None:
        answer = await self.asks(order, yes=yes)
        assert answer.change, answer

    async def ended(self, limit_s: float = 200.0) -> Progress:
        """The change, once it is over."""
        async with asyncio.timeout(limit_s):
            while (change := self._change()).stage is Stage.RUNNING:
                await asyncio.sleep(0.1)
        self._sim.plans = dict(self._sim.changes.engines)
        return change

    async def has_done(self, order: Order, *, yes: bool = False) -> Progress:
        await self.begins(order, yes=yes)
        change = await self.ended()
        assert change.stage is Stage.DONE, change
        return change

    def _change(self) -> Progress:
        change = self._sim.changes.status().change
        assert change is not None
        return change

    @property
    def engines(self) -> dict[str, str]:
        """By id: the life that serves, or else the state."""
        records = self._sim.registry.records.values()
        return {r.id: r.life if r.state is State.READY else r.state.value for r in records}


@asynccontextmanager
async def changing(
    *, room_max: int | None = None, loaded: bool = True, **said: Any
) -> AsyncIterator[tuple[SimulatedDeployment, Operator]]:
    """Under load, unless that is not wanted; in the end nobody holds anything, and every place has an engine."""
    async with SimulatedDeployment(seed=1, deployment=configured(**said)) as sim:
        sim.places.room_max = room_max
        load = Load(sim) if loaded else None
        yield sim, Operator(sim)
        if load is not None:
            await load.end()
        await sim.settle()
        assert sim.places.taken == len(sim.plans)
