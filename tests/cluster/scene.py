"""Supervisors, prover and canaries as the controller has them, over stub engines behind real plane servers: no Ray.

Time is real, as sockets need it; tests that wait here use the fixture `quick`, so that nobody waits for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from disagg.adapters import Adapter
from disagg.cluster.adapters import Adapters
from disagg.cluster.canaries import Canaries
from disagg.cluster.engine_node import Ground, NodeLost
from disagg.cluster.live import LiveEngine
from disagg.cluster.proving import Prover
from disagg.cluster.runtime import Runtime
from disagg.cluster.setting import Setting
from disagg.cluster.supervisor import EngineSupervisor
from disagg.config.schema import Deadlines
from disagg.host_spec import HostSpec
from disagg.lives import engine_id_of
from disagg.plane import messages as m
from disagg.plane.client import PlaneClient
from disagg.plane.engine import Leg, LegSink
from disagg.plane.server import PlaneServer
from disagg.planning.plan import EnginePlan
from disagg.process.news import Exit, Ready
from disagg.process.stub import FACTS, StubEngine
from disagg.registry.memory import MemoryRegistry
from disagg.registry.records import EngineRecord, State
from disagg.roles import Role

SECRET = b"s" * 32
SETTING = Setting("test", "cpu", "", SECRET.hex(), Deadlines(start_s=5.0, drain_s=5.0), [], "127.0.0.1")


class Engine(StubEngine):
    """A stub whose health and hangs are set from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.sick = ""
        self.hangs = False  # takes legs, and nothing comes of them; an abort does not help either
        self.no_transfer_with: set[int] = set()  # bootstrap ports of prefills whose KV does not come
        self.sinks: list[LegSink] = []

    def submit(self, leg: Leg, sink: LegSink) -> object:
        if self.hangs or (leg.bootstrap is not None and leg.bootstrap.port in self.no_transfer_with):
            self.legs.append(leg)
            self.sinks.append(sink)
            return sink
        return super().submit(leg, sink)

    def abort(self, handle: object) -> None:
        if handle not in self.sinks:
            super().abort(handle)
        elif not self.hangs:
            self.sinks.remove(handle)  # type: ignore[arg-type]
            handle.on_end("abort", "", 0, {})  # type: ignore[attr-defined]

    def health(self) -> list[m.RankHealth]:
        return [m.RankHealth(0, self.sick, 0.0, 0.0)]


class Node:
    """An EngineNode without Ray: each incarnation is a stub engine behind a plane server of its own."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.server: PlaneServer | None = None
        self.client_count = 0
        self.ports: list[int] = []
        self.log_of_calls: list[str] = []
        self.lost = False
        self.spares = 0  # how often one was asked for
        self._exit: asyncio.Future[Exit] | None = None

    async def prepare(self) -> Ground:
        if self.lost:
            self.lost = False
            raise NodeLost("node", "the actor died")
        self.ports.append(20000 + 10 * len(self.ports))
        return Ground("127.0.0.1", self.ports[-1], True)

    async def start(self, spec: HostSpec) -> Ready:
        assert self.server is None, "the last incarnation was not ended"
        self.log_of_calls.append(f"start {spec.life}")
        self.engine = Engine()
        self.server = PlaneServer(self.engine, FACTS, spec.incarnation, SECRET)
        port = await self.server.start("127.0.0.1")
        self._exit = asyncio.get_running_loop().create_future()
        facts = msgspec.structs.asdict(FACTS)
        return Ready(plane=f"127.0.0.1:{port}", start_s={"engine": 1.5}, way="spawned", **facts)

    async def exited(self) -> Exit:
        assert self._exit is not None
        return await asyncio.shield(self._exit)

    async def end(self) -> None:
        self.log_of_calls.append("end")
        await self.die("its actor is gone")

    async def die(self, why: str) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None
        if self._exit is not None and not self._exit.done():
            self._exit.set_result(Exit(why=why, tail=("the last line",)))

    async def adopt(self, life: str) -> bool:
        return self.server is not None

    def keep_spare(self) -> None:
        self.spares += 1

    async def lane(self) -> str:
        return "tcp"

    async def log(self, lines: int) -> str:
        return ""

    def close(self) -> None:
        pass


class Scene:
    def __init__(self, given: tuple[Adapter, ...] = (), drain_s: float = 5.0) -> None:
        self.registry = MemoryRegistry()
        self.runtime = Runtime()
        self.adapters = Adapters(self.registry, self.runtime, "tiny", given, drain_s)
        self.prover = Prover(self.registry, self._on_proven, self._on_failed, self.runtime.random)
        self.canaries = Canaries(self.prover, self._on_sick, 0.05, self.runtime.now_s, limit_s=0.1)
        self.nodes: dict[str, Node] = {}
        self.supervisors: dict[str, EngineSupervisor] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self.seen: list[EngineRecord] = []
        self.bootstraps_dead: set[str] = set()

    async def is_registered(self, bootstrap: str) -> bool:
        return bootstrap not in self.bootstraps_dead

    def add(self, role: Role, setting: Setting) -> None:
        engine_id = f"{role}-{sum(s.plan.role is role for s in self.supervisors.values())}"
        plan = EnginePlan(engine_id, role, "", 0, 1.0, 0.0, 1, 1, 1, {}, {})
        node = self.nodes[engine_id] = Node()
        of_all = (self.registry, self.prover, self.runtime, self.is_registered)
        supervisor = EngineSupervisor(plan, setting, node, *of_all, adapters=self.adapters)
        self.supervisors[engine_id] = supervisor
        self.tasks.append(asyncio.create_task(supervisor.run()))

    def record(self, engine_id: str) -> EngineRecord:
        return self.supervisors[engine_id].record

    def met_with(self, engine_id: str) -> set[str]:
        return set(self.registry.met.met_with(self.record(engine_id).life))

    def live(self, engine_id: str) -> LiveEngine:
        return self.prover.up[self.record(engine_id).life]

    def states(self, engine_id: str) -> list[tuple[int, str]]:
        """(incarnation, state), each change once."""
        found: list[tuple[int, str]] = []
        for record in self.seen:
            now = (record.incarnation, record.state.value)
            if record.id == engine_id and found[-1:] != [now]:
                found.append(now)
        return found

    async def until_seen(self, engine_id: str, state: State) -> EngineRecord:
        """The first record of that state, however short it stood."""

        def found() -> EngineRecord | None:
            return next((r for r in self.seen if r.id == engine_id and r.state is state), None)

        await self.until(lambda: found() is not None)
        record = found()
        assert record is not None
        return record

    async def until(self, what: Callable[[], bool], limit_s: float = 30.0) -> None:
        try:
            async with asyncio.timeout(limit_s):
                while not what():
                    for task in self.tasks:
                        if task.done():
                            task.result()
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError([(r.life, r.state, r.detail) for r in self.registry.records.values()]) from None

    async def until_ready(self, engine_id: str, incarnation: int = 1) -> EngineRecord:
        await self.until(
            lambda: self.record(engine_id).state is State.READY and self.record(engine_id).incarnation == incarnation
        )
        return self.record(engine_id)

    async def client(self, engine_id: str) -> PlaneClient:
        """A frontend's connection."""
        record = self.record(engine_id)
        client = PlaneClient(record.plane, record.incarnation, SECRET, lambda _why: None)
        await client.connect()
        return client

    async def _on_proven(self, life: str) -> None:
        await self.supervisors[engine_id_of(life)].proven()

    async def _on_failed(self, life: str, why: str) -> None:
        await self.supervisors[engine_id_of(life)].failed(why)

    def _on_sick(self, life: str, why: str) -> None:
        self.supervisors[engine_id_of(life)].sick(why)


class Receiver:
    def __init__(self) -> None:
        self.end: m.LegEnd | None = None

    def on_tokens(self, offset: int, token_ids: list[int], _logprobs: object) -> None:
        pass

    def on_stage(self, name: str, cached_tokens: int | None = None) -> None:
        pass

    def on_end(self, end: m.LegEnd) -> None:
        self.end = end


def begin_request(client: PlaneClient, adapter: str = "") -> Receiver:
    receiver = Receiver()
    of_leg: dict[str, Any] = {"leg_id": "0" * 34, "prompt": m.pack_ids([1]), "sampling": {"max_new_tokens": 4}}
    client.submit(receiver, **of_leg, dp_rank=0, bootstrap=None, adapter=adapter)
    return receiver


@asynccontextmanager
async def scene(*roles: Role, setting: Setting = SETTING, given: tuple[Adapter, ...] = ()) -> AsyncIterator[Scene]:
    it = Scene(given, setting.deadlines.drain_s)
    await it.adapters.begin()
    following = asyncio.create_task(_follow(it))
    it.tasks.append(asyncio.create_task(it.prover.run()))
    await asyncio.sleep(0)
    for role in roles:
        it.add(role, setting)
    try:
        for engine_id in it.supervisors:
            await it.until_ready(engine_id)
        yield it
    finally:
        for task in [*it.tasks, following]:
            task.cancel()
        await asyncio.gather(*it.tasks, following, return_exceptions=True)
        for node in it.nodes.values():
            await node.end()


async def _follow(it: Scene) -> None:
    put = it.registry.put

    def noting(record: EngineRecord) -> Awaitable[None]:
        it.seen.append(record)
        return put(record)

    it.registry.put = noting  # type: ignore[method-assign, assignment]
    await asyncio.Event().wait()
