"""The deployment's driver side: the fleet on its Ray cluster, and the registry that frontends read.

Way:   `disagg serve` -> [Controller] -> Fleet =Ray=> actors; frontends read the registry that it serves, or publishes
       in a store, and hand on what operators ask (an engine's log lines, its drain, a change of the deployment)
Owns:  everything it started: `stop` ends it, whatever state it is in
Fails: StartError when the cluster has too little, or the first start of an engine fails
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from disagg.adapters import Adapter
from disagg.cluster import cluster_inspect
from disagg.cluster.adapters import Adapters, AdaptersOfModels
from disagg.cluster.adopting import adopt
from disagg.cluster.change.keeper import Changes
from disagg.cluster.fleet import Fleet
from disagg.cluster.models import KeyAndSpec, Learn, Models
from disagg.cluster.notes import CHANGES, IS_PLACED, WAS_READY, Earlier, NoNotes, NotedRegistry, Notes
from disagg.cluster.ray_places import RayPlaces
from disagg.cluster.runtime import Runtime
from disagg.cluster.setting import Setting
from disagg.config.schema import Deployment
from disagg.errors import Problem
from disagg.planning.plan import Plan
from disagg.registry.control import ControlServer
from disagg.registry.records import SealedSpec
from disagg.registry.served import RegistryServer
from disagg.registry.shared import Shared, SharedRegistry


@dataclass(frozen=True, slots=True)
class Addresses:
    """host:port of what a controller listens on."""

    registry: str  # empty: frontends read the shared one
    control: str  # empty: it is written there


class Controller:
    """Starts and ends a deployment on Ray. `start` places all engines, `until_ready` waits for them, `stop` ends all.

    Raises StartError when the cluster has too little room, when an engine's first start fails, or when not all engines
    are READY within `deadlines.start_s` seconds.
    """

    def __init__(
        self,
        whole: Deployment,
        plans: Sequence[Plan],
        setting: Setting,
        learn: Learn,
        shared: Shared | None = None,
        notes: Notes | None = None,
        run: str = "",
    ) -> None:
        """`plans`: one for each model of `whole`. `learn`: what is to be told of a model that comes later. `shared`:
        where the registry is published; None: this process serves it to its frontends. `notes`: what another controller
        would need; `run`: of this controller, where there may be others of this deployment."""
        self._plans, self._setting, self._notes = plans, setting, notes or NoNotes()
        self.registry = NotedRegistry(self._notes)
        self._places = RayPlaces(setting)
        self._runtime = runtime = Runtime()
        by_group = {plan.deployment.key: self._adapters_of(plan) for plan in plans}
        self.adapters = AdaptersOfModels(by_group, [plan.model.name for plan in plans])
        of_all = (setting, self.registry, self._places, runtime, whole.health.canary_s)
        self.fleet = Fleet(*of_all, adapters=self.adapters, notes=self._notes)
        secret = bytes.fromhex(setting.secret)
        lease_s = whole.registry.lease_s
        self._told: RegistryServer | SharedRegistry
        if shared is None:
            self._told = RegistryServer(self.registry, secret)
        else:
            self._told = SharedRegistry(self.registry, shared, run or setting.deployment, lease_s)
        self.adapters.seen_by(self._told.all_have_seen)
        fleet, self.is_to_stop = self.fleet, asyncio.Event()  # an operator has said so
        around = setting.of_models, self.adapters, learn, self._adapters_of
        drain_s = setting.deadlines.drain_s
        self.models = Models(self.registry, fleet, *around, self._told.all_have_seen, drain_s)
        looks = runtime.wall_s, self._speaks_against, self.is_to_stop.set
        self.changes = Changes(fleet, self.registry, whole, plans, self.models, *looks)
        self.changes.keep = lambda kept: self._notes.write(CHANGES, kept)
        told = fleet.log_lines, self.changes.drain, fleet.transfer_lost
        self._control = ControlServer(secret, *told, self.adapters, self.changes)

    def _adapters_of(self, plan: Plan) -> Adapters:
        lora, drain_s = plan.model.lora, self._setting.deadlines.drain_s
        given = [Adapter(name, said.path, said.pinned) for name, said in lora.adapters.items()] if lora else []
        model = plan.model.name if lora else None
        return Adapters(self.registry, self._runtime, model, given, drain_s, plan.deployment.key)

    @property
    def is_taken(self) -> asyncio.Event:
        """Set when another controller has the deployment's name: this one is to end, and to touch nothing more."""
        return self._told.is_taken

    async def start(
        self,
        host: str,
        models: Sequence[KeyAndSpec] = (),
        sealed: SealedSpec | None = None,
        earlier: Earlier | None = None,
    ) -> Addresses:
        """Places and starts everything, without waiting for READY; returns where frontends reach it. `models`: of
        several, those of the start. `sealed`: for frontends on other hosts. `earlier`: what another controller has
        left; what of it serves is adopted. Frontends are told when all that was known is known again."""
        control = f"{host}:{await self._control.start(host)}"
        await self._told.claim(control)  # before anything is touched
        if sealed is not None:
            await self.registry.put_spec(sealed)
        if earlier is not None and earlier.is_placed:
            whole = self.registry, self.changes, self.models, self.adapters, self.fleet
            await adopt(earlier, *whole, models)
        else:
            await self.adapters.begin()
            await self.models.begin(models)
            await self._place(earlier or Earlier())
        registry = await self._told.start(host)
        self.fleet.begin()
        return Addresses(f"{host}:{registry}", control) if registry else Addresses("", "")

    async def until_ready(self) -> None:
        """Returns when every engine is READY, and orders are heeded from now on; raises StartError when one fails to
        start, or `start_s` is over."""
        await self.fleet.until_ready(self._setting.deadlines.start_s)
        self.changes.open()
        await self._notes.write(WAS_READY, True)

    async def stop(self) -> None:
        await self.changes.close()
        await self.fleet.stop()
        await self._told.close()
        await self._control.close()
        self._places.close()

    async def _place(self, earlier: Earlier) -> None:
        """What a controller has left that did not come to the end of this is of no use."""
        await self.fleet.adopt(Earlier(incarnations=earlier.incarnations))
        await self.fleet.place(self._plans[0].largest_first())
        await self._notes.write(IS_PLACED, True)

    async def _speaks_against(self, plan: Plan) -> Sequence[Problem]:
        is_one = not plan.deployment.key
        folder = self._setting.model_path if is_one else await self.models.folder_of(plan)
        return await cluster_inspect.problems_now(plan, folder)
