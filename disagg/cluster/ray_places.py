"""Room for engines in a Ray cluster: a placement group an engine, one agent a node.

Way:   fleet -> [RayPlaces] =Ray=> placement groups, NodeAgent actors; an engine's node is a RayNode, or a gang of them
Owns:  the placement groups until they are released, and the agents until `close`
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from disagg.cluster.actors import NodeAgent
from disagg.cluster.engine_node import EngineNode, NodeLost
from disagg.cluster.gang import Gang
from disagg.cluster.ray_node import RayNode
from disagg.cluster.setting import Setting
from disagg.planning.plan import EnginePlan
from disagg.sglang.arguments import node_environment

NODE_AGENT_S = 300.0  # SGLang's imports from a cold disk


class RayPlaces:
    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._agents = _NodeAgents(setting)

    def ask(self, plan: EnginePlan) -> RayPlace:
        bundle = {kind: n for kind, n in {"CPU": plan.cpus, "GPU": plan.gpus}.items() if n}
        spread = "STRICT_SPREAD" if plan.nodes > 1 else "STRICT_PACK"
        group = placement_group([bundle] * plan.nodes, strategy=spread)
        nodes = [RayNode(plan, group, self._agents, self._setting.address, member) for member in range(plan.nodes)]
        return RayPlace(group, Gang(nodes) if plan.nodes > 1 else nodes[0])

    def left(self) -> str:
        total, free = ray.cluster_resources(), ray.available_resources()
        alive = sum(node["Alive"] for node in ray.nodes())
        has = ", ".join(f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind} free" for kind in ("CPU", "GPU"))
        return f"{has} on {alive} nodes"

    def close(self) -> None:
        """Ends the agents."""
        self._agents.close()


class RayPlace:
    def __init__(self, group: PlacementGroup, node: EngineNode) -> None:
        self._group, self.node = group, node

    async def granted(self) -> None:
        await asyncio.wrap_future(self._group.ready().future())

    def release(self) -> None:
        remove_placement_group(self._group)


class _NodeAgents:
    """One NodeAgent actor on each node that hosts an engine, made when its first engine comes."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._by_node: dict[str, asyncio.Task[tuple[Any, str | None]]] = {}

    async def on(self, node_id: str) -> tuple[Any, str | None]:
        making = self._by_node.get(node_id)
        if making is None:
            making = self._by_node[node_id] = asyncio.create_task(self._make(node_id))
        try:
            return await asyncio.shield(making)
        except BaseException:
            if making.done() and self._by_node.get(node_id) is making:  # else one of those who wait gave up
                del self._by_node[node_id]
            raise

    def forget(self, node_id: str, agent: Any) -> None:
        task = self._by_node.get(node_id)
        if task is not None and task.done() and task.result()[0] is agent:
            self._end(self._by_node.pop(node_id))

    def close(self) -> None:
        for task in self._by_node.values():
            self._end(task)

    def _end(self, task: asyncio.Task[tuple[Any, str | None]]) -> None:
        if task.done() and not task.cancelled() and task.exception() is None:
            ray.kill(task.result()[0])

    async def _make(self, node_id: str) -> tuple[Any, str | None]:
        setting = self._setting
        environment = node_environment(device=setting.device, deadlines=setting.deadlines)
        strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
        agent = (
            ray.remote(NodeAgent)
            .options(num_cpus=0, scheduling_strategy=strategy)
            .remote(setting.deployment, setting.secret, environment, setting.python_path)
        )
        try:
            async with asyncio.timeout(NODE_AGENT_S):
                await agent.environment.remote()  # a new actor takes its time; one that is late afterwards is gone
                # On a GPU the imports initialise CUDA, and a CUDA process cannot be forked: there engines are spawned.
                return agent, await agent.warm_up.remote() if setting.device == "cpu" else None
        except TimeoutError:
            ray.kill(agent)
            raise NodeLost(f"node {node_id}", f"its agent was not ready within {NODE_AGENT_S:g} s") from None
