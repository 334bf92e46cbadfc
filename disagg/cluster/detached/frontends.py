"""Frontends that outlive their controller: an actor beside them keeps them alive, and tells the controller who listens.

Way:   controller -> [FrontendsAfar] =Ray=> [FrontendKeeper] -> FrontendProcess, one a frontend
In:    the FrontendSpec, which has the shared registry; out: the records of those that listen
Owns:  the keeper its processes, which end when its pipes to them close. One that Ray starts again waits until those of
       the one before are gone: there are never two frontends of one number
Fails: StartError of the first start; later starts are tried on
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from disagg import surroundings
from disagg.cluster import janitor
from disagg.cluster.detached.names import FRONTENDS, Names, actor_of, kill
from disagg.cluster.frontend_process import RESTART_PAUSE_S, STOP_MORE_S, Frontends
from disagg.cluster.ports import hold
from disagg.errors import StartError
from disagg.frontend.spec import FrontendSpec
from disagg.host_spec import DEPLOYMENT_VARIABLE
from disagg.registry.interface import Registry
from disagg.registry.memory import MemoryRegistry
from disagg.registry.records import FrontendRecord
from disagg.telemetry.stderr_log import log_to_stderr

log = logging.getLogger(__name__)

ANSWER_S = 30.0  # of a keeper that is there: it is ended where it says nothing
POLL_S = 0.1


class FrontendKeeper:
    """`variables`: of the frontends' environment. `frontends` tells who listens, `stop` ends them."""

    def __init__(self, spec: FrontendSpec, count: int, variables: Mapping[str, str]) -> None:
        os.umask(0o077)
        log_to_stderr("[%(asctime)s] %(message)s")
        self._registry = MemoryRegistry()
        self._run, self._patience_s = variables[DEPLOYMENT_VARIABLE], spec.stop_s + STOP_MORE_S
        environment = surroundings.of_our_processes(os.environ) | dict(variables)
        self._frontends = Frontends(spec, count, environment, self._registry)
        self._where = spec.host, spec.port
        self._held: socket.socket | None = None
        self._is_first = not ray.get_runtime_context().was_current_actor_reconstructed
        self._keeping = asyncio.get_running_loop().create_task(self._keep())

    async def frontends(self, revision: int) -> tuple[int, tuple[FrontendRecord, ...]]:
        """Those that listen, once that is other than it was at `revision`, or `stop` has come; -1: now. Raises
        StartError."""
        watch = self._registry.watch()
        while self._registry.revision == revision:
            changed = asyncio.ensure_future(anext(watch))
            await asyncio.wait([changed, self._keeping], return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            if self._keeping.done():
                if not self._keeping.cancelled():
                    self._keeping.result()
                break
        return self._registry.revision, tuple(self._registry.frontends.values())

    async def stop(self) -> None:
        """Returns once they have ended: what runs may, within `stop_s`."""
        self._keeping.cancel()
        await asyncio.wait([self._keeping])
        await self._frontends.stop()

    async def _keep(self) -> None:
        await self._until_alone()
        while True:
            try:
                self._held = self._held or hold(*self._where)
                await self._frontends.start()
                break
            except (StartError, OSError) as error:
                if self._is_first:
                    raise error if isinstance(error, StartError) else _not_bound(self._where, error) from None
                log.error("%s; trying again", error)
                await self._frontends.stop()
                await asyncio.sleep(RESTART_PAUSE_S)
        await self._frontends.keep_alive()

    async def _until_alone(self) -> None:
        """Those of an earlier keeper end by themselves, unless they hang."""
        search, loop = janitor.Search(self._run), asyncio.get_running_loop()
        began_s = loop.time()
        while there := list(filter(janitor.is_frontend, await asyncio.to_thread(search.look))):
            if loop.time() - began_s > self._patience_s:
                for process in there:
                    janitor.kill(process)
            await asyncio.sleep(POLL_S)


def _not_bound(where: tuple[str, int], error: OSError) -> StartError:
    host, port = where
    return StartError("frontend.port", f"{host}:{port} cannot be bound: {error.strerror}", "choose another one")


class FrontendsAfar:
    """The keeper, as a controller sees it. `find` one that is there; `follow` makes one where there is none."""

    def __init__(
        self, names: Names, spec: FrontendSpec, count: int, variables: Mapping[str, str], node_id: str
    ) -> None:
        self._names, self._made_with, self._node_id = names, (spec, count, variables), node_id
        self._stop_s = spec.stop_s + STOP_MORE_S + ANSWER_S
        self._keeper: Any = None

    async def find(self, registry: Registry) -> None:
        """Puts those that listen already into the registry."""
        for name in self._names.actors(FRONTENDS):
            keeper = actor_of(name)
            try:
                async with asyncio.timeout(ANSWER_S):
                    _, records = await keeper.frontends.remote(-1)
            except (RayError, StartError, TimeoutError, AttributeError) as error:
                log.warning("the keeper of frontends does not answer (%s); another one is made", error)
                kill(name)
                continue
            self._keeper = keeper
            for record in records:
                await registry.put_frontend(record)

    async def all_listen(self, registry: Registry) -> None:
        """Returns once all do. Raises StartError."""
        self._keeper = self._keeper or self._make()
        revision, records = -1, ()
        while len(records) < self._made_with[1]:
            try:
                revision, records = await self._keeper.frontends.remote(revision)
            except RayTaskError as error:
                if isinstance(error.cause, StartError):
                    raise error.cause from None
                raise
        await _put(records, registry)

    async def follow(self, registry: Registry) -> None:
        """Keeps the registry's frontends as they are, until this is cancelled."""
        revision = -1
        while True:
            self._keeper = self._keeper or self._make()
            try:
                revision, records = await self._keeper.frontends.remote(revision)
            except RayError as error:
                log.error("the keeper of frontends is gone (%s); another one is made", error)
                ray.kill(self._keeper)
                self._keeper, revision = None, -1
                await asyncio.sleep(RESTART_PAUSE_S)
                continue
            await _put(records, registry)

    async def stop(self) -> None:
        """Ends them in order, within a bounded time."""
        if self._keeper is None:
            return
        try:
            async with asyncio.timeout(self._stop_s):
                await self._keeper.stop.remote()
        except (RayError, TimeoutError) as error:
            log.warning("frontends did not end in order: %s", error)
        ray.kill(self._keeper)

    def _make(self) -> Any:
        return (
            ray.remote(FrontendKeeper)
            .options(
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(self._node_id, soft=False),
                **self._names.options(FRONTENDS),
            )
            .remote(*self._made_with)
        )


async def _put(records: tuple[FrontendRecord, ...], registry: Registry) -> None:
    for number in registry.frontends.keys() - {record.number for record in records}:
        await registry.remove_frontend(number)
    for record in records:
        await registry.put_frontend(record)
