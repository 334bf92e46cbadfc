"""A frontend of a simulated deployment: connections, router and coordinator as in earnest, for each model.

Way:   world.py -> [Part, FrontendOfSeveral] -> simulated hosts; the registry's records come in
Owns:  what it follows; `close` ends it
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from random import Random
from typing import Protocol

from disagg.cluster.fleet import Fleet
from disagg.coordinator.coordinator import Coordinator
from disagg.coordinator.limits import Limits
from disagg.kv_events.blocks import BlockHasher
from disagg.registry.interface import Watched
from disagg.registry.of_model import of_model
from disagg.registry.records import ModelState
from disagg.registry.table import Table
from disagg.routing.connections import Connections
from disagg.routing.policy import Surroundings, load_policy
from disagg.routing.router import Router
from disagg.simulation.network import SimNetwork

SECRET = b"simulated deployment's secret..."
BLOCK_TOKENS = 64  # of what is told of prefix caches


class World(Protocol):
    """What a frontend needs of its deployment. `told`: what it follows."""

    network: SimNetwork
    limits: Limits
    fleet: Fleet  # of the controller that there is now
    seed: int
    policy: str

    @property
    def told(self) -> Watched: ...


class Part:
    """Of one model in a frontend. `group`: of several; empty: of the only one."""

    def __init__(self, world: World, number: int, group: str = "") -> None:
        self.name, self.number = f"front-{number}", number
        loop = asyncio.get_running_loop()
        here = world.network.at(self.name)
        self.connections = Connections(SECRET, network=here, now_s=loop.time, block_tokens=BLOCK_TOKENS)
        surroundings = Surroundings(Random(world.seed << 8 | number), now_s=loop.time)
        policy, hasher = load_policy(world.policy, surroundings), BlockHasher(SECRET, BLOCK_TOKENS)
        self.router = Router(self.connections, policy, hasher)
        self.coordinator = Coordinator(self.router, world.limits, Random(world.seed << 8 | number), loop.time)
        self.coordinator.on_transfer_lost = lambda prefill, decode: world.fleet.transfer_lost(prefill, decode)
        views = of_model(world.told.watch(), group)
        self.following = loop.create_task(self.connections.follow(views), name=f"{self.name} follows")

    @property
    def parts(self) -> Mapping[str, Part]:
        """By model."""
        return {"": self}

    async def close(self) -> None:
        self.following.cancel()
        await asyncio.wait([self.following])
        self.connections.apply(Table().view())


async def _close_idle(part: Part) -> None:
    while part.coordinator.live:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    await part.close()


class FrontendOfSeveral:
    """Has a part for each model that the registry names, as disagg/frontend/roster.py."""

    def __init__(self, world: World, number: int) -> None:
        self._world, self.number = world, number
        self.parts: dict[str, Part] = {}
        self.named: set[str] = set()  # models that may be asked for
        self._closing: list[asyncio.Task[None]] = []
        self._following = asyncio.get_running_loop().create_task(self._follow(), name=f"front-{number} has models")

    async def _follow(self) -> None:
        async for _ in self._world.told.watch():
            models = self._world.told.models
            self.named = {key for key, record in models.items() if record.state is ModelState.SERVING}
            for key in models.keys() - self.parts.keys():
                self.parts[key] = Part(self._world, self.number, key)
            for key in self.parts.keys() - models.keys():
                self._closing.append(asyncio.create_task(_close_idle(self.parts.pop(key)), name=f"close {key}"))

    async def close(self) -> None:
        self._following.cancel()
        await asyncio.wait([self._following])
        await asyncio.gather(*self._closing, *(part.close() for part in self.parts.values()))
