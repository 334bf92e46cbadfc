"""The deployment's driver side: placement groups, agents, one supervisor an engine, the registry.

Way:   `disagg serve` -> [Controller] =Ray=> actors; frontends read the registry it serves, and hand on what
       operators ask (an engine's log lines, its drain)
Owns:  everything it started: `stop` ends it, whatever state it is in
Fails: StartError when the cluster has too little, or the first start of an engine fails
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from disagg.cluster.actors import NodeAgent
from disagg.cluster.canaries import Canaries
from disagg.cluster.engine_node import EngineNode, NodeLost
from disagg.cluster.gang import Gang
from disagg.cluster.proving import Prover
from disagg.cluster.ray_node import RayNode
from disagg.cluster.runtime import Runtime
from disagg.cluster.setting import Setting
from disagg.cluster.supervisor import EngineSupervisor
from disagg.errors import StartError
from disagg.lives import engine_id_of
from disagg.planning.plan import EnginePlan, Plan
from disagg.registry.control import ControlServer
from disagg.registry.memory import MemoryRegistry
from disagg.registry.records import State
from disagg.registry.served import RegistryServer
from disagg.sglang.arguments import node_environment

log = logging.getLogger(__name__)

PLACEMENT_S = 20.0
NODE_AGENT_S = 300.0  # SGLang's imports from a cold disk


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
        secret = bytes.fromhex(setting.secret)
        self.registry = MemoryRegistry()
        self._served = RegistryServer(self.registry, secret)
        self._control = ControlServer(secret, self._read_log, self._drain)
        self._runtime = Runtime()
        self._prover = Prover(self.registry, self._on_proven, self._on_failed, self._runtime.random)
        canary_s = plan.deployment.health.canary_s
        self._canaries = Canaries(self._prover, self._on_sick, canary_s, self._runtime.now_s)
        self._agents = _NodeAgents(setting)
        self._groups: list[PlacementGroup] = []
        self._nodes: dict[str, EngineNode] = {}
        self.supervisors: dict[str, EngineSupervisor] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, host: str) -> Addresses:
        """Places and starts everything, without waiting for READY; returns where frontends reach it."""
        registry, control = await self._served.start(host), await self._control.start(host)
        await self.place()
        self._tasks = [
            asyncio.create_task(supervisor.run(), name=f"supervise {supervisor.plan.id}")
            for supervisor in self.supervisors.values()
        ]
        self._tasks.append(asyncio.create_task(self._prover.run(), name="prove pairs"))
        self._tasks.append(asyncio.create_task(self._canaries.run(), name="idle canaries"))
        return Addresses(f"{host}:{registry}", f"{host}:{control}")

    async def place(self) -> None:
        """A placement group and a supervisor an engine; raises StartError when the cluster has no room for all."""
        for engine in self._plan.largest_first():
            bundle = {kind: n for kind, n in {"CPU": engine.cpus, "GPU": engine.gpus}.items() if n}
            spread = "STRICT_SPREAD" if engine.nodes > 1 else "STRICT_PACK"
            group = placement_group([bundle] * engine.nodes, strategy=spread)
            self._groups.append(group)
            node = self._nodes[engine.id] = self._node(engine, group)
            supervisor = EngineSupervisor(engine, self._setting, node, self.registry, self._prover, self._runtime)
            self.supervisors[engine.id] = supervisor
            await self.registry.put(supervisor.record)
        await self._wait_for_places()

    def _node(self, engine: EnginePlan, group: PlacementGroup) -> EngineNode:
        members = [
            RayNode(engine, group, self._agents, self._setting.address, member) for member in range(engine.nodes)
        ]
        return Gang(members) if engine.nodes > 1 else members[0]

    async def until_ready(self) -> None:
        """Returns when every engine is READY; raises StartError when one fails to start, or `start_s` is over."""
        watching = asyncio.create_task(self._all_ready())
        try:
            async with asyncio.timeout(self._setting.deadlines.start_s):
                await asyncio.wait([watching, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            waiting = [
                f"{s.record.id} ({s.record.detail or s.record.state})"
                for s in self.supervisors.values()
                if s.record.state is not State.READY
            ]
            raise StartError(
                "deployment",
                f"not ready within {self._setting.deadlines.start_s:g} s: {'; '.join(waiting)}",
                "see its logs",
            ) from None
        finally:
            watching.cancel()
        self.check()

    async def devices(self) -> dict[str, str]:
        """CUDA_VISIBLE_DEVICES of each engine's actor."""
        return {engine_id: await node.devices() for engine_id, node in self._nodes.items()}

    def check(self) -> None:
        """Raises what ended a supervisor."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def failed(self) -> None:
        """Returns when a supervisor, the prover or the canaries have ended, which they do only by an error."""
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(node.end() for node in self._nodes.values()))
        for node in self._nodes.values():
            node.close()
        await self._served.close()
        await self._control.close()
        self._agents.close()
        for group in self._groups:
            remove_placement_group(group)

    async def _wait_for_places(self) -> None:
        needs = ", ".join(
            f"{e.id}: {e.cpus:g} CPU {e.gpus:g} GPU" + (f" on each of {e.nodes} nodes" if e.nodes > 1 else "")
            for e in self._plan.engines
        )
        try:
            async with asyncio.timeout(PLACEMENT_S):
                await asyncio.gather(*(asyncio.wrap_future(group.ready().future()) for group in self._groups))
        except TimeoutError:
            total, free = ray.cluster_resources(), ray.available_resources()
            alive = sum(node["Alive"] for node in ray.nodes())
            has = ", ".join(f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind} free" for kind in ("CPU", "GPU"))
            raise StartError(
                "placement",
                f"the Ray cluster has no room for the engines: they need {needs}; it has {has} on {alive} nodes",
                "lower resources or replicas, or add nodes",
            ) from None

    async def _all_ready(self) -> None:
        async for view in self.registry.watch():
            if all(record.state is State.READY for record in view.records.values()):
                return

    async def _on_proven(self, life: str) -> None:
        supervisor = self._of(life)
        if supervisor is not None:
            await supervisor.proven()

    async def _on_failed(self, life: str, why: str) -> None:
        supervisor = self._of(life)
        if supervisor is not None:
            await supervisor.failed(why)

    def _on_sick(self, life: str, why: str) -> None:
        supervisor = self._of(life)
        if supervisor is not None:
            supervisor.sick(why)

    def _of(self, life: str) -> EngineSupervisor | None:
        supervisor = self.supervisors[engine_id_of(life)]
        return supervisor if supervisor.record.life == life else None

    async def _read_log(self, engine_id: str, lines: int) -> str | None:
        supervisor = self.supervisors.get(engine_id)
        if supervisor is None:
            return None
        try:
            return await supervisor.node.log(lines)
        except NodeLost as error:
            return f"its log cannot be read now: {error.message}"

    async def _drain(self, engine_id: str, restart: bool) -> str | None:
        supervisor = self.supervisors.get(engine_id)
        if supervisor is None:
            return f"there is no engine '{engine_id[:100]}' here; there are {', '.join(sorted(self.supervisors))}"
        return await supervisor.drain(restart)


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
