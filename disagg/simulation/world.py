"""A whole deployment on one virtual loop: engines, frontends, a fleet, a network that can fail.

Way:   a test or a soak -> [SimulatedDeployment] -> the same coordinator, router, plane and control plane (fleet,
       supervisors, prover, canaries, watch, registry) that serve in earnest; nodes and engines are simulated
In:    how many engines of which model, and a seed; out: streams of tokens, and gauges of everything that is held
Owns:  all of it; leaving the `async with` block ends it
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import Any, Self

from disagg.cluster.adapters import Adapters, AdaptersOfModels
from disagg.cluster.change.keeper import Changes
from disagg.cluster.change.reading import read_over
from disagg.cluster.fleet import Fleet
from disagg.cluster.models import KeyAndSpec, Models, Told
from disagg.cluster.notes import NoNotes, Notes
from disagg.cluster.runtime import Runtime
from disagg.cluster.setting import OfModel, Setting
from disagg.config.schema import Deadlines, Deployment
from disagg.coordinator.limits import Limits
from disagg.coordinator.phases import Phase
from disagg.coordinator.request import FinishReason, NoText, Request
from disagg.errors import Problem, RequestError
from disagg.planning.plan import EnginePlan, Plan, resolve_parts
from disagg.policy_names import LEAST_LOADED
from disagg.registry.interface import Watched
from disagg.registry.memory import MemoryRegistry
from disagg.registry.records import EngineRecord, State
from disagg.roles import Role
from disagg.simulated_engine.poison import Poison
from disagg.simulated_engine.tokens import EOS
from disagg.simulation.frontends import BLOCK_TOKENS, SECRET, FrontendOfSeveral, Part
from disagg.simulation.hosts import SimulatedHost
from disagg.simulation.network import SimNetwork
from disagg.simulation.node import BootstrapLooks, SimulatedPlaces

READY_S = 60.0
CANARY_S = 3.0  # an idle engine's ranks are tried this often
DEADLINES = Deadlines(start_s=60.0, drain_s=5.0)
HOST = "controller"
Frontend = Part  # of the only model


class WatchedRegistry(MemoryRegistry):
    """Tells of each record that is put, however short it stands."""

    def __init__(self) -> None:
        super().__init__()
        self.on_put: Callable[[EngineRecord], None] = lambda _record: None

    async def put(self, record: EngineRecord) -> None:
        await super().put(record)
        self.on_put(record)


@dataclass(slots=True)
class WatchedRequest(Request):
    """Keeps its whole history, and tells of each change of phase."""

    history: list[tuple[str, float]] = field(default_factory=list)
    on_phase: Callable[[WatchedRequest], None] | None = None
    told: Phase = Phase.QUEUED

    def mark(self, name: str, at_s: float) -> None:
        self.timeline.setdefault(name, at_s)
        self.history.append((name, at_s))
        if self.phase is not self.told and self.on_phase is not None:
            self.told = self.phase
            self.on_phase(self)


class Stream:
    """A client that reads its answer as it comes. It is the request's sink; at every fourth piece it lags for a
    turn."""

    def __init__(self, frontend: Part, request: WatchedRequest) -> None:
        self.frontend, self.request = frontend, request
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.error: RequestError | None = None
        self._changed = asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self._read(), name=request.id)

    async def until_tokens(self, count: int) -> None:
        while len(self.ids) < count and not self.task.done():
            self._changed.clear()
            await self._changed.wait()

    async def rest(self) -> list[int]:
        """The whole answer, or the error that ended it."""
        await self.task
        if self.error is not None:
            raise self.error
        return self.ids

    async def leave(self) -> None:
        """The client closes its connection."""
        self.task.cancel()
        await asyncio.wait([self.task])

    # disagg.coordinator.sink.Sink

    def is_open(self) -> bool:
        return len(self.ids) % 4 > 0

    async def opens(self) -> None:
        await asyncio.sleep(0)

    def put(self, _text: str, token_ids: list[int]) -> None:
        self.ids += token_ids
        self._changed.set()

    def end(self, text: str, token_ids: list[int], reason: FinishReason) -> None:
        self.put(text, token_ids)
        self.finish_reason = reason

    def forgets(self) -> bool:
        return False

    async def _read(self) -> None:
        try:
            await self.frontend.coordinator.run(self.request, self)
        except RequestError as error:
            self.error = error
        finally:
            self._changed.set()


async def _nothing(_plan: Plan) -> tuple[Problem, ...]:
    """What speaks against a plan here."""
    return ()


async def _learn(plan: Plan) -> Told:
    return Told(OfModel("", None, BLOCK_TOKENS), {"name": plan.model.name, "path": plan.model.path})


async def _has_seen(_limit_s: float) -> bool:
    await asyncio.sleep(0.05)
    return True


async def _read_here(text: str, now: Deployment) -> Deployment:
    """There are no threads in virtual time."""
    return read_over(text, now)


class SimulatedDeployment:
    """A whole deployment in one process on a virtual clock: engines, control plane, frontends, and the network between.

    One `seed` decides everything that is random. Times are virtual seconds. Used as an async context.
    """

    def __init__(
        self,
        prefill: int = 1,
        decode: int = 1,
        aggregated: int = 0,
        *,
        seed: int,
        frontends: int = 1,
        limits: Limits | None = None,
        model: dict[str, Any] | None = None,  # of all roles
        prefill_model: dict[str, Any] | None = None,
        decode_model: dict[str, Any] | None = None,
        aggregated_model: dict[str, Any] | None = None,
        policy: str = LEAST_LOADED,  # as load_policy takes it
        deployment: Deployment | None = None,  # in the place of the counts and models; operators may change it
    ) -> None:
        self.seed, self.random, self.policy = seed, Random(seed), policy
        self.limits = limits or Limits()
        shared = model or {}
        own = {Role.PREFILL: prefill_model, Role.DECODE: decode_model, Role.AGGREGATED: aggregated_model}
        self._engine_of = {role: shared | (of_role or {}) for role, of_role in own.items()}
        self.plans = {
            f"{role.value}-{n}": self.plan(role, n)
            for role, count in ((Role.PREFILL, prefill), (Role.DECODE, decode), (Role.AGGREGATED, aggregated))
            for n in range(count)
        }
        self._deployment, self._plans = deployment, resolve_parts(deployment, "simulated") if deployment else ()
        if deployment is not None:
            self.plans = {engine.id: engine for plan in self._plans for engine in plan.engines}
        self.network = SimNetwork(seed)
        self.registry = WatchedRegistry()
        self.notes: Notes = NoNotes()
        self.places = SimulatedPlaces(self.network, SECRET, seed)
        self.stops = asyncio.Event()  # an operator has said so
        self._frontend_count = frontends
        self.frontends: list[Frontend] = []
        self.of_several: list[FrontendOfSeveral] = []  # in their place, where there are several models
        self.request_count = 0

    @property
    def told(self) -> Watched:
        """What frontends follow."""
        return self.registry

    async def control(self) -> None:
        """Makes what a controller has: a fleet, and who changes it."""
        loop = asyncio.get_running_loop()
        runtime = Runtime(loop.time, loop.time, self.network.at(HOST), Random(self.seed))
        secret = SECRET.hex()
        several = {plan.deployment.key: (await _learn(plan)).engines for plan in self._plans if plan.deployment.key}
        setting = Setting(
            "simulated", "simulated", "", secret, DEADLINES, [], "", block_tokens=BLOCK_TOKENS, of_models=several
        )
        looks = BootstrapLooks(self.network, f"{HOST}'s looks")

        def adapters_of(plan: Plan) -> Adapters:
            return Adapters(self.registry, runtime, None, (), DEADLINES.drain_s, plan.deployment.key)

        of_models = {plan.deployment.key: adapters_of(plan) for plan in self._plans}
        adapters = self.adapters = AdaptersOfModels(of_models, [plan.model.name for plan in self._plans])
        of_all = setting, self.registry, self.places, runtime, CANARY_S, looks
        self.fleet = Fleet(*of_all, adapters=adapters if several else None, notes=self.notes)
        if self._deployment is not None:
            learnt = _learn, adapters_of, _has_seen, DEADLINES.drain_s
            self.models = Models(self.registry, self.fleet, several, adapters, *learnt)
            told = self._deployment, self._plans, self.models, loop.time, _nothing, self.stops.set
            self.changes = Changes(self.fleet, self.registry, *told, read=_read_here)

    async def begun(self) -> list[KeyAndSpec]:
        """The models of the start, where there are several."""
        plans = [plan for plan in self._plans if plan.deployment.key]
        return [(plan.deployment.key, (await _learn(plan)).frontends) for plan in plans]

    async def __aenter__(self) -> Self:
        await self.control()
        if self._deployment is not None and self._deployment.models:
            await self.models.begin(await self.begun())
            self.of_several = [FrontendOfSeveral(self, n) for n in range(self._frontend_count)]
        else:
            self.frontends = [Frontend(self, n) for n in range(self._frontend_count)]
        await self.fleet.place(list(self.plans.values()))
        self.fleet.begin()
        async with asyncio.timeout(READY_S):
            while not self.is_whole:
                self.fleet.check()
                await asyncio.sleep(0.05)
        if self._deployment is not None:
            self.changes.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for frontend in self._all_frontends:
            await frontend.close()
        if self._deployment is not None:
            await self.changes.close()
        await self.fleet.stop()
        await asyncio.sleep(0.1)

    @property
    def _all_frontends(self) -> Sequence[Frontend | FrontendOfSeveral]:
        return self.of_several or self.frontends

    # clients

    def request(self, prompt: list[int], max_tokens: int, *, ignore_eos: bool = True) -> WatchedRequest:
        self.request_count += 1
        name = hashlib.blake2b(b"%d %d" % (self.seed, self.request_count), digest_size=16).hexdigest()
        now_s = asyncio.get_running_loop().time()
        sampling = {"temperature": 0.0, "ignore_eos": ignore_eos}
        request = WatchedRequest(name, prompt, sampling, max_tokens, NoText(), now_s)
        request.end_ids = frozenset() if ignore_eos else frozenset({EOS})
        return request

    def open(
        self,
        prompt: list[int],
        max_tokens: int,
        *,
        ignore_eos: bool = True,
        poison: Poison | None = None,
        model: str = "",
    ) -> Stream:
        request = self.request(prompt, max_tokens, ignore_eos=ignore_eos)
        if poison is not None:
            request.sampling["poison"] = poison
        return Stream(self.of_several[0].parts[model] if model else self.frontends[0], request)

    async def generate(self, prompt: list[int], max_tokens: int, *, ignore_eos: bool = True) -> list[int]:
        return await self.open(prompt, max_tokens, ignore_eos=ignore_eos).rest()

    # engines

    def plan(self, role: Role, number: int) -> EnginePlan:
        """Of the engine `number` of a role, whether it is there or not."""
        engine = self._engine_of[role]
        return EnginePlan(f"{role.value}-{number}", role, role.value, 0, 1.0, 0.0, 1, 1, 1, engine, {})

    @property
    def hosts(self) -> dict[str, SimulatedHost]:
        """By engine id: the newest incarnation's."""
        places = self.places.by_engine
        return {engine_id: place.node.host for engine_id, place in places.items() if place.node.host is not None}

    def host_of(self, stream: Stream, role: Role) -> SimulatedHost:
        """Where the stream runs now, or ran last."""
        facts = stream.request.facts
        rank = facts.prefill if role is Role.PREFILL else facts.decode
        assert rank is not None
        return self.hosts[rank.engine_id]

    @property
    def is_whole(self) -> bool:
        """Every engine is READY, lives, and has met every other one."""
        records, met, hosts = self.registry.records, self.registry.met, self.hosts
        prefills: dict[str, set[str]] = {}
        for record in records.values():
            prefills.setdefault(record.group, set()).update([record.life] if record.role is Role.PREFILL else ())
        return records.keys() == self.plans.keys() and all(
            r.state is State.READY
            and hosts[r.id].is_alive
            and (r.role is not Role.DECODE or prefills[r.group] <= met.met_with(r.life))
            for r in records.values()
        )

    async def settle(self, limit_s: float = 120.0) -> None:
        """Until every engine is READY again and nobody holds anything."""
        async with asyncio.timeout(limit_s):
            while not self.is_whole or any(self.gauges().values()):  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    # gauges

    def gauges(self) -> dict[str, int]:
        """Everything that requests hold; all 0 when none runs."""
        parts = [part for each in self._all_frontends for part in each.parts.values()]
        coordinators = [part.coordinator for part in parts]
        hosts = [host for host in self.hosts.values() if host.is_alive]
        return {
            "requests": sum(len(c.live) for c in coordinators),
            "waiting": sum(c.waiting for c in coordinators),
            "attempts": sum(len(c.attempts) for c in coordinators),
            "rooms": sum(len(c.rooms) for c in coordinators) + self.fleet.prover.rooms,
            "places": sum(part.router.endpoints.places_taken for part in parts),
            "granted requests": sum(sum(host.server.ledger.requests) for host in hosts),
            "granted kv tokens": sum(sum(host.server.ledger.kv_tokens) for host in hosts),
            "legs": sum(host.engine.legs_live for host in hosts),
            "kv tokens": sum(host.engine.kv_tokens_used for host in hosts),
            "engine rooms": sum(host.engine.bootstrap.rooms_open for host in hosts),
        }
