"""How long until every prefill has met every decode: `python -m benchmarks.proving [FILE.json]`.

Way:   simulated engines -> [plane over real sockets] -> the Prover that serves -> registry -> frontends over sockets
In:    so many engines of each role, all up at once; KV travels in memory (10,000 connections would need more files
       than a process has). All in this one process: a probe's cost is the controller's and that of both its hosts
Out:   seconds, pairs a second, CPU a pair; what the registry sent to its frontends, in frames and bytes
Fails: exit status 1 when not all pairs have met within LIMIT_S, or a frontend does not see them
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random

import msgspec
import uvloop

from disagg.cluster.live import LiveEngine
from disagg.cluster.proving import Prover
from disagg.cluster.runtime import Runtime
from disagg.plane.server import PlaneServer
from disagg.registry.memory import MemoryRegistry
from disagg.registry.records import EngineRecord, State
from disagg.registry.served import RegistryServer, RemoteRegistry
from disagg.roles import Role
from disagg.simulated_engine.engine import Model, SimulatedEngine
from disagg.simulation.network import SimNetwork

SIZES = (32, 100)  # engines of each role
FRONTENDS = 2
LIMIT_S = 120.0
SECRET = b"b" * 32
HOST = "127.0.0.1"
BOOTSTRAP_PORT = 8998


class Deployment:
    """Prover and registry as the controller has them, and in place of its supervisors a word: READY."""

    def __init__(self, engines_a_role: int) -> None:
        self._count = engines_a_role
        self._network = SimNetwork(seed=1, latency_s=(0.0, 0.0))
        self.registry = MemoryRegistry()
        self.served = RegistryServer(self.registry, SECRET)
        self.prover = Prover(self.registry, self._on_proven, self._on_failed, Random(1))
        self.frontends: list[RemoteRegistry] = []
        self._live: list[LiveEngine] = []
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Every engine is up and connected, and no pair has met."""
        for role in (Role.PREFILL, Role.DECODE):
            for number in range(self._count):
                await self._start_engine(role, f"{role}-{number}")
        port = await self.served.start(HOST)
        self._stack.push_async_callback(self.served.close)
        self.frontends = [RemoteRegistry(f"{HOST}:{port}", SECRET) for _ in range(FRONTENDS)]
        for frontend in self.frontends:
            self._stack.push_async_callback(frontend.close)
            await frontend.connect()

    async def prove(self) -> None:
        """Returns when all have met, and every frontend knows it."""
        pairs = self._count**2
        running = asyncio.create_task(self.prover.run(), name="prove pairs")
        try:
            for live in self._live:
                self.prover.add(live)
            async with asyncio.timeout(LIMIT_S):
                for table in (self.registry, *self.frontends):
                    async for view in table.watch():
                        if len(view.met) == pairs and all(r.state is State.READY for r in view.records.values()):
                            break
        finally:
            running.cancel()

    async def stop(self) -> None:
        await self._stack.aclose()
        await asyncio.sleep(0.1)

    async def _start_engine(self, role: Role, engine_id: str) -> None:
        bootstrap = (engine_id, BOOTSTRAP_PORT) if role is Role.PREFILL else None
        engine = SimulatedEngine(
            Model(role=role), life=f"{engine_id}#1", bootstrap=bootstrap, network=self._network.at(engine_id)
        )
        facts = engine.start()
        server = PlaneServer(engine, facts, 1, SECRET)
        self._stack.callback(engine.stop)
        self._stack.callback(server.close)
        plane = f"{HOST}:{await server.start(HOST)}"
        await engine.open()
        record = EngineRecord(
            id=engine_id,
            role=role,
            state=State.STARTING,
            incarnation=1,
            plane=plane,
            bootstrap=f"{engine_id}:{BOOTSTRAP_PORT}" if bootstrap else "",
        )
        await self.registry.put(record)
        live = LiveEngine(record, SECRET, Runtime())
        self._live.append(live)
        self._stack.callback(live.client.close)
        await live.client.connect()

    async def _on_proven(self, life: str) -> None:
        record = self.registry.records[life.partition("#")[0]]
        if record.state is not State.READY:
            await self.registry.put(msgspec.structs.replace(record, state=State.READY))

    async def _on_failed(self, _life: str, why: str) -> None:
        print(why, file=sys.stderr)


async def measure(engines_a_role: int) -> dict[str, float]:
    """CPU is that of everything: controller, both engines and their hosts, frontends' tables. What the registry sent
    is to all frontends together."""
    deployment = Deployment(engines_a_role)
    await deployment.start()
    try:
        began_s, cpu_began_s = time.perf_counter(), time.process_time()
        await deployment.prove()
        seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_began_s
    finally:
        await deployment.stop()
    pairs, served = engines_a_role**2, deployment.served
    return {
        "engines_a_role": engines_a_role,
        "pairs": pairs,
        "seconds": round(seconds, 2),
        "pairs_s": round(pairs / seconds, 1),
        "cpu_ms_pair": round(cpu_s / pairs * 1e3, 3),
        "registry_frames": served.frames_sent,
        "registry_bytes": served.bytes_sent,
    }


def main() -> int:
    rows = []
    for engines_a_role in SIZES:
        try:
            row = uvloop.run(measure(engines_a_role))  # as the controller
        except TimeoutError:
            print(f"{engines_a_role}+{engines_a_role} engines: not all have met within {LIMIT_S:g} s", file=sys.stderr)
            return 1
        rows.append(row)
        print(
            f"{engines_a_role}+{engines_a_role} engines: {row['pairs']} pairs in {row['seconds']:g} s, "
            f"{row['pairs_s']:g} pairs/s, {row['cpu_ms_pair']:g} ms CPU a pair; registry to {FRONTENDS} frontends: "
            f"{row['registry_frames']} frames, {row['registry_bytes'] / 1e6:.2f} MB"
        )
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({"rows": rows}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
