"""The models of a deployment of several, beside their engines: how one comes, is served, and goes.

Way:   change/work.py -> [Models] -> what its engines are told (Setting), its adapters, the registry's records, which
       frontends follow (disagg/frontend/roster.py)
Owns:  those records, and the numbers in them
Fails: StartError of a model whose files are not here. What a call has begun is undone by `gone`
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from disagg.cluster.adapters import Adapters, AdaptersOfModels
from disagg.cluster.fleet import Fleet
from disagg.cluster.setting import OfModel
from disagg.errors import StartError
from disagg.planning.plan import Plan
from disagg.registry.interface import Registry
from disagg.registry.records import ModelRecord, ModelState

log = logging.getLogger(__name__)

SEEN_S = 5.0  # for all frontends to take in that one comes, or goes
POLL_S = 0.1
QUIET_S = 0.5  # no engine runs anything of it for so long: a request that was on its way has come by then


@dataclass(frozen=True, slots=True)
class Told:
    """Of one model."""

    engines: OfModel
    frontends: dict[str, Any]  # a ModelSpec (disagg/frontend/spec.py)


Learn = Callable[[Plan], Awaitable[Told]]  # raises StartError
KeyAndSpec = tuple[str, dict[str, Any]]  # of a model: its key in the YAML, its ModelSpec
AllHaveSeen = Callable[[float], Awaitable[bool]]


class Models:
    """`of_models`: the setting's own, of which those that come become part. `learn`: what is to be told of a model;
    `adapters_of`: its adapters. `drain_s`: how long requests of a model that goes may hold up its engines' end."""

    def __init__(
        self,
        registry: Registry,
        fleet: Fleet,
        of_models: dict[str, OfModel],
        adapters: AdaptersOfModels,
        learn: Learn,
        adapters_of: Callable[[Plan], Adapters],
        all_have_seen: AllHaveSeen,
        drain_s: float,
    ) -> None:
        self._registry, self._fleet, self._of_models, self._adapters = registry, fleet, of_models, adapters
        self._learn, self._adapters_of, self._all_have_seen = learn, adapters_of, all_have_seen
        self._drain_s = drain_s
        self._next = time.time_ns() // 1_000_000  # no number comes twice, whichever controller, or run, gave it

    async def begin(self, specs: Iterable[KeyAndSpec]) -> None:
        """Those of the deployment's start, by key: they may be named at once."""
        for key, spec in specs:
            await self._put(key, spec, ModelState.SERVING)

    async def recall(self, plans: Iterable[Plan], begun: Iterable[KeyAndSpec]) -> None:
        """Those that an earlier controller has put, where the registry has them again. What hosts are told of one that
        came since the start is found anew; one whose files are gone by now is left as it serves. `plans`: of the models
        that may be there; `begun`: those of the start."""
        by_key, of_start = {plan.deployment.key: plan for plan in plans}, dict(begun)
        for key in self._of_models.keys() - self._registry.models.keys():
            await self._adapters.remove(key)
            del self._of_models[key]
        for key, record in self._registry.models.items():
            self._next = max(self._next, record.number)
            if of_start.get(key) == record.spec:
                continue
            self._of_models.pop(key, None)  # a key that came back is another model
            if (plan := by_key.get(key)) is None:
                log.error("engines of %s cannot be started again: of this model nothing is known any more", key)
                continue
            self._adapters.add(key, plan.model.name, self._adapters_of(plan))
            try:
                self._of_models[key] = (await self._learn(plan)).engines
            except StartError as error:
                log.error("engines of %s cannot be started again: %s", key, error)

    async def folder_of(self, plan: Plan) -> str:
        """Of a model that is here, or may come. Raises StartError."""
        here = self._of_models.get(plan.deployment.key)
        return (here or (await self._learn(plan)).engines).model_path

    async def come(self, plan: Plan) -> None:
        """Before its engines do: frontends make ready for it. Raises StartError."""
        key, told = plan.deployment.key, await self._learn(plan)
        record = self._registry.models.get(key)
        self._of_models[key] = told.engines
        if record is not None and record.spec == told.frontends:  # it was about to go
            await self._registry.put_model(replace(record, state=ModelState.COMING))
            return
        await self._adapters.remove(key)
        adapters = self._adapters_of(plan)
        self._adapters.add(key, plan.model.name, adapters)
        await adapters.begin()
        await self._put(key, told.frontends, ModelState.COMING)

    async def exchange(self, coming: Sequence[str], going: Sequence[str]) -> list[str]:
        """The ones may be named from now on, the others no more. Returns when what runs with these has ended, or
        `drain_s` is over: those with which something still runs."""
        for keys, state in ((coming, ModelState.SERVING), (going, ModelState.LEAVING)):
            for key in keys:
                if (record := self._registry.models.get(key)) is not None:
                    await self._registry.put_model(replace(record, state=state))  # at once: nobody sees the half of it
        if not await self._all_have_seen(SEEN_S):
            log.warning("some frontend has not taken in within %g s that models come or go", SEEN_S)
        return await self._not_quiet(going)

    async def gone(self, key: str) -> None:
        """Its engines are."""
        await self._adapters.remove(key)
        await self._registry.remove_model(key)
        self._of_models.pop(key, None)

    async def _put(self, key: str, spec: dict[str, Any], state: ModelState) -> None:
        self._next += 1
        await self._registry.put_model(ModelRecord(key=key, number=self._next, state=state, spec=spec))

    async def _not_quiet(self, keys: Collection[str]) -> list[str]:
        try:
            async with asyncio.timeout(self._drain_s):
                while self._busy(keys):  # noqa: ASYNC110 - it has to last
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            pass
        return self._busy(keys)

    def _busy(self, keys: Collection[str]) -> list[str]:
        lives = self._fleet.prover.up.values()
        busy = {live.record.group for live in lives if live.quiet_s() < QUIET_S}
        return [key for key in keys if key in busy]
