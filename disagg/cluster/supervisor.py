"""One engine, incarnation after incarnation: start it, have it proven, watch it, end it, start it again.

Way:   controller -> [EngineSupervisor] -> EngineNode -> host; LiveEngine, Watcher and Prover beside it
Out:   the engine's record in the registry, at each change
Fails: a death before it was READY for the first time is the deployment's (StartError); after that the engine is
       started again with growing pauses, each time as a new incarnation on new ports. A sick engine is QUARANTINED
       at once, then ended and started again. A drained one ends and stays so, unless it is to come back
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import msgspec

from disagg.cluster.adapters import Brought
from disagg.cluster.engine_life import EngineLife, Event
from disagg.cluster.engine_node import EngineNode, NodeLost, incomplete
from disagg.cluster.live import LiveEngine
from disagg.cluster.proving import Prover
from disagg.cluster.runtime import Runtime
from disagg.cluster.setting import Setting, host_spec
from disagg.cluster.watch import IsRegistered, Watcher
from disagg.errors import LegLost, StartError
from disagg.nearness import place_of
from disagg.planning.plan import EnginePlan
from disagg.process.news import Exit
from disagg.registry.interface import Registry
from disagg.registry.records import EngineRecord, IncarnationFacts, State
from disagg.role_table import ROLES
from disagg.start_phases import Phases, told

log = logging.getLogger(__name__)

BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
BACKOFF_READY_S = 2.0  # at most, after a life that was READY: what killed it was not its start
STEADY_S = 60.0  # an engine that lived this long starts the next time without a pause
POLL_S = 0.1
REGISTERED_POLL_S = 0.02  # an engine that is up waits for nothing else
LAST_LINES = 12
DRAINED = "drained"  # what the record of an engine that rests begins with
EXIT_S = 1.0  # after a lost connection we wait this long for the exit status, which says more
EVICT_S = 5.0  # after `deadlines.drain_s` what still runs may move to other engines
ALONE_MAX = 3  # failed probes in a row of a READY engine all whose peers have ended
QUIET_S = 0.5  # the ledger stays empty this long: a request that was on its way when draining began has come by then


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
    """Runs one engine: a loop over its incarnations, each started, proven, watched, ended, and started again.

    `run` is its task, and raises StartError if the first start fails. `drain` takes it out of service, for an operator.
    Times are seconds of the runtime's clock; pauses between starts grow with failures in a row.
    """

    def __init__(
        self,
        plan: EnginePlan,
        setting: Setting,
        node: EngineNode,
        registry: Registry,
        prover: Prover,
        runtime: Runtime,
        is_registered: IsRegistered | None = None,
        *,
        adapters: Brought | None = None,
        last_incarnation: int = 0,
        must_start: bool = True,
        earlier: EngineRecord | None = None,
        is_adopted: bool = False,
    ) -> None:
        """`is_registered`: None asks the role. `adapters`: what it must have before it serves; None: nothing.
        `must_start`: a first start that fails ends `run`. `earlier`: of a controller before this one; `is_adopted`:
        what it tells of runs still, and `run` goes on with it."""
        self.plan, self.node = plan, node
        self._setting, self._registry, self._prover = setting, registry, prover
        self._role = ROLES[plan.role]
        self._is_registered = is_registered or self._role.is_registered
        self._must_start, self._adapters = must_start, adapters
        self._runtime, self._now_s = runtime, runtime.now_s
        record = EngineRecord(
            id=plan.id, role=plan.role, state=State.NEW, group=plan.group, incarnation=last_incarnation
        )
        self._is_drained = False  # it rests until it is asked to start
        self._peers_told_s = 0.0
        if earlier is not None:
            self._is_drained = earlier.state is State.DEAD and earlier.detail.startswith(DRAINED)
            kept = is_adopted or self._is_drained
            record = earlier if kept else msgspec.structs.replace(record, restarts=earlier.restarts + 1)
            self._peers_told_s = runtime.now_s()
        self._is_adopted = is_adopted
        self._life = EngineLife(record, registry.put, runtime.wall_s)
        self._was_ready = self._life_was_ready = self._meeting_failed = False
        self._failed_alone = 0
        self._lane_is_asked = self._lane_is_old = False
        self._ending: asyncio.Future[Ending] | None = None  # while an incarnation serves
        self._phases, self._way = Phases(now_s=self._now_s), ""  # of the incarnation's start
        self._drain_asked = asyncio.Event()
        self._start_asked = asyncio.Event()  # after a drain
        self._is_down = asyncio.Event()  # drained, or ended otherwise

    @property
    def record(self) -> EngineRecord:
        return self._life.record

    async def run(self) -> None:
        """Runs until it is cancelled, or until the first start has failed (StartError)."""
        failures = 0
        if self._is_drained:
            await self._start_asked.wait()
        while True:
            began_s = self._now_s()
            try:
                ending = await self._live()
            except (NodeLost, StartError, LegLost) as error:
                ending = Ending(Kind.DIED, error.message)
            if self._drain_asked.is_set() and ending.kind is not Kind.DRAINED:
                ending = Ending(Kind.DRAINED, f"{DRAINED}; it ended before it was empty: {ending.why}")
            if ending.kind is Kind.DIED:
                await self._life.advance(Event.DIED, detail=ending.why)
                await self._registry.forget(self.record.life)
            await self.node.end()
            self._is_down.set()
            self._prover.remove(self.record.life)
            await self._registry.forget(self.record.life)
            self._peers_told_s = self._now_s()
            if ending.kind is Kind.DRAINED:
                log.info("%s is %s", self.record.life, ending.why)
                self._is_drained = True
                await self._life.advance(Event.ENDED, detail=ending.why, evict=False)
                await self._start_asked.wait()
                failures = 0
                continue
            if ending.kind is Kind.DIED and self._must_start and not self._was_ready:
                raise StartError(f"engine {self.plan.id}", ending.why, f"its whole log: disagg logs {self.plan.id}")
            failures = 0 if self._now_s() - began_s > STEADY_S else failures + 1
            pause_s = BACKOFF_S[min(failures, len(BACKOFF_S)) - 1] if failures else 0.0
            if self._life_was_ready:
                pause_s = min(pause_s, BACKOFF_READY_S)
            what = "was sick" if ending.kind is Kind.SICK else "is dead"
            why = ending.why.splitlines()[0]
            log.warning("%s %s: %s; starting it again in %g s", self.record.life, what, why, pause_s)
            restarts = self.record.restarts + 1
            if ending.kind is Kind.SICK:
                await self._life.advance(Event.ENDED, restarts=restarts)
            else:
                await self._life.note(restarts=restarts)
            await asyncio.sleep(pause_s)

    async def proven(self) -> None:
        """A transfer with a peer has succeeded; the registry knows with whom. Returns when its lane is looked up, too:
        that asks an actor, and nobody waits for it to be READY."""
        await self._note_proven()
        self._lane_is_old = True
        if self._lane_is_asked:
            return  # whoever asks will ask once more
        self._lane_is_asked = True
        try:
            while self._lane_is_old:
                self._lane_is_old = False
                life, lane = self.record.life, await self.node.lane()
                if lane != self.record.lane and lane and self.record.life == life and self._ending is not None:
                    await self._life.note(lane=lane)
        finally:
            self._lane_is_asked = False

    async def _note_proven(self) -> None:
        if self._ending is None:
            return  # it does not serve any more
        self._failed_alone = 0
        if self.record.state is State.READY or not self._life.may(Event.PROVEN):
            return
        self._phases.end("proving")
        log.info("%s is ready, %s, after %s", self.record.life, self._way, told(self._phases.seconds))
        self._was_ready = self._life_was_ready = True
        await self._life.advance(Event.PROVEN, detail="", start_s=dict(self._phases.seconds))
        self.node.keep_spare()

    async def failed(self, why: str) -> None:
        """A transfer with a peer, who serves, has failed."""
        if self.record.state is State.STARTING:
            self._meeting_failed = True
            await self._life.note(detail=why)
        elif self.record.state is State.READY and not self._prover.has_met(self.record.life):
            # Canaries try what has met: whose peers have all been started again since would be READY for nobody.
            self._failed_alone += 1
            if self._failed_alone >= ALONE_MAX:
                self.sick(f"all it had met have ended, and it meets nobody else: {why}")

    def sick(self, why: str) -> None:
        """The incarnation that serves now is not to serve any longer."""
        self._end(Ending(Kind.SICK, why))

    async def drain(self, restart: bool) -> str | None:
        """Begins to drain it; returns why it cannot. `restart`: it comes back then, also from an earlier drain."""
        state, detail = self.record.state, self.record.detail
        if state is State.DEAD and self._is_drained and restart:
            self._start_asked.set()
            return None
        if state is not State.READY or self._ending is None:
            said = f" ({detail.splitlines()[0]})" if detail else ""
            return f"engine {self.plan.id} is {state}{said}; only a ready engine can be drained"
        self._drain_asked.set()
        if restart:
            self._start_asked.set()
        await self._life.advance(Event.DRAIN, detail="takes no new work; what runs may end")
        return None

    async def drained(self) -> None:
        """Drains it if it serves; returns once it does not serve any more."""
        self._is_down.clear()
        await self.drain(restart=False)
        if self.record.state is State.DRAINING:
            await self._is_down.wait()

    async def _live(self) -> Ending:
        """One incarnation, from its start to the end of its service; of one that is adopted, from where it is."""
        if self._is_adopted:
            self._goes_on()
        else:
            await self._begin()
        live = LiveEngine(self.record, bytes.fromhex(self._setting.secret), self._runtime)
        await live.client.connect()
        try:
            return await self._serve(live)
        finally:
            live.client.close()

    def _goes_on(self) -> None:
        self._is_adopted = False
        self._was_ready = self._life_was_ready = self.record.state is not State.STARTING
        self._way = "adopted"
        log.info("%s is adopted, %s", self.record.life, self.record.state)
        if self.record.state is State.DRAINING:  # what it was to be drained for is not known any more: it comes back
            self._drain_asked.set()
            self._start_asked.set()

    async def _begin(self) -> None:
        """Starts another incarnation."""
        await self._memory_is_back()
        self._drain_asked.clear()
        self._start_asked.clear()
        self._life_was_ready = self._meeting_failed = self._is_drained = False
        self._failed_alone = 0
        self._phases = Phases(now_s=self._now_s)
        await self._life.advance(Event.START, detail="waits for its place")
        limit_s = self._setting.deadlines.start_s
        try:
            async with asyncio.timeout(limit_s):
                await self._start()
        except TimeoutError:
            what = f"not started within {limit_s:g} s" + (f": it {self.record.detail}" if self.record.detail else "")
            raise StartError(
                self.record.life, what, "see `ray status` and its log, or raise deadlines.start_s"
            ) from None

    async def _memory_is_back(self) -> None:
        back_s = self._role.memory_back_s(self._setting.device)
        if back_s and self.record.incarnation:
            wait_s = self._peers_told_s + back_s - self._now_s()
            log.debug("%s: its GPU memory may be mapped by its peers for %.1f s", self.record.life, wait_s)
            await asyncio.sleep(wait_s)

    async def _start(self) -> None:
        ground = await self.node.prepare()
        await self._life.note(detail="")
        spec, bootstrap = host_spec(self.plan, self._setting, self.record.incarnation, ground)
        self._phases.end("place")
        ready = await self.node.start(spec)
        self._way = ready.way
        if ready.log_trouble:
            log.warning("%s: %s", spec.life, incomplete(ready.log_trouble))
        self._phases.end("rest")
        self._phases.seconds |= _with_rest(ready.start_s, self._phases.seconds.pop("rest"))
        # Polled: the event is in another process.
        while bootstrap and not await self._is_registered(bootstrap):  # noqa: ASYNC110
            await asyncio.sleep(REGISTERED_POLL_S)
        self._phases.end("bootstrap")
        facts = {name: getattr(ready, name) for name in IncarnationFacts.__struct_fields__}
        facts["start_s"] = dict(self._phases.seconds)
        nodes = [member.node for member in ready.members] or [ground.address]
        facts["place"] = place_of(nodes, ready.devices, self._setting.labels)
        await self._life.note(node=ground.address, bootstrap=bootstrap, detail=self._role.waits_for, **facts)

    async def _serve(self, live: LiveEngine) -> Ending:
        """From up to the end of its service, whatever ends it. The processes may still be there."""
        ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._ending = ending
        exiting = asyncio.create_task(self._wait_for_exit(), name=f"exit of {live.life}")
        works = {
            "adapters": self._equip(live),
            "meet": self._must_meet(live),
            "watch": self._watch(live),
            "drain": self._drain(live),
        }
        tasks: list[asyncio.Task[Any]] = [exiting]
        tasks += [asyncio.create_task(work, name=f"{what} {live.life}") for what, work in works.items()]
        for task in tasks:
            task.add_done_callback(self._raise_from)
        try:
            found = await ending
            live.is_retiring = True
            if found.kind is Kind.SICK:
                await self._life.advance(Event.SICK, detail=found.why)
                await self._registry.forget(live.life)
                log.warning("%s is quarantined: %s", live.life, found.why)
                if not live.client.is_open and (exit_ := await self._exit_soon(exiting)) is not None:
                    found = exit_
            return found
        finally:
            self._ending = None
            live.is_retiring = True
            if self._adapters is not None:
                self._adapters.leave(live.life)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _equip(self, live: LiveEngine) -> None:
        """It is to be proven once it has all adapters. Raises StartError."""
        if self._adapters is not None:
            limit_s = self._setting.deadlines.start_s
            try:
                async with asyncio.timeout(limit_s):
                    await self._adapters.bring(live)
            except TimeoutError:
                raise StartError(live.life, f"its adapters are not loaded within {limit_s:g} s") from None
        self._prover.add(live)

    async def _exit_soon(self, exiting: asyncio.Task[Exit]) -> Ending | None:
        """Of an engine whose connection is lost: what is known is better told than that."""
        await asyncio.wait([exiting], timeout=EXIT_S)
        if not exiting.done() or exiting.exception() is not None:
            return None
        return Ending(Kind.DIED, _told(exiting.result()))

    async def _wait_for_exit(self) -> Exit:
        exit_ = await self.node.exited()
        self._end(Ending(Kind.DIED, _told(exit_)))
        return exit_

    async def _must_meet(self, live: LiveEngine) -> None:
        """An engine whose real transfers fail for as long as a start may take is sick, though it lives."""
        limit_s = self._setting.deadlines.start_s
        while self.record.state is State.STARTING:
            await asyncio.sleep(limit_s)
            if self.record.state is State.STARTING and self._was_ready and self._meeting_failed:
                self.sick(f"no transfer has succeeded within {limit_s:g} s: {self.record.detail}")
            self._meeting_failed = False

    async def _watch(self, live: LiveEngine) -> None:
        self.sick(await Watcher(live, self.record.bootstrap, self._is_registered, self._now_s).run())

    async def _drain(self, live: LiveEngine) -> None:
        """Once asked: waits until the host has granted nothing (a grant lives until the engine let go of its KV)."""
        await self._drain_asked.wait()
        live.is_retiring = True
        await asyncio.sleep(QUIET_S)
        limit_s = self._setting.deadlines.drain_s
        if not await _is_empty_within(live, limit_s):
            await self._life.note(evict=True, detail=f"not empty after {limit_s:g} s; what runs moves to other engines")
            await _is_empty_within(live, EVICT_S)
        self._end(Ending(Kind.DRAINED, DRAINED))

    def _end(self, ending: Ending) -> None:
        if self._ending is not None and not self._ending.done():
            self._ending.set_result(ending)

    def _raise_from(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        if self._ending is not None and not self._ending.done():
            self._ending.set_exception(error)


def _told(exit_: Exit) -> str:
    return f"{exit_.status}\nIts last lines:\n" + "\n".join(exit_.tail[-LAST_LINES:])


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
