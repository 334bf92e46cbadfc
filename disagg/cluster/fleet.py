"""The engines of a deployment: added and removed through one door, while it starts and at any time later.

Way:   controller, or a simulation -> [Fleet] -> a place in the cluster, a node and a supervisor an engine; one prover
       and one keeper of canaries for all
Out:   the engines' records in the registry
Owns:  each engine's place, node, supervisor and task: `remove` and `stop` give them back
Fails: StartError when the deployment's first engines find no room, or one of them fails its first start. An engine
       that was added later is tried again and again, and its record says why
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from disagg.cluster.adapters import Adapters, Brought
from disagg.cluster.canaries import Canaries
from disagg.cluster.engine_life import SERVES
from disagg.cluster.engine_node import log_of
from disagg.cluster.notes import ENGINE, Earlier, NoNotes, Notes
from disagg.cluster.places import Place, Places
from disagg.cluster.proving import Prover
from disagg.cluster.runtime import Runtime
from disagg.cluster.setting import Setting
from disagg.cluster.supervisor import EngineSupervisor
from disagg.cluster.watch import IsRegistered
from disagg.errors import StartError
from disagg.lives import engine_id_of
from disagg.planning.plan import EnginePlan
from disagg.registry.interface import Registry
from disagg.registry.records import EngineRecord, State
from disagg.role_table import ROLES

log = logging.getLogger(__name__)

PLACEMENT_S = 20.0


@dataclass(slots=True)
class _Engine:
    supervisor: EngineSupervisor
    place: Place
    task: asyncio.Task[None] | None = None  # until it is begun
    leaving: asyncio.Task[None] | None = None


class Fleet:
    """All engines of one deployment, by id. `place`, `begin` and `until_ready` are its start; `add` and `remove` go on
    from there at any time. What ends a supervisor, the prover or the canaries is kept for `check`."""

    def __init__(
        self,
        setting: Setting,
        registry: Registry,
        places: Places,
        runtime: Runtime,
        canary_s: float,
        is_registered: IsRegistered | None = None,
        adapters: Brought | None = None,
        notes: Notes | None = None,
    ) -> None:
        """`canary_s`: how often an idle engine's ranks are tried. `is_registered`: None asks each engine's role.
        `adapters`: None, and there are none. `notes`: where it is noted which engines there are."""
        self.adapters: Brought = adapters or Adapters(registry, runtime, None, (), 0.0)
        self._setting, self._registry, self._places, self._runtime = setting, registry, places, runtime
        self._is_registered, self._notes = is_registered, notes or NoNotes()
        self.prover = Prover(registry, self._on_proven, self._on_failed, runtime.random)
        self.canaries = Canaries(self.prover, self._on_sick, canary_s, runtime.now_s)
        self._engines: dict[str, _Engine] = {}
        self._incarnations: dict[str, int] = {}  # the last one of engines that were removed: no life comes twice
        self._common: list[asyncio.Task[None]] = []  # prover and canaries
        self._error: BaseException | None = None
        self._failed = asyncio.Event()

    @property
    def supervisors(self) -> list[EngineSupervisor]:
        return [engine.supervisor for engine in self._engines.values()]

    @property
    def plans(self) -> dict[str, EnginePlan]:
        """What each engine is run as now."""
        return {engine_id: engine.supervisor.plan for engine_id, engine in self._engines.items()}

    def supervisor(self, engine_id: str) -> EngineSupervisor | None:
        engine = self._engines.get(engine_id)
        return engine.supervisor if engine is not None else None

    # the deployment's start

    async def place(self, plans: Sequence[EnginePlan]) -> None:
        """Sets room aside for the deployment's first engines, in this order; raises StartError when the cluster has
        not enough for all within PLACEMENT_S. None is started yet."""
        engines = [await self._enter(plan, is_first=True) for plan in plans]
        try:
            async with asyncio.timeout(PLACEMENT_S):
                await asyncio.gather(*(engine.place.granted() for engine in engines))
        except TimeoutError:
            needs, left = _needs(plans), self._places.left()
            what = f"the Ray cluster has no room for the engines: they need {needs}; it has {left}"
            raise StartError("placement", what, "lower resources or replicas, or add nodes") from None

    async def adopt(self, earlier: Earlier) -> None:
        """In the place of `place`: takes over what an earlier controller has left. What runs goes on where it is;
        what does not, or does not answer, is started again by `begin`, and whatever else there is is ended."""
        self._incarnations |= earlier.incarnations
        engines = earlier.engines.values()
        serving = set(await asyncio.gather(*(self._adopt(earlier, plan, name) for plan, name in engines)))
        self._places.end_strays()
        for pair in earlier.met:
            for life in pair:
                if life not in serving and life not in self.prover.gone:
                    self.prover.gone.add(life)
                    await self._registry.forget(life)

    def begin(self) -> None:
        """Starts what has its place, the prover and the canaries."""
        for engine in self._engines.values():
            self._begin(engine)
        self._common = [
            asyncio.create_task(self.prover.run(), name="prove pairs"),
            asyncio.create_task(self.canaries.run(), name="idle canaries"),
        ]
        for task in self._common:
            task.add_done_callback(self._ended)

    async def until_ready(self, limit_s: float) -> None:
        """Returns when every engine is READY; raises StartError when one fails to start, or the time is over."""
        watching = asyncio.create_task(self._all_ready())
        failing = asyncio.create_task(self._failed.wait())
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.wait([watching, failing], return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            records = [each.record for each in self.supervisors if each.record.state is not State.READY]
            waiting = "; ".join(f"{record.id} ({record.detail or record.state})" for record in records)
            raise StartError("deployment", f"not ready within {limit_s:g} s: {waiting}", "see its logs") from None
        finally:
            watching.cancel()
            failing.cancel()
        self.check()

    # later

    async def add(self, plan: EnginePlan) -> None:
        """One more engine; returns at once. Its record tells how its start goes, and what keeps it from one."""
        engine = await self._enter(plan, is_first=False)
        if engine.leaving is None:  # else it was removed meanwhile
            self._begin(engine)

    async def add_where_room(self, plans: Sequence[EnginePlan], limit_s: float) -> bool:
        """`add` of all of them, if the cluster sets room aside for all within the limit; else of none, and False."""
        before = set(self._engines)
        try:
            engines = [await self._enter(plan, is_first=False) for plan in plans]
            async with asyncio.timeout(limit_s):
                await asyncio.gather(*(engine.place.granted() for engine in engines))
        except BaseException as error:
            entered = {plan.id for plan in plans} & self._engines.keys() - before
            await asyncio.gather(*(self.remove(engine_id) for engine_id in sorted(entered)))
            if isinstance(error, TimeoutError):
                return False
            raise
        for engine in engines:
            if engine.leaving is None:
                self._begin(engine)
        return True

    async def with_room(self, plans: Sequence[EnginePlan], limit_s: float) -> set[str]:
        """Of these, those for which the cluster would set room aside, all at the same time. Nothing stays of the
        question."""
        asked = [(plan.id, self._places.ask(plan)) for plan in plans]
        granting = {asyncio.create_task(place.granted()): engine_id for engine_id, place in asked}
        try:
            done, _ = await asyncio.wait(granting, timeout=limit_s) if granting else (set(), set())
            for task in done:
                task.result()  # an error of the cluster is no answer
            return {granting[task] for task in done}
        finally:
            for task in granting:
                task.cancel()
            await asyncio.gather(*granting, return_exceptions=True)
            for _, place in asked:
                place.release()

    def left(self) -> str:
        """What the cluster has, for people."""
        return self._places.left()

    async def remove(self, engine_id: str) -> None:
        """Drains the engine if it serves, ends it, gives its place back and takes it out of the registry. Returns once
        nothing of it is left. Raises KeyError when there is none of this name."""
        await self._left(engine_id, None)

    async def replace(self, engine_id: str, plan: EnginePlan) -> None:
        """`remove`, and then `add` on the very place, for which `plan` needs as much. Returns when the engine of `plan`
        is begun; its name may be the old one. Raises StartError when another engine has its name."""
        if plan.id != engine_id:
            self._refuse_a_taken_name(plan)
        await self._left(engine_id, plan)

    async def _left(self, engine_id: str, successor: EnginePlan | None) -> None:
        engine = self._engines[engine_id]
        if engine.leaving is None:  # whoever asks again waits for the same end
            engine.leaving = asyncio.create_task(self._leave(engine, successor), name=f"remove {engine_id}")
            engine.leaving.add_done_callback(self._ended)
        await asyncio.shield(engine.leaving)

    async def log_lines(self, engine_id: str, lines: int) -> str | None:
        """None: there is no such engine."""
        supervisor = self.supervisor(engine_id)
        return await log_of(supervisor.node, lines) if supervisor is not None else None

    async def drain(self, engine_id: str, restart: bool) -> str | None:
        """Begins to drain it; returns why it cannot. `restart`: it comes back then."""
        supervisor = self.supervisor(engine_id)
        if supervisor is None:
            return f"there is no engine '{engine_id[:100]}' here; there are {', '.join(sorted(self._engines))}"
        return await supervisor.drain(restart)

    def transfer_lost(self, prefill: str, decode: str) -> None:
        """A frontend's word: a request's KV did not come from the one life to the other."""
        self.canaries.suspect((prefill, decode))

    def check(self) -> None:
        """Raises what ended a supervisor, the prover or the canaries."""
        if self._error is not None:
            raise self._error

    async def failed(self) -> None:
        """Returns when `check` has something to raise."""
        await self._failed.wait()

    async def stop(self) -> None:
        """Ends all of them at once, and gives back what they have."""
        engines = list(self._engines.values())
        await self.adapters.stop()
        tasks = [*self._common, *(task for each in engines for task in (each.leaving, each.task) if task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(engine.supervisor.node.end() for engine in engines))
        for engine in engines:
            engine.supervisor.node.close()
            engine.place.release()
        self._engines = {}

    # one engine

    async def _enter(self, plan: EnginePlan, *, is_first: bool) -> _Engine:
        self._refuse_a_taken_name(plan)
        engine = self._entered(plan, self._places.ask(plan), is_first=is_first)
        await self._note(engine)
        await self._registry.put(engine.supervisor.record)
        return engine

    async def _note(self, engine: _Engine) -> None:
        plan = engine.supervisor.plan
        await self._notes.write(f"{ENGINE}{plan.id}", (plan, engine.place.name))

    async def _adopt(self, earlier: Earlier, plan: EnginePlan, place_name: str) -> str:
        """Returns the life that goes on; empty: none does."""
        place, record = self._places.again(plan, place_name), earlier.records.get(plan.id)
        runs = record is not None and record.state in SERVES and record.plane != ""
        is_adopted = record is not None and runs and await place.node.adopt(record.life)
        must_start = not earlier.was_ready
        supervisor = self._entered(plan, place, is_first=must_start, earlier=record, is_adopted=is_adopted).supervisor
        await self._registry.put(supervisor.record)
        return supervisor.record.life if is_adopted else ""

    def _refuse_a_taken_name(self, plan: EnginePlan) -> None:
        if plan.id in self._engines:
            raise StartError(f"engine {plan.id}", "there is one of this name", "remove it first, or take another name")

    def _entered(
        self,
        plan: EnginePlan,
        place: Place,
        *,
        is_first: bool,
        earlier: EngineRecord | None = None,
        is_adopted: bool = False,
    ) -> _Engine:
        supervisor = EngineSupervisor(
            plan,
            self._setting,
            place.node,
            self._registry,
            self.prover,
            self._runtime,
            self._is_registered,
            adapters=self.adapters,
            last_incarnation=self._incarnations.get(plan.id, 0),
            must_start=is_first,
            earlier=earlier,
            is_adopted=is_adopted,
        )
        engine = self._engines[plan.id] = _Engine(supervisor, place)
        return engine

    def _begin(self, engine: _Engine) -> None:
        name = f"supervise {engine.supervisor.plan.id}"
        engine.task = asyncio.create_task(engine.supervisor.run(), name=name)
        engine.task.add_done_callback(self._ended)

    async def _leave(self, engine: _Engine, successor: EnginePlan | None) -> None:
        supervisor, engine_id = engine.supervisor, engine.supervisor.plan.id
        await supervisor.drained()
        if engine.task is not None:
            engine.task.cancel()
            await asyncio.gather(engine.task, return_exceptions=True)
        await supervisor.node.end()
        supervisor.node.close()
        self.prover.remove(supervisor.record.life)
        await self._registry.forget(supervisor.record.life)
        self._incarnations[engine_id] = supervisor.record.incarnation
        if successor is None:
            engine.place.release()
            del self._engines[engine_id]
            await self._registry.remove(engine_id)
            await self._notes.write(f"{ENGINE}{engine_id}", None)
            log.info("engine %s is removed", engine_id)
            return
        # Its peers may map its memory for a while yet, and the next engine is to have it.
        await asyncio.sleep(ROLES[supervisor.plan.role].memory_back_s(self._setting.device))
        del self._engines[engine_id]
        following = self._entered(successor, engine.place.handed_on(successor), is_first=False)
        await self._note(following)
        if successor.id != engine_id:
            await self._registry.remove(engine_id)
            await self._notes.write(f"{ENGINE}{engine_id}", None)
        await self._registry.put(following.supervisor.record)
        if following.leaving is None:
            self._begin(following)
        log.info("engine %s takes the place of %s", successor.id, supervisor.record.life)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = self._error or error
            self._failed.set()

    async def _all_ready(self) -> None:
        async for _ in self._registry.watch():
            if all(each.record.state is State.READY for each in self.supervisors):
                return

    # what prover and canaries find

    async def _on_proven(self, life: str) -> None:
        if supervisor := self._of(life):
            await supervisor.proven()

    async def _on_failed(self, life: str, why: str) -> None:
        if supervisor := self._of(life):
            await supervisor.failed(why)

    def _on_sick(self, life: str, why: str) -> None:
        if supervisor := self._of(life):
            supervisor.sick(why)

    def _of(self, life: str) -> EngineSupervisor | None:
        """None: that incarnation is over."""
        supervisor = self.supervisor(engine_id_of(life))
        return supervisor if supervisor is not None and supervisor.record.life == life else None


def _needs(plans: Iterable[EnginePlan]) -> str:
    def of_one(plan: EnginePlan) -> str:
        nodes = f" on each of {plan.nodes} nodes" if plan.nodes > 1 else ""
        return f"{plan.id}: {plan.cpus:g} CPU {plan.gpus:g} GPU{nodes}"

    return ", ".join(map(of_one, plans))
