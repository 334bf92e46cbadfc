"""Two frontends with parsers and readers, a pair of simulated engines and one that embeds, over real sockets.

One frontend refuses fields that nobody knows, the other names them in a header.
"""

from __future__ import annotations

import asyncio
import socket

from http_world import ScriptedService, codec, parsers
from scripted import MODEL, ask, exchange, until

from disagg.coordinator.coordinator import Coordinator
from disagg.coordinator.limits import Limits
from disagg.frontend.app import Frontend
from disagg.frontend.http1 import Limits as DoorLimits
from disagg.frontend.own_tokenizer import OwnTokenizer
from disagg.plane.server import PlaneServer
from disagg.registry.records import EngineRecord, State
from disagg.registry.table import Table
from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.routing.connections import Connections
from disagg.routing.router import Router
from disagg.simulated_engine.engine import SimulatedEngine
from disagg.simulated_engine.model import Model

SECRET = b"s" * 32
SPEED = 200.0  # an answer of 8 tokens takes a millisecond


class FuzzScene:
    """`start`, then requests to `ports`, then `assert_healthy` and `stop`, all on one loop."""

    async def start(self) -> None:
        self.engines: list[SimulatedEngine] = []
        self.servers: list[PlaneServer] = []
        self._registry = Table()
        for role in (Role.PREFILL, Role.DECODE, Role.EMBEDDING):
            await self._engine(role)
        self._registry.add_met("prefill-0#1", "decode-0#1")
        self.connections = Connections(SECRET)
        self.router = Router(self.connections)
        self.coordinator = Coordinator(self.router, Limits())
        self.service = ScriptedService(
            model_name=MODEL, router=self.router, coordinator=self.coordinator, control=None, embeds=True
        )
        self.service.says, self.service.begun = ["Grüße 🎾.", "Two."], []
        self.connections.apply(self._registry.view())
        lives = [record.life for record in self._registry.records.values()]
        await until(lambda: not any(self.connections.is_lost(life) for life in lives))
        self.frontends, self.tokenizations = [], []
        for refuses in (True, False):
            own = OwnTokenizer(codec(), lambda: self.service.served, parsers(), refuses_unknown=refuses)
            self.tokenizations.append(own)
            self.frontends.append(Frontend(self.service, own, limits=DoorLimits()))
        for frontend in self.frontends:
            await frontend.start("127.0.0.1", 0)
            await frontend.start_reader()
        self.ports = [frontend.port for frontend in self.frontends]

    async def _engine(self, role: Role) -> None:
        bootstrap = ("127.0.0.1", _free_port()) if role is Role.PREFILL else None
        life = f"{role}-0#1"
        engine = SimulatedEngine(Model(role=role, speed=SPEED, kv_tokens=1 << 20), life=life, bootstrap=bootstrap)
        facts = engine.start()
        server = PlaneServer(engine, facts, 1, SECRET, embeds=ROLES[role].embeds)
        port = await server.start("127.0.0.1")
        await engine.open()
        record = EngineRecord(
            id=f"{role}-0",
            role=role,
            state=State.READY,
            incarnation=1,
            plane=f"127.0.0.1:{port}",
            bootstrap=f"127.0.0.1:{bootstrap[1]}" if bootstrap else "",
            kv_tokens=facts.kv_tokens,
            request_tokens_max=facts.request_tokens_max,
            requests_max=facts.requests_max,
            page_size=facts.page_size,
        )
        self._registry.put(record)
        self.engines.append(engine)
        self.servers.append(server)

    def held(self) -> dict[str, int]:
        """Everything that requests hold, from the client's bytes to the engines' memory."""
        coordinator = self.coordinator
        doors = [frontend._server.door for frontend in self.frontends]
        generations = [frontend._models.first.generations for frontend in self.frontends]
        readers = [own.readers.processes for own in self.tokenizations]
        return {
            "requests": len(coordinator.live),
            "waiting": coordinator.waiting,
            "attempts": len(coordinator.attempts),
            "rooms": len(coordinator.rooms),
            "places": self.router.endpoints.places_taken,
            "granted requests": sum(sum(server.ledger.requests) for server in self.servers),
            "granted kv tokens": sum(sum(server.ledger.kv_tokens) for server in self.servers),
            "legs": sum(engine.legs_live for engine in self.engines),
            "kv tokens": sum(engine.kv_tokens_used for engine in self.engines),
            "engine rooms": sum(engine.bootstrap.rooms_open for engine in self.engines),
            "bodies that are read": sum(len(each._working) for each in readers),
            "answers": sum(len(each.running) for each in generations),
            "connections": sum(len(door.connections) for door in doors),
            "bytes of bodies": sum(door.held_bytes for door in doors),
            "tasks of requests": sum(len(door.tasks) for door in doors),
        }

    async def assert_healthy(self) -> None:
        for port in self.ports:
            answer = await exchange(port, ask(max_tokens=8))
            assert answer.status == 200, answer.body
            assert answer.json["choices"][0]["finish_reason"]
        try:
            await until(lambda: not any(self.held().values()), 10.0)
        except AssertionError:
            raise AssertionError(f"it is still held: {self.held()}") from None

    async def stop(self) -> None:
        for frontend in self.frontends:
            await frontend.stop(0.2)
        self.connections.apply(Table().view())
        await asyncio.sleep(0.02)
        for server, engine in zip(self.servers, self.engines, strict=True):
            server.close()
            engine.stop()
        await asyncio.sleep(0.02)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port
