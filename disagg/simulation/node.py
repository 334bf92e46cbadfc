"""Where a simulated engine runs, incarnation after incarnation: an EngineNode, and the places of a whole cluster.

Way:   fleet -> [SimulatedPlaces] -> [SimulatedNode] -> SimulatedHost, one an incarnation
In:    HostSpecs, as a real node gets them
Owns:  the host of the current incarnation
Fails: StartError where a test has said so; asserts what the control plane owes a node: one incarnation at a
       time, each of a new name
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

import msgspec

from disagg.cluster.engine_node import Ground
from disagg.errors import StartError
from disagg.host_spec import HostSpec
from disagg.planning.plan import EnginePlan
from disagg.process.news import Exit, Ready
from disagg.simulation.hosts import SimulatedHost
from disagg.simulation.network import SimNetwork

START_S = 0.5  # an engine's start
ACTOR_S = (0.001, 0.01)  # an answer of an engine's actor
END_S = (0.01, 0.1)  # a reaper needs to end a tree of processes
FIRST_PORT = 9000


class SimulatedNode:
    """`host`: of the newest incarnation; None before the first."""

    def __init__(
        self, network: SimNetwork, name: str, secret: bytes, seed: int, why_not: Callable[[HostSpec], str]
    ) -> None:
        """`why_not`: what keeps an engine from starting; empty: nothing."""
        self._why_not = why_not
        self._network, self.name, self._secret, self._seed = network, name, secret, seed
        self._random = Random(seed)
        self._prepared = 0
        self.host: SimulatedHost | None = None

    async def prepare(self) -> Ground:
        await self._passes(ACTOR_S)
        self._prepared += 1
        return Ground(f"{self.name}.{self._prepared}", FIRST_PORT, fork=False)

    async def start(self, spec: HostSpec) -> Ready:
        """Raises StartError where something keeps it from starting."""
        assert self.host is None or not self.host.is_alive, f"{spec.life} begins, and {self.host.life} still lives"
        await asyncio.sleep(START_S)
        if why := self._why_not(spec):
            raise StartError(spec.life, why)
        random = Random(self._seed << 20 | spec.incarnation)
        self.host = SimulatedHost(self._network, spec, self._secret, random)
        plane = await self.host.start()
        return Ready(plane=plane, way="simulated", **msgspec.structs.asdict(self.host.facts))

    async def adopt(self, life: str) -> bool:
        await self._passes(ACTOR_S)
        return self.host is not None and self.host.is_alive and self.host.life == life

    def keep_spare(self) -> None:
        pass

    async def exited(self) -> Exit:
        assert self.host is not None
        await asyncio.shield(self.host.ended)
        await self._passes(END_S)
        return Exit(signal="SIGKILL")

    async def end(self) -> None:
        if self.host is not None and self.host.is_alive:
            self.host.kill()
            await self._passes(END_S)

    async def lane(self) -> str:
        await self._passes(ACTOR_S)
        return "simulated"

    async def log(self, lines: int) -> str:
        return ""

    def close(self) -> None:
        if self.host is not None:
            self.host.kill()

    async def _passes(self, between_s: tuple[float, float]) -> None:
        await asyncio.sleep(self._random.uniform(*between_s))


class SimulatedPlace:
    """`granted`: once the cluster has room for it."""

    def __init__(self, cluster: SimulatedPlaces, node: SimulatedNode) -> None:
        self._cluster, self.node, self.name = cluster, node, node.name
        self.is_released = False

    async def granted(self) -> None:
        await self._cluster.has_room_for(self)

    def release(self) -> None:
        self._is_empty()
        self.is_released = True
        self._cluster.given_back(self)

    def handed_on(self, plan: EnginePlan) -> SimulatedPlace:
        self._is_empty()
        return self._cluster.handed_on(self, plan)

    def _is_empty(self) -> None:
        assert self.node.host is None or not self.node.host.is_alive, "its place is given away under it"
        assert not self.is_released, "its place is given away twice"


class SimulatedPlaces:
    """A cluster with room for `room_max` engines; None: for all. `by_engine`: the newest place of each name."""

    def __init__(self, network: SimNetwork, secret: bytes, seed: int, room_max: int | None = None) -> None:
        self._network, self._secret, self._seed = network, secret, seed
        self.room_max = room_max
        self.why_no_start: Callable[[HostSpec], str] = lambda _spec: ""
        self._count = 0
        self._asked: list[SimulatedPlace] = []  # in the order in which room is given
        self._changed = asyncio.Event()
        self.by_engine: dict[str, SimulatedPlace] = {}

    @property
    def taken(self) -> int:
        """Places that were asked for and not given back."""
        return len(self._asked)

    def ask(self, plan: EnginePlan) -> SimulatedPlace:
        place = self._place(plan)
        self._asked.append(place)
        return place

    def again(self, plan: EnginePlan, name: str) -> SimulatedPlace:
        for place in self._asked:
            if place.name == name:
                return place
        return self.ask(plan)

    def end_strays(self) -> None:
        pass

    def left(self) -> str:
        return "room for all" if self.room_max is None else f"room for {self.room_max} engines"

    def given_back(self, place: SimulatedPlace) -> None:
        self._asked.remove(place)
        self._changed.set()
        self._changed = asyncio.Event()

    def handed_on(self, place: SimulatedPlace, plan: EnginePlan) -> SimulatedPlace:
        following = self._place(plan)
        self._asked[self._asked.index(place)] = following
        return following

    async def has_room_for(self, place: SimulatedPlace) -> None:
        while self.room_max is not None and self._asked.index(place) >= self.room_max:
            await self._changed.wait()

    def _place(self, plan: EnginePlan) -> SimulatedPlace:
        self._count += 1
        again = plan.id in self.by_engine  # an engine of this name was removed
        name = f"{plan.id}-{self._count}" if again else plan.id
        node = SimulatedNode(self._network, name, self._secret, self._seed << 20 | self._count, self._starts)
        place = self.by_engine[plan.id] = SimulatedPlace(self, node)
        return place

    def _starts(self, spec: HostSpec) -> str:
        return self.why_no_start(spec)


class BootstrapLooks:
    """`IsRegistered` over a simulated network."""

    ANSWER_S = 2.0  # as prefill/bootstrap.py

    def __init__(self, network: SimNetwork, host: str) -> None:
        self._here = network.at(host)

    async def __call__(self, address: str) -> bool:
        """False while it does not listen or answer, or a rank is missing. Whoever serves alone has no address."""
        if not address:
            return True
        host, port = address.rsplit(":", 1)
        answer, connections = asyncio.StreamReader(), list[asyncio.StreamWriter]()
        asking = asyncio.StreamReaderProtocol(answer, lambda _reader, writer: connections.append(writer))
        try:
            async with asyncio.timeout(self.ANSWER_S):
                await self._here.connect(lambda: asking, host, int(port))
                connections[0].write(b"GET /route HTTP/1.1\r\n\r\n")
                return b" 200 " in await answer.readline()
        except (OSError, TimeoutError):
            return False
        finally:
            for connection in connections:
                connection.close()
