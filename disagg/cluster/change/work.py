"""The steps of a change on the fleet: add, replace, restart, move and remove, with a healthy pair always kept; and
models that come and go with their engines.

Way:   keeper.py -> [Work.carry_out] -> Fleet, Models; records of the registry say how it goes
In:    an Outline; out: a line for whoever waits, at each step
Owns:  nothing: every engine is the fleet's. Cancelled between any two steps, it leaves a fleet that serves
Fails: ChangeFailed, with what to know of it. What was done by then stays done: keeper.py takes it back
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence

from disagg.cluster.change.outline import Outline, count_of, serves_without
from disagg.cluster.change.wanted import Duty, duty_of, fits_place, share
from disagg.cluster.fleet import Fleet
from disagg.cluster.models import Models
from disagg.errors import DisaggError
from disagg.planning.plan import EnginePlan
from disagg.registry.interface import Watched
from disagg.registry.records import EngineRecord, ModelState, State
from disagg.roles import Role

ROOM_S = 5.0  # the cluster sets room aside within this time, or has none now
FREED_S = 20.0  # the same, after engines have given theirs back
TRIES_MAX = 3  # starts that fail: the next one would, too
LOG_LINES = 12
LOG_S = 5.0  # for an engine's last lines


class ChangeFailed(Exception):
    """Its text is for the operator."""


class Work:
    """`say`: takes a line of progress. `may_pause`: those without whom an operator has said yes to be for a while."""

    def __init__(
        self,
        fleet: Fleet,
        registry: Watched,
        start_s: float,
        say: Callable[[str], None],
        models: Models,
        *,
        may_pause: Collection[Duty] = (),
    ) -> None:
        self._fleet, self._registry, self._start_s, self._models = fleet, registry, start_s, models
        self._say, self._may_pause = say, may_pause
        self._going: Collection[str] = ()  # models
        self._staying: set[str] = set()  # of them, those that may still be asked for

    async def carry_out(self, outline: Outline) -> None:
        """Raises ChangeFailed."""
        removed, self._staying, self._going = list(outline.removed), set(outline.going), outline.going
        lives = {engine_id: self._record(engine_id).incarnation for engine_id in outline.restarted}
        await self._come(outline)
        await self._add_all(outline.added, removed)
        stand_ins = [plan.id for plan in outline.stand_ins if await self._stands_in(plan)]
        for plan in outline.replaced:
            await self._replace(plan.id, plan)
        for engine_id in outline.restarted:
            await self._restart(engine_id, lives[engine_id])
        for engine_id, plan in outline.moved:
            await self._replace(engine_id, plan)
        await self._exchange([plan.deployment.key for plan in outline.coming])
        for engine_id in [*removed, *stand_ins]:
            await self._remove(engine_id)
        for key in outline.going:
            await self._models.gone(key)

    async def _come(self, outline: Outline) -> None:
        try:
            for plan in outline.coming:
                await self._models.come(plan)
        except DisaggError as error:
            raise ChangeFailed(error.message) from None

    async def _exchange(self, coming: Sequence[str]) -> None:
        """In one step: where one has the name of the other, nobody is refused."""
        if not coming and not self._staying:
            return
        going, self._staying = sorted(self._staying), set()
        models = self._registry.models
        names = {key: record.spec["name"] for key, record in models.items()}
        for key in coming:
            self._say(f"model {names[key]} is served")
        for key in going:
            if key in models and models[key].state is ModelState.SERVING:  # else it comes no more
                self._say(f"model {names[key]} takes no new requests")
        for key in await self._models.exchange(coming, going):
            self._say(f"requests of model {names.get(key, key)} still run, and are ended")

    async def _stands_in(self, plan: EnginePlan) -> bool:
        """False: what was added has taken the room. Where nobody else is left, that ends the change before it harms."""
        if not await self._fleet.add_where_room([plan], ROOM_S):
            self._say(f"there is no room for {plan.id} to stand in: engines go before they come")
            return False
        self._say(f"{plan.id} starts")
        await self._until_ready([plan.id])
        return True

    async def _add_all(self, plans: Sequence[EnginePlan], removed: list[str]) -> None:
        """`removed`: those that go first where there is no room beside them; they are taken out of the list."""
        if not plans:
            return
        if not await self._fleet.add_where_room(plans, ROOM_S):
            if not removed:
                raise ChangeFailed(self._no_room(plans))
            self._say("there is no room for all at once: engines are removed as far as others need their places")
            await self._add_in_places(plans, removed)
            return
        for plan in plans:
            self._say(f"{plan.id} starts")
        await self._until_ready(plan.id for plan in plans)

    async def _add_in_places(self, plans: Sequence[EnginePlan], removed: list[str]) -> None:
        """What has come is ready before the next one goes."""
        starting: list[str] = []
        for plan in plans:
            limit_s = ROOM_S
            while not await self._fleet.add_where_room([plan], limit_s):
                if not removed:
                    raise ChangeFailed(self._no_room([plan]))
                await self._until_ready(starting)
                starting, limit_s = [], FREED_S
                await self._remove(removed.pop(self._next_of(removed)))
            self._say(f"{plan.id} starts")
            starting.append(plan.id)
        await self._until_ready(starting)

    def _next_of(self, removed: Sequence[str]) -> int:
        """The first of which there are more; else the first."""
        running = self._fleet.plans
        of_many = (count_of(duty_of(running[name]), running) > 1 if name in running else True for name in removed)
        return next((index for index, has_others in enumerate(of_many) if has_others), 0)

    def _no_room(self, plans: Sequence[EnginePlan]) -> str:
        needs = ", ".join(f"{plan.id}: {share(plan)}" for plan in plans)
        return f"the cluster has no room: {needs}; it has {self._fleet.left()}; add nodes, or scale something down"

    async def _replace(self, engine_id: str, plan: EnginePlan) -> None:
        await self._while_another_serves(engine_id)
        before = self._record(engine_id)
        self._say(f"{engine_id} {_goes(before)}")
        supervisor = self._fleet.supervisor(engine_id)
        if supervisor is not None and fits_place(supervisor.plan, plan):
            await self._fleet.replace(engine_id, plan)
        else:
            await self._fleet.remove(engine_id)
            if not await self._fleet.add_where_room([plan], FREED_S):
                raise ChangeFailed(self._no_room([plan]))
        self._say(f"{plan.id} starts" + ("" if plan.id == engine_id else f" in the place of {before.id}"))
        await self._until_ready([plan.id])

    async def _restart(self, engine_id: str, before: int) -> None:
        """`before`: its incarnation when the change began."""
        while not await self._drains_or_was_restarted(engine_id, before):
            pass
        await self._until_ready([engine_id], after=before)

    async def _drains_or_was_restarted(self, engine_id: str, before: int) -> bool:
        """False: it changed while neither was so. What dies meanwhile by itself comes back in a new life, too."""
        await self._while_another_serves(engine_id)
        seen = self._record(engine_id)
        if seen.incarnation > before:
            return True
        supervisor = self._fleet.supervisor(engine_id)
        if supervisor is not None and await supervisor.drain(restart=True) is None:
            does = "rests" if seen.state is State.DEAD else "drains"
            self._say(f"{engine_id} {does}, and starts again")
            return True
        await self._changed(lambda: self._record(engine_id) != seen, engine_id, "be ready, and so be drained")
        return False

    async def _remove(self, engine_id: str) -> None:
        supervisor = self._fleet.supervisor(engine_id)
        if supervisor is None:
            return
        if supervisor.plan.group in self._staying:
            await self._exchange(())  # its place is needed before the others are ready
        if supervisor.plan.group not in self._going:
            await self._while_another_serves(engine_id)
        self._say(f"{engine_id} {_goes(self._record(engine_id))}")
        await self._fleet.remove(engine_id)
        self._say(f"{engine_id} is removed")

    async def _while_another_serves(self, engine_id: str) -> None:
        """Returns when the engine may go: another one serves, or a pair without it, or it serves nobody anyway."""
        role = self._record(engine_id).role
        running = self._fleet.plans
        duty = duty_of(running[engine_id])
        alone, may_pause = count_of(duty, running) == 1, duty in self._may_pause

        def may_go() -> bool:
            is_ready = self._record(engine_id).state is State.READY
            return not is_ready or serves_without(engine_id, self._registry) or may_pause

        if alone and not may_go():
            what = f"{engine_id} is the only {role} engine, and no other can stand in any more"
            raise ChangeFailed(f"{what}; ordered again, it is asked about")
        await self._changed(may_go, engine_id, f"go: no other {_beside(role)} is ready")

    async def _changed(self, what: Callable[[], bool], engine_id: str, aim: str) -> None:
        try:
            async with asyncio.timeout(self._start_s):
                async for _ in self._registry.watch():
                    if what():
                        return
        except TimeoutError:
            raise ChangeFailed(f"{engine_id} could not {aim} within {self._start_s:g} s") from None

    async def _until_ready(self, engine_ids: Iterable[str], *, after: int = 0) -> None:
        """`after`: only a later incarnation counts."""
        waiting = list(engine_ids)
        if not waiting:
            return
        restarts = {name: self._record(name).restarts for name in waiting}
        try:
            async with asyncio.timeout(self._start_s):
                async for _ in self._registry.watch():
                    for name in list(waiting):
                        record = self._record(name)
                        if record.state is State.READY and record.incarnation > after:
                            self._say(f"{record.life} is ready")
                            waiting.remove(name)
                        elif record.restarts - restarts[name] >= TRIES_MAX:
                            raise ChangeFailed(await self._why(record, f"did not start, {TRIES_MAX} times"))
                    if not waiting:
                        return
        except TimeoutError:
            record = self._record(waiting[0])
            raise ChangeFailed(await self._why(record, f"is not ready within {self._start_s:g} s")) from None

    async def _why(self, record: EngineRecord, what: str) -> str:
        said = f"{record.id} {what}: {record.detail or record.state}"
        if "\n" in record.detail:
            return said  # its last lines are in it
        try:
            async with asyncio.timeout(LOG_S):
                lines = await self._fleet.log_lines(record.id, LOG_LINES)
        except TimeoutError:
            lines = ""
        return f"{said}\nIts log ends:\n{lines.rstrip()}" if lines and lines.strip() else said

    def _record(self, engine_id: str) -> EngineRecord:
        supervisor = self._fleet.supervisor(engine_id)
        if supervisor is None:
            raise ChangeFailed(f"{engine_id} is not there any more")
        return supervisor.record


def _goes(record: EngineRecord) -> str:
    return "drains" if record.state in (State.READY, State.DRAINING) else f"is {record.state}, and is ended"


def _beside(role: Role) -> str:
    return f"{role} engine, with a peer that it has met,"
