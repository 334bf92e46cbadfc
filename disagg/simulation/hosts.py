"""One incarnation of one simulated engine behind a real plane server, on a host of its own.

Way:   controller -> [SimulatedHost] -> SimulatedEngine; frontends connect to its PlaneServer
Owns:  the host's name in the network, `engine id.incarnation`: nothing of an earlier incarnation is reached by it
"""

from __future__ import annotations

import asyncio
from random import Random

from disagg.lives import life_of
from disagg.plane.server import PlaneServer
from disagg.registry.records import EngineRecord, State
from disagg.roles import Role
from disagg.simulated_engine.engine import SimulatedEngine
from disagg.simulated_engine.model import Model
from disagg.simulation.network import SimNetwork

FIRST_BOOTSTRAP_PORT = 9000


class SimulatedHost:
    def __init__(
        self, network: SimNetwork, engine_id: str, model: Model, incarnation: int, secret: bytes, random: Random
    ) -> None:
        self.engine_id, self.role, self.incarnation = engine_id, model.role, incarnation
        self.name = f"{engine_id}.{incarnation}"
        self.life = life_of(engine_id, incarnation)
        self._network = network
        loop, here = asyncio.get_running_loop(), network.at(self.name)
        port = FIRST_BOOTSTRAP_PORT + incarnation
        self.bootstrap = (self.name, port) if model.role is Role.PREFILL else None
        self.engine = SimulatedEngine(
            model, life=self.life, bootstrap=self.bootstrap, network=here, random=random, wall_s=loop.time
        )
        self.engine.on_death = self.kill
        self.facts = self.engine.start()
        self.server = PlaneServer(self.engine, self.facts, incarnation, secret, network=here, now_s=loop.time)
        self.is_alive = True

    async def start(self) -> EngineRecord:
        port = await self.server.start(self.name)
        await self.engine.open()
        facts = self.facts
        return EngineRecord(
            id=self.engine_id,
            role=self.role,
            state=State.STARTING,
            incarnation=self.incarnation,
            node=self.name,
            ranks=facts.ranks,
            plane=f"{self.name}:{port}",
            bootstrap=f"{self.name}:{self.bootstrap[1]}" if self.bootstrap else "",
            context_length=facts.context_length,
            kv_tokens=facts.kv_tokens,
            request_tokens_max=facts.request_tokens_max,
            requests_max=facts.requests_max,
            page_size=facts.page_size,
            ignores=facts.ignores,
        )

    def freeze(self) -> None:
        """The whole host stands still (SIGSTOP of everything): not even the plane answers."""
        self._network.silence(self.name)
        self.engine.freeze()

    def thaw(self) -> None:
        self._network.heal(self.name)
        self.engine.thaw()

    def kill(self) -> None:
        """SIGKILL: its machine closes its connections, and says so even for a process that stood still."""
        if not self.is_alive:
            return
        self.is_alive = False
        self._network.heal(self.name)
        self.engine.stop()
        self._network.take_away(self.name)
        self.server.close()  # with its process its timers end, too
