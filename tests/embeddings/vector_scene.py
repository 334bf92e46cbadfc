"""A frontend before simulated embedding engines, over real sockets, for the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from before_engines import SECRET, Front, fronting, ready_engine
from scripted import MODEL, make_model_folder, until
from tokenizers import Tokenizer, processors

from disagg.adapters import Adapter
from disagg.coordinator.limits import Limits
from disagg.frontend.own_tokenizer import OwnTokenizer
from disagg.plane.messages import LoadAdapter
from disagg.plane.server import PlaneServer
from disagg.registry.table import Table
from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.simulated_engine.engine import SimulatedEngine
from disagg.simulated_engine.model import Model
from disagg.tokenizer.codec import load_codec

LIMITS = Limits(no_pair_s=1.0, queue_s=5.0, first_token_s=5.0, request_s=10.0)


@dataclass
class Scene(Front):
    engines: list[SimulatedEngine]
    servers: list[PlaneServer]
    client: httpx.AsyncClient

    async def post(self, path: str = "/v1/embeddings", **body: Any) -> httpx.Response:
        return await self.client.post(self.url + path, json={"model": MODEL} | body)

    async def vectors(self, given: Any, **more: Any) -> list[Any]:
        answer = await self.post(input=given, **more)
        assert answer.status_code == 200, answer.text
        entries = answer.json()["data"]
        assert [entry["index"] for entry in entries] == list(range(len(entries)))
        return [entry["embedding"] for entry in entries]

    @property
    def legs(self) -> int:
        return sum(engine.legs_live for engine in self.engines)

    async def settle(self) -> None:
        await until(self.is_settled)

    def is_settled(self) -> bool:
        granted = sum(sum(server.ledger.requests) for server in self.servers)
        return not (self.held + granted + self.legs)


def mark_pairs(folder: Path, second_type: int) -> None:
    """Special tokens around a pair, and this token type for its second text."""
    file = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>",
        pair=f"<|im_start|> $A <|im_end|> $B:{second_type} <|im_end|>:{second_type}",
        special_tokens=[("<|im_start|>", 257), ("<|im_end|>", 258)],
    )
    tokenizer.save(file)


@asynccontextmanager
async def scene(
    folder: Path,
    *roles: Role,
    config: dict[str, Any] | None = None,
    second_type: int | None = None,
    adapters: tuple[str, ...] = (),
    **model: Any,
) -> AsyncIterator[Scene]:
    """An engine of each role; by default two that embed. `config`: more for the model's config.json; `second_type`:
    see `mark_pairs`; `adapters`: names of some that all engines have."""
    make_model_folder(folder)
    if second_type is not None:
        mark_pairs(folder, second_type)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | (config or {})))
    registry, servers, engines = Table(), [], []
    for number, role in enumerate(roles or (Role.EMBEDDING, Role.EMBEDDING)):
        engine = SimulatedEngine(Model(role=role, **({"step_s": 0.001} | model)), life=f"{role}-{number}#1")
        facts, embeds = engine.start(), ROLES[role].embeds
        server = PlaneServer(engine, facts, 1, SECRET, embeds=embeds)
        engine.on_death = server.close
        port = await server.start("127.0.0.1")
        registry.put(ready_engine(role, number, port, facts))
        engines.append(engine)
        servers.append(server)
    if adapters:
        (folder / "adapter_config.json").touch()
    for name in adapters:
        registry.put_adapter(Adapter(name, str(folder)))
        for server in servers:
            server.adapters.change(LoadAdapter(name, str(folder), False), lambda _: None)
    await until(lambda: all(set(adapters) == server.adapters.legs.keys() for server in servers))
    codec = load_codec(folder)
    try:
        async with (
            httpx.AsyncClient(trust_env=False, timeout=20) as client,
            fronting(registry, LIMITS, lambda service, _: OwnTokenizer(codec, lambda: service.served)) as front,
        ):
            yield Scene(**vars(front), engines=engines, servers=servers, client=client)
    finally:
        for server in servers:
            server.close()
