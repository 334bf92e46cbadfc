"""An EngineNode on Ray; the only code that talks to an engine's actor and its node's agent.

Way:   supervisor -> [RayNode] =Ray=> EngineActor, NodeAgent. An engine over several nodes has one for each (gang.py)
Fails: NodeLost when the actor or the agent is gone (the next `prepare` makes new ones), StartError as the actor says.
       An actor that does not answer is killed, and with it, through its reaper, the incarnation
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from disagg.cluster.actors import EngineActor, NodeAgent
from disagg.cluster.detached.names import AGENT, ENGINE, Names, actor_of, kill
from disagg.cluster.engine_node import Ground, NodeLost, incomplete, member_name
from disagg.cluster.setting import Setting
from disagg.errors import DisaggError
from disagg.host_spec import HostSpec, encode_spec
from disagg.planning.plan import EnginePlan
from disagg.process.news import Exit, Ready
from disagg.sglang.arguments import node_environment

T = TypeVar("T")

NODE_AGENT_S = 300.0  # SGLang's imports from a cold disk
ANSWER_S = 10.0  # an actor's answer to a question that costs it nothing
ADOPT_S = 30.0  # the same of one that an earlier controller has left: it serves, and is ended where it says nothing
END_S = 8.0  # killing an incarnation's processes; their reaper does it


class RayNode:
    """`address`: what the engine listens on; empty: its node's address in the Ray cluster. `member`: which of the
    engine's nodes this is, and its bundle in the placement group. `place`: what its actor is called, where it outlives
    its controller."""

    def __init__(
        self,
        plan: EnginePlan,
        group: PlacementGroup,
        agents: NodeAgents,
        address: str,
        member: int = 0,
        place: str = "",
    ) -> None:
        self._plan, self._group, self._agents, self._address = plan, group, agents, address
        self._member, self._name, self._place = member, member_name(plan.id, member), place
        self._actor: Any = None
        self._agent: Any = None
        self._zygote: str | None = None
        self._environment: dict[str, str] = {}

    async def prepare(self) -> Ground:
        if self._actor is not None:
            try:
                await self._answer_within(ANSWER_S, self._actor.node_id.remote())
            except NodeLost:
                self.close()
        actor = self._made()
        node_id = await self._answer(actor.node_id.remote())
        self._agent, zygote = await self._answer(self._agents.on(node_id))
        self._zygote = None if self._plan.spare else zygote
        try:
            first_port = await self._answer_within(ANSWER_S, self._agent.ports.remote(self._name))
            self._environment = await self._answer_within(ANSWER_S, self._agent.environment.remote())
        except NodeLost as error:
            self._agents.forget(node_id, self._agent)
            raise NodeLost(self._name, f"its node's agent is gone: {error.what}") from error
        return Ground(self._address or _address_of(node_id), first_port, self._zygote is not None)

    async def start(self, spec: HostSpec) -> Ready:
        ready: Ready = await self._answer(self._made().start.remote(encode_spec(spec), self._zygote, self._environment))
        return ready

    async def adopt(self, life: str) -> bool:
        names = self._agents.names
        for name in names.actors(ENGINE, self._place, str(self._member)) if names else ():
            actor = actor_of(name)
            try:
                if actor is None or await self._answer_within(ADOPT_S, actor.runs.remote()) != life:
                    continue
                node_id = await self._answer_within(ADOPT_S, actor.node_id.remote())
                self._agent, _ = await self._answer(self._agents.on(node_id))
            except NodeLost:
                continue
            assert names is not None
            names.adopted(name)
            self._actor = actor
            return True
        return False

    def keep_spare(self) -> None:
        if self._plan.spare and self._actor is not None:
            self._actor.keep_spare.remote()

    async def exited(self) -> Exit:
        exit_: Exit = await self._answer(self._made().exited.remote())
        return exit_

    async def end(self) -> None:
        if self._actor is None:
            return
        try:
            await self._answer_within(END_S, self._actor.end.remote())
        except NodeLost:
            self.close()

    async def lane(self) -> str:
        try:
            return str(await self._answer_within(ANSWER_S, self._made().lane.remote()))
        except NodeLost:
            return ""

    async def log(self, lines: int) -> str:
        if self._agent is None:
            return ""
        text = str(await self._answer_within(ANSWER_S, self._agent.log.remote(self._name, lines)))
        trouble = str(await self._answer_within(ANSWER_S, self._made().log_trouble.remote()))
        return f"{text}\n[disagg] {incomplete(trouble)}" if trouble else text

    def close(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None

    def _made(self) -> Any:
        if self._actor is None:
            strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=self._member)
            options: dict[str, Any] = {
                "num_cpus": self._plan.cpus,
                "num_gpus": self._plan.gpus,
                "scheduling_strategy": strategy,
            }
            if self._agents.names:
                options |= self._agents.names.options(ENGINE, self._place, str(self._member))
            self._actor = ray.remote(EngineActor).options(**options).remote()
        return self._actor

    async def _answer_within(self, limit_s: float, question: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(limit_s):
                return await self._answer(question)
        except TimeoutError:
            raise NodeLost(self._name, f"no answer within {limit_s:g} s") from None

    async def _answer(self, question: Awaitable[T]) -> T:
        try:
            return await question
        except RayTaskError as error:
            if isinstance(error.cause, DisaggError):
                raise error.cause from None
            raise NodeLost(self._name, str(error).strip()) from error
        except RayError as error:
            raise NodeLost(self._name, str(error).strip() or type(error).__name__) from error


def _address_of(node_id: str) -> str:
    """The address that Ray's own processes of that node use."""
    return next(str(node["NodeManagerAddress"]) for node in ray.nodes() if node["NodeID"] == node_id)


class NodeAgents:
    """One NodeAgent actor on each node that hosts an engine, made when its first engine comes. `names`: where actors
    outlive their controller; an agent that is there already is used then."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self.names = Names(setting.outlives) if setting.outlives else None
        self._by_node: dict[str, asyncio.Task[tuple[Any, str | None]]] = {}

    async def on(self, node_id: str) -> tuple[Any, str | None]:
        """The agent of a node, and its zygote's socket where engines are forked."""
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
        """It is gone, or does not answer: the next `on` makes another."""
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
        if (there := await self._there(node_id)) is not None:
            return there
        setting = self._setting
        options = self.names.options(AGENT, node_id) if self.names else {}
        environment = node_environment(device=setting.device, deadlines=setting.deadlines)
        strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
        agent = (
            ray.remote(NodeAgent)
            .options(num_cpus=0, scheduling_strategy=strategy, **options)
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

    async def _there(self, node_id: str) -> tuple[Any, str | None] | None:
        """An earlier controller's; one that does not answer, or whose zygote is gone, is ended."""
        for name in self.names.actors(AGENT, node_id) if self.names else ():
            if (agent := actor_of(name)) is None:
                continue
            try:
                async with asyncio.timeout(ADOPT_S):
                    zygote = await agent.warm_up.remote() if self._setting.device == "cpu" else None
                    await agent.environment.remote()
                    return agent, zygote
            except (RayError, TimeoutError):
                kill(name)
        return None
