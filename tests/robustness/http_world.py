"""A simulated deployment on the virtual clock, and before it the frontend's whole HTTP side, on wires without sockets.

Way:   a test's bytes -> Connection -> Frontend -> Service -> the world's coordinator -> plane -> simulated engines
In:    what the engines are to say, sample by sample: text, in the tokens of a model whose tokens are bytes
Owns:  the world; all that it holds is asserted to be given back at the end
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from scripted import MODEL, Answer, http_request, make_model_folder, read_answer
from wire import Wire, connect

from disagg.coordinator.limits import Limits
from disagg.coordinator.request import Request
from disagg.coordinator.sink import Sink
from disagg.frontend.app import Frontend
from disagg.frontend.engine_tokenizer import EngineTokenizer
from disagg.frontend.http1 import Door, Refusals
from disagg.frontend.http1 import Limits as DoorLimits
from disagg.frontend.own_tokenizer import OwnTokenizer, parsing_of
from disagg.frontend.parsing import NO_PARSERS, Parsing
from disagg.frontend.reader import answer
from disagg.frontend.readers import Order
from disagg.frontend.service import Service
from disagg.frontend.tokenization import Tokenization
from disagg.plane.server import PlaneServer
from disagg.process.text_service import TextService
from disagg.roles import Role
from disagg.simulation.hosts import SimulatedHost
from disagg.simulation.world import SimulatedDeployment
from disagg.tokenizer.codec import Codec, load_codec

END_ID = 258  # <|im_end|>
SCORER = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "bad", "1": "good"}}
HANGS_S = 300.0  # virtual
PATHS = {
    "chat": "/v1/chat/completions",
    "text": "/v1/completions",
    "generate": "/generate",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


PARSERS = ("hermes", "qwen3")


_folder = tempfile.TemporaryDirectory(prefix="disagg-http-world-")  # gone with this process; readers open files of it


@cache
def codec() -> Codec:
    folder = make_model_folder(Path(_folder.name))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": END_ID}))
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": TEMPLATE}))
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 4096} | SCORER
    (folder / "config.json").write_text(json.dumps(config))
    return load_codec(folder)


@cache
def parsers() -> Parsing:
    return parsing_of(*PARSERS, codec())


class ScriptedService(Service):
    """Its engines say what is in `says`, a row for each sample, in the order in which samples begin."""

    says: Sequence[str] = ()
    begun: list[Request]

    async def run(self, request: Request, sink: Sink) -> None:
        text = self.says[len(self.begun) % len(self.says)]
        self.begun.append(request)
        ids = [*codec().text_ids(text, special_tokens=False), END_ID]
        request.sampling = {**request.sampling, "says": ids}
        request.received_at_s = asyncio.get_running_loop().time()  # of the virtual clock
        await super().run(request, sink)


class Talk:
    """One request on a connection of its own. `leave` is what a client does that closes it."""

    def __init__(self, door: Door, request: bytes) -> None:
        self.wire: Wire = connect(door)
        self.wire.connection.data_received(request)

    def leave(self) -> None:
        self.wire.connection.connection_lost(None)

    @property
    def is_over(self) -> bool:
        return self.wire.is_over

    async def answer(self) -> Answer:
        async with asyncio.timeout(HANGS_S):
            while not self.is_over:
                await asyncio.sleep(0.02)
        self.leave()
        assert not self.wire.was_aborted, "it was reset"
        reader = asyncio.StreamReader()
        reader.feed_data(self.wire.sent)
        reader.feed_eof()
        return await read_answer(reader)


class HostReader:
    """Of a host's reader of bodies, in this process."""

    async def ask(self, words: str, data: bytes) -> bytes:
        await asyncio.sleep(0.001)
        return answer(data, words, Order(str(codec().folder), MODEL, 10.0, codec().overrides, True), codec())


class HttpWorld:
    """`in_hosts`: the engines' hosts have the tokenizer."""

    def __init__(self, sim: SimulatedDeployment, *, in_hosts: bool = False) -> None:
        front = sim.frontends[0]
        self.sim, self.coordinator = sim, front.coordinator
        told = front.coordinator.on_transfer_lost
        self.service = ScriptedService(
            model_name=MODEL, router=front.router, coordinator=front.coordinator, control=None
        )
        front.coordinator.on_transfer_lost = told  # the world's controller, in place of a client of one
        self.service.begun = []
        make = self._asking if in_hosts else self._own
        self._doors = {reads: self._door(make(reads)) for reads in (False, True)}

    def _own(self, reads: bool) -> OwnTokenizer:
        return OwnTokenizer(codec(), lambda: self.service.served, parsers() if reads else NO_PARSERS)

    def _asking(self, reads: bool) -> EngineTokenizer:
        connections = self.sim.frontends[0].router.connections
        return EngineTokenizer(connections, Limits(), lambda: self.service.served, *(PARSERS if reads else ()))

    def _door(self, tokenization: Tokenization) -> Door:
        return Door(Frontend(self.service, tokenization), DoorLimits(), Refusals(), 100)

    def post(self, api: str, body: dict[str, Any], says: Sequence[str], *, parses: bool = False) -> Talk:
        """`parses`: by a frontend that reads calls and reasoning."""
        self.service.says, self.service.begun = says, []
        data = json.dumps({"model": MODEL} | body).encode()
        return Talk(self._doors[parses], http_request("POST", PATHS[api], data, ["connection: close"]))

    def cancel(self) -> None:
        """As DELETE does it."""
        for request in self.service.begun:
            self.coordinator.cancel(request.id)

    async def until_tokens(self, count: int) -> None:
        """Until the first sample has so many; or it is over."""
        async with asyncio.timeout(HANGS_S):
            while not (begun := self.service.begun) or (
                len(begun[0].emitted_ids) < count and begun[0].id in self.coordinator.live
            ):
                await asyncio.sleep(0.002)

    def host(self, role: Role) -> SimulatedHost:
        """Where the first sample runs."""
        facts = self.service.begun[0].facts
        rank = facts.prefill if role is Role.PREFILL else facts.decode
        assert rank is not None
        return self.sim.hosts[rank.engine_id]


@asynccontextmanager
async def http_world(
    limits: Limits | None = None, *, seed: int = 1, in_hosts: bool = False, **model: Any
) -> AsyncIterator[HttpWorld]:
    """Two engines a role. At the end nothing is held any more. `in_hosts`: see HttpWorld."""
    texts = TextService(codec().texts, HostReader(), HostReader()) if in_hosts else None
    with patch("disagg.simulation.hosts.PlaneServer", partial(PlaneServer, texts=texts)):
        async with SimulatedDeployment(prefill=2, decode=2, seed=seed, limits=limits, model=model) as sim:
            yield HttpWorld(sim, in_hosts=in_hosts)
            await asyncio.sleep(5)  # what was killed is found, and comes back
            await sim.settle()
