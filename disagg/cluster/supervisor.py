"""One engine, incarnation after incarnation: start it, have it proven, watch it, end it, start it again.

Way:   controller -> [EngineSupervisor] -> EngineNode (Ray) -> host; LiveEngine, Watcher and Prover beside it
Out:   the engine's record in the registry, at each change
Fails: a death before it was READY for the first time is the deployment's (StartError); after that the engine is
       started again with growing pauses, each time as a new incarnation on new ports. A sick engine is QUARANTINED
       at once, then ended and started again. A drained one ends and stays so, unless it is to come back
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import msgspec

from disagg.cluster.actors import log_folder, run_folder
from disagg.cluster.engine_node import EngineNode, Ground, NodeLost, incomplete
from disagg.cluster.live import LiveEngine
from disagg.cluster.proving import Prover
from disagg.cluster.watch import IsRegistered, Watcher
from disagg.config.schema import Deadlines
from disagg.errors import LegLost, StartError
from disagg.host_spec import HostSpec
from disagg.planning.plan import EnginePlan
from disagg.registry.memory import MemoryRegistry
from disagg.registry.records import EngineRecord, Member, State
from disagg.roles import Role
from disagg.sglang.arguments import Ports
from disagg.start_phases import Phases, told
from prefill.bootstrap import ranks_are_registered

log = logging.getLogger(__name__)

BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
BACKOFF_READY_S = 2.0  # at most, after a life that was READY: what killed it was not its start
STEADY_S = 60.0  # an engine that lived this long starts the next time without a pause
POLL_S = 0.1
MEMORY_BACK_S = 1.0  # after peers were told of a decode engine's end: dead_peers.LOOK_S, ipc_cache.QUIET_S, and room
LAST_LINES = 12
EXIT_S = 1.0  # after a lost connection the exit status usually follows
EVICT_S = 5.0  # after `deadlines.drain_s` what still runs may move to other engines
QUIET_S = 0.5  # of an empty ledger: a request that was on its way when draining began would show by then
DRAINED = "drained"


@dataclass(frozen=True)
class Setting:
    """What all engines of a deployment share."""

    deployment: str
    device: str
    model_path: str
    secret: str
    deadlines: Deadlines
    python_path: list[str]
    address: str  # what engines listen on; empty: their node's address in the Ray cluster


class Kind(Enum):
    DIED = auto()  # by itself, or it could not start
    SICK = auto()
    DRAINED = auto()


@dataclass(frozen=True, slots=True)
class Ending:
    """Of an incarnation's service."""

    kind: Kind
    why: str


class EngineSupervisor:
    def __init__(
        self,
        plan: EnginePlan,
        setting: Setting,
        node: EngineNode,
        registry: MemoryRegistry,
        prover: Prover,
        is_registered: IsRegistered = ranks_are_registered,
    ) -> None:
        self.plan, self.node = plan, node
        self._setting, self._registry, self._prover, self._is_registered = setting, registry, prover, is_registered
        self.record = EngineRecord(id=plan.id, role=plan.role, state=State.STARTING, since_s=time.time())
        self._was_ready = self._life_was_ready = self._meeting_failed = False
        self._ending: asyncio.Future[Ending] | None = None  # while an incarnation serves
        self._exit_text = ""
        self._peers_told_s = 0.0
        self._phases, self._way = Phases(), ""  # of the incarnation's start
        self._drain_asked = asyncio.Event()
        self._start_asked = asyncio.Event()  # after a drain

    async def run(self) -> None:
        """Runs until it is cancelled, or until the first start has failed (StartError)."""
        failures = 0
        while True:
            began_s = time.monotonic()
            try:
                ending = await self._live()
            except (NodeLost, StartError, LegLost) as error:
                ending = Ending(Kind.DIED, error.message)
            if self._drain_asked.is_set() and ending.kind is not Kind.DRAINED:
                ending = Ending(Kind.DRAINED, f"{DRAINED}; it ended before it was empty: {ending.why}")
            if ending.kind is Kind.DIED:
                await self._put(state=State.DEAD, detail=ending.why, peers=frozenset())
            await self.node.end()
            self._prover.remove(self.record.life)
            self._peers_told_s = time.monotonic()
            if ending.kind is Kind.DRAINED:
                log.info("%s is %s", self.record.life, ending.why)
                await self._put(state=State.DEAD, detail=ending.why, peers=frozenset(), evict=False)
                await self._start_asked.wait()
                failures = 0
                continue
            if ending.kind is Kind.DIED and not self._was_ready:
                raise StartError(f"engine {self.plan.id}", ending.why, f"its whole log: disagg logs {self.plan.id}")
            failures = 0 if time.monotonic() - began_s > STEADY_S else failures + 1
            pause_s = BACKOFF_S[min(failures, len(BACKOFF_S)) - 1] if failures else 0.0
            if self._life_was_ready:
                pause_s = min(pause_s, BACKOFF_READY_S)
            what = "was sick" if ending.kind is Kind.SICK else "is dead"
            why = ending.why.splitlines()[0]
            log.warning("%s %s: %s; starting it again in %g s", self.record.life, what, why, pause_s)
            restarts = self.record.restarts + 1
            await self._put(state=State.DEAD, detail=ending.why, restarts=restarts)
            await asyncio.sleep(pause_s)

    async def proven(self, peer: str) -> None:
        """A transfer with `peer` (a life) has succeeded."""
        life = self.record.life
        lane = await self.node.lane()
        if self.record.life != life or self.record.state not in (State.STARTING, State.READY):
            return
        lives = {record.life for record in self._registry.records.values()}
        peers = (self.record.peers & lives) | ({peer} if peer != life else set())
        is_new = self.record.state is not State.READY
        if is_new:
            self._phases.end("proving")
            log.info("%s is ready, %s, after %s", life, self._way, told(self._phases.seconds))
        self._was_ready = self._life_was_ready = True
        start_s = dict(self._phases.seconds)
        await self._put(state=State.READY, peers=peers, lane=lane or self.record.lane, detail="", start_s=start_s)
        if is_new:
            self.node.keep_spare()

    async def failed(self, why: str) -> None:
        if self.record.state is State.STARTING:
            self._meeting_failed = True
            await self._put(detail=why)

    def sick(self, why: str) -> None:
        """The incarnation that serves now is not to serve any longer."""
        self._end(Ending(Kind.SICK, why))

    async def drain(self, restart: bool) -> str | None:
        """Begins to drain it; returns why it cannot. `restart`: it comes back then, also from an earlier drain."""
        state, detail = self.record.state, self.record.detail
        if state is State.DEAD and detail.startswith(DRAINED) and restart:
            self._start_asked.set()
            return None
        if state is not State.READY or self._ending is None:
            said = f" ({detail.splitlines()[0]})" if detail else ""
            return f"engine {self.plan.id} is {state}{said}; only a ready engine can be drained"
        self._drain_asked.set()
        if restart:
            self._start_asked.set()
        await self._put(state=State.DRAINING, detail="takes no new work; what runs may end")
        return None

    async def _live(self) -> Ending:
        """One incarnation, from its start to the end of its service."""
        await self._memory_is_back()
        self._drain_asked.clear()
        self._start_asked.clear()
        self._life_was_ready = self._meeting_failed = False
        incarnation = self.record.incarnation + 1
        nothing_yet = {
            "plane": "",
            "bootstrap": "",
            "pids": {},
            "members": (),
            "devices": "",
            "node": "",
            "start_s": {},
        }
        self._phases = Phases()
        await self._put(state=State.STARTING, incarnation=incarnation, detail="waits for its place", **nothing_yet)
        limit_s = self._setting.deadlines.start_s
        try:
            async with asyncio.timeout(limit_s):
                await self._start(incarnation)
        except TimeoutError:
            what = f"not started within {limit_s:g} s" + (f": it {self.record.detail}" if self.record.detail else "")
            raise StartError(
                self.record.life, what, "see `ray status` and its log, or raise deadlines.start_s"
            ) from None
        live = LiveEngine(self.record, bytes.fromhex(self._setting.secret))
        await live.connect()
        try:
            return await self._serve(live)
        finally:
            live.close()

    async def _memory_is_back(self) -> None:
        """A dead decode engine's KV pool is mapped by its prefills until they hear of it, and SGLang sizes the next
        pool by what is free when it starts."""
        if self._setting.device == "cuda" and self.plan.role is Role.DECODE and self.record.incarnation:
            wait_s = self._peers_told_s + MEMORY_BACK_S - time.monotonic()
            log.debug("%s: its GPU memory may be mapped by its peers for %.1f s", self.record.life, wait_s)
            await asyncio.sleep(wait_s)

    async def _start(self, incarnation: int) -> None:
        ground = await self.node.prepare()
        await self._put(detail="")
        spec, bootstrap = self._spec(incarnation, ground)
        self._phases.end("place")
        facts = await self.node.start(spec)
        self._way = facts.get("way", "started")
        if trouble := facts.get("log_trouble"):
            log.warning("%s: %s", spec.life, incomplete(trouble))
        self._phases.end("rest")
        self._phases.seconds |= _with_rest(facts.get("start_s", {}), self._phases.seconds.pop("rest"))
        # Polled: the event is in another process.
        while bootstrap and not await self._is_registered(bootstrap):  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        self._phases.end("bootstrap")
        await self._put(
            start_s=dict(self._phases.seconds),
            node=ground.address,
            plane=facts["plane"],
            bootstrap=bootstrap,
            ranks=facts["ranks"],
            pids=facts["pids"],
            devices=facts["devices"],
            members=msgspec.convert(facts.get("members", []), tuple[Member, ...]),
            context_length=facts["context_length"],
            kv_tokens=facts["kv_tokens"],
            request_tokens_max=facts["request_tokens_max"],
            requests_max=facts["requests_max"],
            page_size=facts["page_size"],
            ignores=facts["ignores"],
            switched_off=tuple(facts["switched_off"]),
            detail="waiting for a peer" if self.plan.role is not Role.AGGREGATED else "",
        )

    async def _serve(self, live: LiveEngine) -> Ending:
        """From up to the end of its service, whatever ends it. The processes may still be there."""
        ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._ending = ending
        exiting = asyncio.create_task(self._wait_for_exit(), name=f"exit of {live.life}")
        works = {
            "prove": self._prover.add(live),
            "meet": self._must_meet(live),
            "watch": self._watch(live),
            "drain": self._drain(live),
        }
        tasks = [exiting, *(asyncio.create_task(work, name=f"{what} {live.life}") for what, work in works.items())]
        for task in tasks:
            task.add_done_callback(self._raise_from)
        try:
            found = await ending
            live.is_retiring = True
            if found.kind is Kind.SICK:
                await self._put(state=State.QUARANTINED, detail=found.why, peers=frozenset())
                log.warning("%s is quarantined: %s", live.life, found.why)
                if not live.client.is_open and (exit_ := await self._exit_soon(exiting)) is not None:
                    found = exit_
            return found
        finally:
            self._ending = None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _exit_soon(self, exiting: asyncio.Task[None]) -> Ending | None:
        """Of an engine whose connection is lost: what is known is better told than that."""
        await asyncio.wait([exiting], timeout=EXIT_S)
        if not exiting.done() or exiting.exception() is not None:
            return None
        return Ending(Kind.DIED, self._exit_text)

    async def _wait_for_exit(self) -> None:
        exit_ = await self.node.exited()
        self._exit_text = f"{exit_['status']}\nIts last lines:\n" + "\n".join(exit_["tail"][-LAST_LINES:])
        self._end(Ending(Kind.DIED, self._exit_text))

    async def _must_meet(self, live: LiveEngine) -> None:
        """An engine whose real transfers fail for as long as a start may take is sick, though it lives."""
        limit_s = self._setting.deadlines.start_s
        while self.record.state is State.STARTING:
            await asyncio.sleep(limit_s)
            if self.record.state is State.STARTING and self._was_ready and self._meeting_failed:
                self.sick(f"no transfer has succeeded within {limit_s:g} s: {self.record.detail}")
            self._meeting_failed = False

    async def _watch(self, live: LiveEngine) -> None:
        self.sick(await Watcher(live, self.record.bootstrap, is_registered=self._is_registered).run())

    async def _drain(self, live: LiveEngine) -> None:
        """Once asked: waits until the host has granted nothing (a grant lives until the engine let go of its KV)."""
        await self._drain_asked.wait()
        live.is_retiring = True
        await asyncio.sleep(QUIET_S)
        limit_s = self._setting.deadlines.drain_s
        if not await _is_empty_within(live, limit_s):
            await self._put(evict=True, detail=f"not empty after {limit_s:g} s; what runs moves to other engines")
            await _is_empty_within(live, EVICT_S)
        self._end(Ending(Kind.DRAINED, DRAINED))

    def _end(self, ending: Ending) -> None:
        if self._ending is not None and not self._ending.done():
            self._ending.set_result(ending)

    def _raise_from(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        if self._ending is not None and not self._ending.done():
            self._ending.set_exception(error)

    def _spec(self, incarnation: int, ground: Ground) -> tuple[HostSpec, str]:
        plan, setting, address = self.plan, self._setting, ground.address
        ports = Ports.from_first(ground.first_port)
        arguments = plan.arguments(device=setting.device, model_path=setting.model_path, host=address, ports=ports)
        environment = plan.environment(device=setting.device, deadlines=setting.deadlines)
        spec = HostSpec(
            engine_id=plan.id,
            incarnation=incarnation,
            role=plan.role,
            arguments=arguments,
            environment=environment,
            plane_host=address,
            plane_port=ports.plane,
            log_path=str(log_folder(setting.deployment) / f"{plan.id}.log"),
            scratch=str(run_folder(setting.deployment) / f"{plan.id}-{incarnation}"),
            fork=ground.fork,
            is_simulated=setting.device == "simulated",
        )
        return spec, f"{address}:{ports.bootstrap}" if plan.role is Role.PREFILL else ""

    async def _put(self, **changes: Any) -> None:
        if changes.get("state", self.record.state) is not self.record.state:
            changes["since_s"] = time.time()
        self.record = msgspec.structs.replace(self.record, **changes)
        await self._registry.put(self.record)


def _with_rest(of_host: dict[str, float], whole_s: float) -> dict[str, float]:
    """What its host tells, and what passed beside that: Ray's part."""
    return {"ray": round(max(whole_s - sum(of_host.values()), 0.0), 2)} | of_host


async def _is_empty_within(live: LiveEngine, limit_s: float) -> bool:
    try:
        async with asyncio.timeout(limit_s):
            while live.quiet_s() < QUIET_S:  # noqa: ASYNC110 - it has to last
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        return False
    return True
