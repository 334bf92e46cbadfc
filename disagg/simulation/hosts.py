"""One incarnation of one simulated engine behind a real plane server, on a host of its own.

Way:   SimulatedNode -> [SimulatedHost] -> SimulatedEngine; frontends connect to its PlaneServer
Owns:  the host's name in the network: nothing of an earlier incarnation is reached by it
"""

from __future__ import annotations

import asyncio
from random import Random

from disagg.host_spec import HostSpec
from disagg.kv_events.book import KvBook
from disagg.plane.server import PlaneServer
from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.simulated_engine.arguments import simulated_engine
from disagg.simulation.network import SimNetwork


class SimulatedHost:
    """`ended` is done once it is killed, whoever did that."""

    def __init__(self, network: SimNetwork, spec: HostSpec, secret: bytes, random: Random) -> None:
        self.engine_id, self.role, self.incarnation = spec.engine_id, Role(spec.role), spec.incarnation
        self.name, self.life = spec.plane_host, spec.life
        self._network, self._port = network, spec.plane_port
        loop, here = asyncio.get_running_loop(), network.at(self.name)
        self.kv = KvBook(secret, spec.block_tokens, loop.time) if spec.block_tokens else None
        self.engine = simulated_engine(spec, network=here, random=random, wall_s=loop.time, kv=self.kv)
        self.engine.on_death = self.kill
        self.facts = self.engine.start()
        self.server = PlaneServer(
            self.engine,
            self.facts,
            self.incarnation,
            secret,
            network=here,
            now_s=loop.time,
            embeds=ROLES[self.role].embeds,
            kv=self.kv,
        )
        self.is_alive = True
        self.ended: asyncio.Future[None] = loop.create_future()

    async def start(self) -> str:
        """Returns host:port of its plane."""
        port = await self.server.start(self.name, self._port)
        await self.engine.open()
        return f"{self.name}:{port}"

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
        self.ended.set_result(None)
