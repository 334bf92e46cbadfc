"""The controller's part in a simulation: engine after engine, incarnation after incarnation, proven before it serves.

Way:   [SimulatedController] -> SimulatedHost; records -> registry -> every frontend's Connections
In:    what hosts say of their health over real plane connections; out: the records that frontends act on
Owns:  the hosts. Does what disagg/cluster/supervisor.py and proving.py do, without Ray
Fails: an engine that is sick, silent or gone is quarantined at once, then killed and started anew
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec

from disagg.coordinator.rooms import Rooms
from disagg.errors import LegLost
from disagg.plane.client import PlaneClient
from disagg.registry.memory import MemoryRegistry
from disagg.registry.records import EngineRecord, State
from disagg.roles import Role
from disagg.simulated_engine.model import Model
from disagg.simulation.hosts import SimulatedHost
from disagg.simulation.network import SimNetwork
from transfer.canary import CanaryFailed, RankEndpoint, probe_pair

log = logging.getLogger(__name__)

HOST = "controller"


@dataclass(frozen=True, slots=True)
class Habits:
    """How long the controller takes for what it does."""

    start_s: float = 0.5  # an engine's start
    pause_s: float = 0.5  # between a death and the next start
    poll_s: float = 0.5  # between two questions for an engine's health
    answer_s: float = 1.0  # for the answer
    silences_max: int = 2  # unanswered questions before it counts as sick
    canary_s: float = 3.0  # for a canary
    retry_s: float = 0.5  # between two canaries of a pair


class SimulatedController:
    """Starts, proves, watches and restarts the simulated engines, as the real controller does. Times are virtual
    seconds."""

    def __init__(self, network: SimNetwork, models: dict[str, Model], secret: bytes, seed: int, habits: Habits) -> None:
        self._network, self._models, self._secret, self._seed, self._habits = network, models, secret, seed, habits
        self._here = network.at(HOST)
        self._now_s = asyncio.get_running_loop().time
        self.registry = MemoryRegistry()
        self.hosts: dict[str, SimulatedHost] = {}  # by engine id: the current incarnation
        self._up: dict[str, PlaneClient] = {}  # by life
        self._proven: set[tuple[str, str]] = set()
        self._singing: set[tuple[str, str]] = set()
        self._rooms = Rooms(Random(seed))
        self._supervising: list[asyncio.Task[None]] = []

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._supervising = [
            loop.create_task(self._supervise(engine_id, number), name=f"supervise {engine_id}")
            for number, engine_id in enumerate(self._models)
        ]

    async def stop(self) -> None:
        for task in self._supervising:
            task.cancel()
        await asyncio.gather(*self._supervising, return_exceptions=True)
        for client in self._up.values():
            client.close()
        for host in self.hosts.values():
            host.kill()

    @property
    def rooms(self) -> int:
        return len(self._rooms)

    def is_ready(self, engine_id: str) -> bool:
        record = self.registry.records.get(engine_id)
        return record is not None and record.state is State.READY

    async def drain(self, engine_id: str, evict: bool = False) -> None:
        await self._put(engine_id, state=State.DRAINING, evict=evict)

    async def _supervise(self, engine_id: str, number: int) -> None:
        incarnation = 0
        while True:
            incarnation += 1
            random = Random((self._seed << 20 | number) << 20 | incarnation)
            await asyncio.sleep(self._habits.start_s)
            host = SimulatedHost(self._network, engine_id, self._models[engine_id], incarnation, self._secret, random)
            self.hosts[engine_id] = host
            record = await host.start()
            await self.registry.put(record)
            why = await self._live(record)
            log.info("%s: %s", record.life, why)
            await self._put(engine_id, state=State.QUARANTINED, detail=why)
            await self.registry.forget(record.life)
            self._forget(record.life)
            host.kill()
            await self._put(engine_id, state=State.DEAD)
            await asyncio.sleep(self._habits.pause_s)

    async def _live(self, record: EngineRecord) -> str:
        """From its first sign of life until it is sick or gone; returns why."""
        lost = asyncio.Event()
        client = PlaneClient(
            record.plane,
            record.incarnation,
            self._secret,
            lambda _why: lost.set(),
            network=self._here,
            now_s=self._now_s,
        )
        try:
            await client.connect()
        except LegLost as error:
            return str(error)
        self._up[record.life] = client
        proving = asyncio.get_running_loop().create_task(self._prove(record), name=f"prove {record.life}")
        try:
            return await self._watch(client, lost)
        finally:
            proving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await proving

    async def _watch(self, client: PlaneClient, lost: asyncio.Event) -> str:
        silences = 0
        while not lost.is_set():
            try:
                ranks = await client.health(self._habits.answer_s)
            except TimeoutError:
                silences += 1
                if silences >= self._habits.silences_max:
                    return "the host does not answer"
            except LegLost:
                break
            else:
                silences = 0
                for rank in ranks:
                    if rank.sick:
                        return f"rank {rank.dp_rank}: {rank.sick}"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._habits.poll_s):
                    await lost.wait()
        return "the host is gone"

    def _forget(self, life: str) -> None:
        """The others drop what they hold of a dead incarnation."""
        client = self._up.pop(life, None)
        if client is not None:
            client.close()
        self._proven = {pair for pair in self._proven if life not in pair}
        for other in self._up.values():
            other.tell_peer_gone(life)

    async def _prove(self, record: EngineRecord) -> None:
        """A real transfer with every engine of the other role that is up now; those that come later prove this one."""
        if record.role is Role.AGGREGATED:
            await self._until_it_sings(record, record)
        pairs = [
            (record, other) if record.role is Role.PREFILL else (other, record)
            for other in self.registry.records.values()
            if other.life in self._up and {record.role, other.role} == {Role.PREFILL, Role.DECODE}
        ]
        # All at once: a peer that is out of order must not hold up the others.
        await asyncio.gather(*(self._until_it_sings(*pair) for pair in pairs))

    async def _until_it_sings(self, prefill: EngineRecord, decode: EngineRecord) -> None:
        pair = prefill.life, decode.life
        while prefill.life in self._up and decode.life in self._up and pair not in self._proven:
            if pair not in self._singing:
                self._singing.add(pair)
                try:
                    await self._sing_on_all_ranks(prefill, decode)
                    self._proven.add(pair)
                except (CanaryFailed, KeyError) as error:
                    log.info("%s", error)
                finally:
                    self._singing.discard(pair)
            if pair in self._proven:
                await self._met(prefill, decode)
                return
            await asyncio.sleep(self._habits.retry_s)

    async def _sing_on_all_ranks(self, prefill: EngineRecord, decode: EngineRecord) -> None:
        def endpoint(record: EngineRecord, rank: int) -> RankEndpoint:
            client = self._up[record.life]
            return RankEndpoint(record.life, rank % record.ranks, record.ranks, record.bootstrap, client, set())

        for rank in range(max(prefill.ranks, decode.ranks)):
            one = None if prefill is decode else endpoint(prefill, rank)
            room = self._rooms.take(one.dp_size, one.dp_rank) if one else self._rooms.take(1, 0)
            try:
                await probe_pair(one, endpoint(decode, rank), room, self._habits.canary_s)
            finally:
                self._rooms.give_back(room)

    async def _met(self, *pair: EngineRecord) -> None:
        current = [self.registry.records[record.id] for record in pair]
        lives_on = [
            now.life == record.life and now.state in (State.STARTING, State.READY)
            for now, record in zip(current, pair, strict=True)
        ]
        if all(lives_on):
            await self.registry.add_met(*(record.life for record in pair))
        for record, lives in zip(pair, lives_on, strict=True):
            if lives:
                await self._put(record.id, state=State.READY)

    async def _put(self, engine_id: str, **changes: Any) -> None:
        await self.registry.put(msgspec.structs.replace(self.registry.records[engine_id], **changes))
