"""A coordinator before stub engines over real sockets, for the tests of this folder."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from disagg.coordinator.coordinator import Coordinator
from disagg.coordinator.limits import Limits
from disagg.coordinator.request import FinishReason, Request
from disagg.plane.server import PlaneServer
from disagg.process.stub import StubEngine
from disagg.registry.records import EngineRecord, State
from disagg.registry.table import Table, View
from disagg.roles import Role
from disagg.routing.connections import Connections
from disagg.routing.policy import Policy
from disagg.routing.router import Router

SECRET = b"s" * 32
ONCE = Limits(retry_limit=0, migration_limit=0)
QUICK = replace(ONCE, no_pair_s=0.2, first_token_s=0.3, next_token_s=0.3, request_s=5)


class Plain:
    """A text side that writes one letter a token and stops at `stop_after` tokens."""

    def __init__(self, stop_after: int = 1 << 30) -> None:
        self._left = self._stop_after = stop_after
        self.stopped = False

    def push(self, token_ids: list[int]) -> str:
        shown = min(len(token_ids), self._left)
        self._left -= shown
        self.stopped = self._left == 0
        return "x" * shown

    def flush(self) -> str:
        return ""

    def begin_anew(self) -> None:
        self._left, self.stopped = self._stop_after, False


class Reader:
    """A sink that takes all, or only what comes while it is opened. `collects`: nobody hears of it before its end."""

    def __init__(self, *, opened: bool = True, collects: bool = False) -> None:
        self.collects = collects
        self.pieces: list[tuple[str, list[int]]] = []
        self.finish_reason: FinishReason | None = None
        self.raises = False
        self._open = asyncio.Event()
        self.opened = opened

    @property
    def opened(self) -> bool:
        return self._open.is_set()

    @opened.setter
    def opened(self, now: bool) -> None:
        (self._open.set if now else self._open.clear)()

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)

    @property
    def token_ids(self) -> list[int]:
        return [each for _, ids in self.pieces for each in ids]

    def is_open(self) -> bool:
        return self.opened

    async def opens(self) -> None:
        await self._open.wait()

    def put(self, text: str, token_ids: list[int]) -> None:
        if self.raises:
            raise ZeroDivisionError
        self.pieces.append((text, token_ids))

    def end(self, text: str, token_ids: list[int], reason: FinishReason) -> None:
        self.put(text, token_ids)
        self.finish_reason = reason

    def forgets(self) -> bool:
        if self.collects:
            self.pieces.clear()
        return self.collects


def request(max_tokens: int = 8, text: Plain | None = None, **sampling: Any) -> Request:
    return Request(uuid.uuid4().hex, [1, 2, 3], sampling, max_tokens, text or Plain(), time.monotonic())


@dataclass
class Bench:
    coordinator: Coordinator
    router: Router
    engines: dict[str, StubEngine]
    servers: dict[str, PlaneServer]
    registry: Table

    @property
    def prefill(self) -> StubEngine:
        return self.engines["prefill-0"]

    @property
    def decode(self) -> StubEngine:
        return self.engines["decode-0"]

    async def answer(self, of: Request) -> tuple[str, str | None]:
        reader = Reader()
        await self.coordinator.run(of, reader)
        return reader.text, reader.finish_reason

    def start(self, of: Request) -> asyncio.Task[tuple[str, str | None]]:
        return asyncio.create_task(self.answer(of))

    async def change(self, name: str, **changes: Any) -> None:
        """What the controller would write into the registry."""
        self.registry.put(msgspec.structs.replace(self.registry.records[name], **changes))
        await update(self.router.connections, self.registry.view())

    async def meet(self, prefill: str = "prefill-0#1", decode: str = "decode-0#1") -> None:
        self.registry.add_met(prefill, decode)
        await update(self.router.connections, self.registry.view())

    async def settle(self) -> None:
        """Everything is given back."""
        async with asyncio.timeout(30):
            while self.held():
                await asyncio.sleep(0.01)
        assert all(not any(server.ledger.requests) for server in self.servers.values())
        assert all(not any(server.ledger.kv_tokens) for server in self.servers.values())
        assert all(not any(server.ledger.canaries) for server in self.servers.values())

    def held(self) -> int:
        coordinator = self.coordinator
        granted = sum(sum(server.ledger.requests) for server in self.servers.values() if server.sessions)
        waiting = len(coordinator.live) + len(coordinator.attempts) + coordinator.waiting
        return len(coordinator.rooms) + self.router.endpoints.places_taken + waiting + granted


async def until(condition: Any, limit_s: float = 30.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def bench(
    limits: Limits = QUICK, met: bool = True, policy: Policy | None = None, **engines: StubEngine
) -> AsyncIterator[Bench]:
    """Engines by name, with _ for the dash (prefill_0); a bare role is its first engine. All have met, if any has."""
    named = {"prefill-0": StubEngine(), "decode-0": StubEngine()}
    named |= {(n.replace("_", "-") if "_" in n else f"{n}-0"): engine for n, engine in engines.items()}
    servers, registry = {}, Table()
    lives = {role: [f"{name}#1" for name in named if name.startswith(role)] for role in ("prefill", "decode")}
    for prefill, decode in itertools.product(lives["prefill"], lives["decode"]) if met else ():
        registry.add_met(prefill, decode)
    for name, engine in named.items():
        facts = engine.start()
        servers[name] = PlaneServer(engine, facts, 1, SECRET)
        port = await servers[name].start("127.0.0.1")
        is_prefill = name.startswith("prefill")
        record = EngineRecord(
            id=name,
            role=Role.PREFILL if is_prefill else Role.DECODE,
            state=State.READY,
            incarnation=1,
            ranks=facts.ranks,
            plane=f"127.0.0.1:{port}",
            bootstrap="127.0.0.1:9" if is_prefill else "",
            kv_tokens=facts.kv_tokens,
            requests_max=facts.requests_max,
            page_size=facts.page_size,
        )
        registry.put(record)
    connections = Connections(SECRET)
    router = Router(connections, policy)
    await update(connections, registry.view())
    try:
        yield Bench(Coordinator(router, limits), router, named, servers, registry)
    finally:
        connections.apply(Table().view())
        await asyncio.sleep(0.02)  # asyncio forgets a socket that it accepts while its server is being closed
        for server in servers.values():
            server.close()


async def update(connections: Connections, view: View) -> None:
    """Returns when each READY engine is connected."""
    connections.apply(view)
    ready = [record.life for record in view.records.values() if record.state is State.READY]
    async with asyncio.timeout(30):
        while any(map(connections.is_lost, ready)):
            await asyncio.sleep(0)
