"""Room for engines in a Ray cluster: a placement group an engine, one agent a node.

Way:   fleet -> [RayPlaces] =Ray=> placement groups, NodeAgent actors; an engine's node is a RayNode, or a gang of them
Owns:  the placement groups until they are released, and the agents until `close`
"""

from __future__ import annotations

import asyncio

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

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
        bundle = {kind: n for kind, n in {"CPU": plan.cpus, "GPU": plan.gpus}.items() if n}
        spread = "STRICT_SPREAD" if plan.nodes > 1 else "STRICT_PACK"
        return RayPlace(
            placement_group([bundle] * plan.nodes, strategy=spread), plan, self._agents, self._setting.address
        )

    def left(self) -> str:
        total, free = ray.cluster_resources(), ray.available_resources()
        alive = sum(node["Alive"] for node in ray.nodes())
        has = ", ".join(f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind} free" for kind in ("CPU", "GPU"))
        return f"{has} on {alive} nodes"

    def close(self) -> None:
        """Ends the agents."""
        self._agents.close()


class RayPlace:
    def __init__(self, group: PlacementGroup, plan: EnginePlan, agents: NodeAgents, address: str) -> None:
        self._group, self._agents, self._address = group, agents, address
        nodes = [RayNode(plan, group, agents, address, member) for member in range(plan.nodes)]
        self.node: EngineNode = Gang(nodes) if plan.nodes > 1 else nodes[0]

    async def granted(self) -> None:
        await asyncio.wrap_future(self._group.ready().future())

    def release(self) -> None:
        remove_placement_group(self._group)

    def handed_on(self, plan: EnginePlan) -> RayPlace:
        return RayPlace(self._group, plan, self._agents, self._address)
