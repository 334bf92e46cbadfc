"""Two frontends before the same engines, over real sockets: one has the tokenizer, the other's engines have it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from before_engines import SECRET, Front, fronting, ready_engine
from scripted import MODEL, TEMPLATE, make_model_folder
from speaking_engine import SpeakingEngine

from disagg.adapters import Served
from disagg.coordinator.limits import Limits
from disagg.frontend.engine_tokenizer import EngineTokenizer
from disagg.frontend.own_tokenizer import OwnTokenizer, parsing_of
from disagg.frontend.reader import answer
from disagg.frontend.readers import Order
from disagg.plane.server import PlaneServer
from disagg.process.text_service import TextService
from disagg.registry.table import Table
from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.tokenizer.codec import Codec, load_codec
from disagg.tokenizer.overrides import Overrides

LIMITS = Limits(no_pair_s=0.5, queue_s=5.0, first_token_s=5.0, request_s=10.0)
TOOL_TEMPLATE = "{% if tools %}{{ tools | tojson }}\n{% endif %}" + TEMPLATE


@dataclass
class HostReader:
    """A host's reader of bodies in this process. `before` is awaited with each body, and may never end."""

    order: Order
    codec: Codec
    before: Callable[[str], Any] = lambda _endpoint: asyncio.sleep(0)
    endpoints: list[str] = field(default_factory=list)
    cancelled: int = 0

    async def ask(self, words: str, data: bytes) -> bytes:
        endpoint = words.split(" ")[0]
        self.endpoints.append(endpoint)
        try:
            await self.before(endpoint)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return answer(data, words, self.order, self.codec)


@dataclass
class Host:
    life: str
    engine: SpeakingEngine
    server: PlaneServer
    reader: HostReader


@dataclass
class Side(Front):
    client: httpx.AsyncClient

    async def post(self, path: str, body: dict[str, Any] | bytes) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.client.post(self.url + path, content=content)


@dataclass
class Scene:
    own: Side
    engine: Side
    hosts: list[Host]
    registry: Table

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.own, self.engine


@asynccontextmanager
async def scene(
    folder: Path, *roles: Role, parsers: tuple[str | None, str | None] = (None, None), per_step: int = 1000, **more: Any
) -> AsyncIterator[Scene]:
    """A host of each role; by default a prefill and two decodes. `more`: of config.json."""
    make_model_folder(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": 258} | more))
    overrides = Overrides(chat_template=TOOL_TEMPLATE)
    codec = load_codec(folder, overrides)
    roles = roles or (Role.PREFILL, Role.DECODE, Role.DECODE)
    registry, hosts = Table(), []
    for number, role in enumerate(roles):
        hosts.append(await _host(registry, role, number, codec, per_step))
    by_role = {role: [host.life for host, each in zip(hosts, roles, strict=True) if each is role] for role in roles}
    for prefill in by_role.get(Role.PREFILL, []):
        for decode in by_role.get(Role.DECODE, []):
            registry.add_met(prefill, decode)
    own = OwnTokenizer(codec, lambda: Served(MODEL), parsing_of(*parsers, codec))
    async with (
        httpx.AsyncClient(trust_env=False, timeout=20) as client,
        fronting(registry, LIMITS, lambda _service, _connections: own) as one,
        fronting(
            registry, LIMITS, lambda _service, found: EngineTokenizer(found, LIMITS, lambda: Served(MODEL), *parsers)
        ) as other,
    ):
        try:
            yield Scene(Side(**vars(one), client=client), Side(**vars(other), client=client), hosts, registry)
        finally:
            for host in hosts:
                host.server.close()


async def _host(registry: Table, role: Role, number: int, codec: Codec, per_step: int) -> Host:
    life, engine = f"{role}-{number}#1", SpeakingEngine(per_step)
    facts = engine.start()
    reader = HostReader(Order(str(codec.folder), MODEL, 10.0, codec.overrides, True), codec)
    texts = TextService(codec.texts, reader, reader)
    server = PlaneServer(engine, facts, 1, SECRET, embeds=ROLES[role].embeds, texts=texts)
    port = await server.start("127.0.0.1")
    registry.put(ready_engine(role, number, port, facts))
    return Host(life, engine, server, reader)
