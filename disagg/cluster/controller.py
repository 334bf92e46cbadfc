"""The deployment's driver side: the fleet on its Ray cluster, and the registry that frontends read.

Way:   `disagg serve` -> [Controller] -> Fleet =Ray=> actors; frontends read the registry it serves, and hand on what
       operators ask (an engine's log lines, its drain)
Owns:  everything it started: `stop` ends it, whatever state it is in
Fails: StartError when the cluster has too little, or the first start of an engine fails
"""

from __future__ import annotations

from dataclasses import dataclass

from disagg.cluster.fleet import Fleet
from disagg.cluster.ray_places import RayPlaces
from disagg.cluster.runtime import Runtime
from disagg.cluster.setting import Setting
from disagg.planning.plan import Plan
from disagg.registry.control import ControlServer
from disagg.registry.memory import MemoryRegistry
from disagg.registry.served import RegistryServer


@dataclass(frozen=True, slots=True)
class Addresses:
    """host:port of what a controller listens on."""

    registry: str
    control: str


class Controller:
    """Starts and ends a deployment on Ray. `start` places all engines, `until_ready` waits for them, `stop` ends all.

    Raises StartError when the cluster has too little room, when an engine's first start fails, or when not all engines
    are READY within `deadlines.start_s` seconds.
    """

    def __init__(self, plan: Plan, setting: Setting) -> None:
        self._plan, self._setting = plan, setting
        self.registry = MemoryRegistry()
        self._places = RayPlaces(setting)
        self.fleet = Fleet(setting, self.registry, self._places, Runtime(), plan.deployment.health.canary_s)
        secret = bytes.fromhex(setting.secret)
        self._served = RegistryServer(self.registry, secret)
        self._control = ControlServer(secret, self.fleet.log_lines, self.fleet.drain, self.fleet.transfer_lost)

    async def start(self, host: str) -> Addresses:
        """Places and starts everything, without waiting for READY; returns where frontends reach it."""
        registry, control = await self._served.start(host), await self._control.start(host)
        await self.fleet.place(self._plan.largest_first())
        self.fleet.begin()
        return Addresses(f"{host}:{registry}", f"{host}:{control}")

    async def until_ready(self) -> None:
        """Returns when every engine is READY; raises StartError when one fails to start, or `start_s` is over."""
        await self.fleet.until_ready(self._setting.deadlines.start_s)

    async def stop(self) -> None:
        await self.fleet.stop()
        await self._served.close()
        await self._control.close()
        self._places.close()
