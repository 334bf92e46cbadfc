"""Room for engines in a Ray cluster: a placement group an engine, one agent a node.

Way:   fleet -> [RayPlaces] =Ray=> placement groups, NodeAgent actors; an engine's node is a RayNode, or a gang of them
Owns:  the placement groups until they are released, and the agents until `close`
"""

from __future__ import annotations

import asyncio
import secrets

import ray
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    remove_placement_group,
)

from disagg.cluster.detached.names import ENGINE
from disagg.cluster.engine_node import EngineNode
from disagg.cluster.gang import Gang
from disagg.cluster.ray_node import NodeAgents, RayNode
from disagg.cluster.setting import Setting
from disagg.planning.plan import EnginePlan


class RayPlaces:
    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._agents = NodeAgents(setting)

    def ask(self, plan: EnginePlan) -> RayPlace:
        return self._asked(plan, secrets.token_hex(4))

    def again(self, plan: EnginePlan, name: str) -> RayPlace:
        """The place of this name that an earlier controller has asked for, or another one where it is gone."""
        if self._agents.names is None:
            return self.ask(plan)
        whole = self._agents.names.place(name)
        try:
            group = get_placement_group(whole)
        except ValueError:
            return self._asked(plan, name)
        self._agents.names.adopted(whole)
        return RayPlace(group, plan, self._agents, self._setting.address, name)

    def end_strays(self) -> None:
        """What an earlier controller has left, and nobody has adopted."""
        if self._agents.names is not None:
            self._agents.names.end_strays(ENGINE)
            self._agents.names.release_strays()

    def _asked(self, plan: EnginePlan, name: str) -> RayPlace:
        bundle = {kind: n for kind, n in {"CPU": plan.cpus, "GPU": plan.gpus}.items() if n}
        spread = "STRICT_SPREAD" if plan.nodes > 1 else "STRICT_PACK"
        outlives = {}
        if (names := self._agents.names) is not None:
            outlives = {"name": names.place(name), "lifetime": "detached"}
            names.adopted(outlives["name"])
        group = placement_group([bundle] * plan.nodes, strategy=spread, **outlives)
        return RayPlace(group, plan, self._agents, self._setting.address, name)

    def left(self) -> str:
        total, free = ray.cluster_resources(), ray.available_resources()
        alive = sum(node["Alive"] for node in ray.nodes())
        has = ", ".join(f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind} free" for kind in ("CPU", "GPU"))
        return f"{has} on {alive} nodes"

    def close(self) -> None:
        """Ends the agents."""
        self._agents.close()


class RayPlace:
    def __init__(self, group: PlacementGroup, plan: EnginePlan, agents: NodeAgents, address: str, name: str) -> None:
        self._group, self._agents, self._address, self.name = group, agents, address, name
        nodes = [RayNode(plan, group, agents, address, member, name) for member in range(plan.nodes)]
        self.node: EngineNode = Gang(nodes) if plan.nodes > 1 else nodes[0]

    async def granted(self) -> None:
        await asyncio.wrap_future(self._group.ready().future())

    def release(self) -> None:
        remove_placement_group(self._group)

    def handed_on(self, plan: EnginePlan) -> RayPlace:
        return RayPlace(self._group, plan, self._agents, self._address, self.name)
