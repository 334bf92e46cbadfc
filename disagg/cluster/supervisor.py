"""One engine, incarnation after incarnation: start it, have it proven, wait for its death, start it again.

Way:   controller -> [EngineSupervisor] =Ray=> EngineActor -> warden -> host
Out:   the engine's record in the registry, at each change
Fails: before it was READY for the first time, a failure is the deployment's (StartError); after that the engine is
       started again with growing pauses, each time as a new incarnation on new ports
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from typing import Any, Protocol

import msgspec
import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from disagg.cluster.actors import EngineActor, log_folder, run_folder
from disagg.cluster.proving import Prover
from disagg.config.plan import EnginePlan
from disagg.config.schema import Deadlines
from disagg.engine.arguments import Ports
from disagg.engine.spec import HostSpec, encode_spec
from disagg.errors import DisaggError, LegLost, StartError
from disagg.registry.memory import MemoryRegistry
from disagg.registry.records import EngineRecord, Role, State
from prefill.bootstrap import ranks_are_registered

log = logging.getLogger(__name__)

BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
STEADY_S = 60.0  # an engine that lived this long starts the next time without a pause
POLL_S = 0.1
LAST_LINES = 12


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all engines of a deployment share."""

    deployment: str
    device: str
    model_path: str
    secret: str
    deadlines: Deadlines
    python_path: list[str]
    address: str  # what engines listen on; empty: their node's address in the Ray cluster


class Nurseries(Protocol):
    async def on(self, node_id: str) -> tuple[Any, str | None]:
        """The nursery actor of a node, and its zygote's socket where engines are forked."""


class EngineSupervisor:
    def __init__(
        self,
        plan: EnginePlan,
        setting: Setting,
        group: PlacementGroup,
        nurseries: Nurseries,
        registry: MemoryRegistry,
        prover: Prover,
    ) -> None:
        self.plan, self._setting, self._group = plan, setting, group
        self._nurseries, self._registry, self._prover = nurseries, registry, prover
        self.record = EngineRecord(id=plan.id, role=plan.role, state=State.STARTING, since_s=time.time())
        self._actor: Any = None
        self._nursery: Any = None
        self._was_ready = asyncio.Event()
        self._start_failure: StartError | None = None

    async def run(self) -> None:
        """Runs until it is cancelled, or until the first start has failed (StartError)."""
        failures = 0
        while True:
            began_s = time.monotonic()
            try:
                why = await self._live()
            except (RayActorError, RayTaskError, StartError, LegLost) as error:
                why = _reason(error)
            self._prover.remove(self.record.life)
            if not self._was_ready.is_set():
                await self._put(state=State.DEAD, detail=why)
                raise StartError(f"engine {self.plan.id}", why, f"its whole log: disagg logs {self.plan.id}")
            failures = 0 if time.monotonic() - began_s > STEADY_S else failures + 1
            pause_s = BACKOFF_S[min(failures, len(BACKOFF_S)) - 1] if failures else 0.0
            log.warning("%s is dead: %s; starting it again in %g s", self.record.life, why.splitlines()[0], pause_s)
            await self._put(state=State.DEAD, detail=why, restarts=self.record.restarts + 1, peers=frozenset())
            await asyncio.sleep(pause_s)

    async def proven(self, peer: str) -> None:
        """A transfer with `peer` (a life) has succeeded."""
        lane = await self._actor.lane.remote()
        peers = self.record.peers | ({peer} if peer != self.record.life else set())
        if self.record.state is not State.READY:
            log.info("%s is ready", self.record.life)
        await self._put(state=State.READY, peers=peers, lane=lane or self.record.lane, detail="")
        self._was_ready.set()

    async def failed(self, why: str) -> None:
        if self.record.state is not State.READY:
            await self._put(detail=why)

    async def devices(self) -> str:
        """CUDA_VISIBLE_DEVICES as Ray gave it to this engine's actor."""
        self._actor = self._actor or self._make_actor()
        devices: str = await self._actor.devices.remote()
        return devices

    async def read_log(self, lines: int) -> str:
        if self._nursery is None:
            return ""
        text: str = await self._nursery.log.remote(self.plan.id, lines)
        return text

    async def end(self) -> None:
        if self._actor is not None:
            with contextlib.suppress(RayActorError, TimeoutError):
                await asyncio.wait_for(self._actor.end.remote(), 5.0)
            ray.kill(self._actor)
            self._actor = None

    async def _live(self) -> str:
        """One incarnation, from its start to its death; returns the reason."""
        incarnation = self.record.incarnation + 1
        await self._put(state=State.STARTING, incarnation=incarnation, plane="", bootstrap="", pids={}, detail="")
        if self._actor is None or not await self._actor_answers():
            self._actor = self._make_actor()
        node_id = await self._actor.node_id.remote()
        self._nursery, zygote = await self._nurseries.on(node_id)
        first_port, environment = await asyncio.gather(self._nursery.ports.remote(), self._nursery.environment.remote())
        address = self._setting.address or _address_of(node_id)
        spec, bootstrap = self._spec(incarnation, address, Ports(first_port, first_port + 9, first_port + 7), zygote)
        try:
            async with asyncio.timeout(self._setting.deadlines.start_s):
                facts = await self._actor.start.remote(encode_spec(spec), zygote, environment)
                # Polled: the event is in another process.
                while bootstrap and not await ranks_are_registered(bootstrap):  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise StartError(
                spec.life, f"not started within {self._setting.deadlines.start_s:g} s", "raise deadlines.start_s"
            ) from None
        await self._put(
            node=address,
            plane=facts["plane"],
            bootstrap=bootstrap,
            ranks=facts["ranks"],
            pids=facts["pids"],
            devices=facts["devices"],
            context_length=facts["context_length"],
            kv_tokens=facts["kv_tokens"],
            request_tokens_max=facts["request_tokens_max"],
            requests_max=facts["requests_max"],
            page_size=facts["page_size"],
            detail="waiting for a peer" if self.plan.role is not Role.AGGREGATED else "",
        )
        proving = asyncio.create_task(self._prover.add(self.record), name=f"prove {self.record.life}")
        try:
            exit_ = await self._actor.exited.remote()
        finally:
            proving.cancel()
        return f"{exit_['status']}\nIts last lines:\n" + "\n".join(exit_["tail"][-LAST_LINES:])

    def _spec(self, incarnation: int, address: str, ports: Ports, zygote: str | None) -> tuple[HostSpec, str]:
        plan, setting = self.plan, self._setting
        arguments = plan.arguments(device=setting.device, model_path=setting.model_path, host=address, ports=ports)
        environment = plan.environment(device=setting.device, deadlines=setting.deadlines)
        spec = HostSpec(
            engine_id=plan.id,
            incarnation=incarnation,
            role=plan.role,
            arguments=arguments,
            environment=environment,
            plane_host=address,
            log_path=str(log_folder(setting.deployment) / f"{plan.id}.log"),
            scratch=str(run_folder(setting.deployment) / f"{plan.id}-{incarnation}"),
            fork=zygote is not None,
        )
        return spec, f"{address}:{ports.bootstrap}" if plan.role is Role.PREFILL else ""

    def _make_actor(self) -> Any:
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=0)
        options = {"num_cpus": self.plan.cpus, "num_gpus": self.plan.gpus, "scheduling_strategy": strategy}
        return ray.remote(EngineActor).options(**options).remote()

    async def _actor_answers(self) -> bool:
        try:
            await self._actor.lane.remote()
        except RayActorError:
            return False
        return True

    async def _put(self, **changes: Any) -> None:
        if changes.get("state", self.record.state) is not self.record.state:
            changes["since_s"] = time.time()
        self.record = msgspec.structs.replace(self.record, **changes)
        await self._registry.put(self.record)


def _address_of(node_id: str) -> str:
    """The address that Ray's own processes of that node use."""
    return next(str(node["NodeManagerAddress"]) for node in ray.nodes() if node["NodeID"] == node_id)


def _reason(error: Exception) -> str:
    cause = error.cause if isinstance(error, RayTaskError) else error
    return cause.message if isinstance(cause, DisaggError) else str(cause).strip() or type(cause).__name__
