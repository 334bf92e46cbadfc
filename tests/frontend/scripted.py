"""A backend that plays a script, a client that reads bytes, and a model folder small enough to make in a test."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from disagg.adapters import Adapter, Served
from disagg.coordinator.coordinator import Coordinator
from disagg.coordinator.limits import Limits
from disagg.coordinator.request import FinishReason, Request
from disagg.coordinator.sink import Sink
from disagg.frontend.app import Frontend
from disagg.frontend.own_tokenizer import OwnTokenizer
from disagg.frontend.page.feed import Feed
from disagg.plane.messages import MetricFamily
from disagg.registry import orders
from disagg.registry.orders import Asked, Revision, Status
from disagg.routing.connections import Connections
from disagg.routing.router import Router
from disagg.telemetry.engine_metrics import Told
from disagg.telemetry.metrics import Figures
from disagg.tokenizer.codec import Codec

MODEL = "scripted"
CONTEXT = 512
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' and loop.first %}"
    "{{ raise_exception('the user speaks first') }}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Running:
    """A request that a script answers as the coordinator would: a piece a turn, and none to a sink that is closed."""

    request: Request
    sink: Sink

    async def say(self, text: str, token_ids: list[int], reason: FinishReason | None = None) -> None:
        if not self.sink.is_open():
            await self.sink.opens()
        self.request.emitted_ids += token_ids
        if reason is None:
            self.sink.put(text, token_ids)
            await asyncio.sleep(0)
        else:
            self.sink.end(text, token_ids, reason)


Script = Callable[[Running], Awaitable[None]]


def feed_of(connections: Connections) -> Feed:
    return Feed(MODEL, Coordinator(Router(connections), Limits()), connections)


def make_model_folder(folder: Path) -> Path:
    """A byte-level tokenizer without merges: token ids 0 to 255 are bytes, three special tokens follow."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    files: dict[str, Any] = {
        "config.json": {"vocab_size": 259, "max_position_embeddings": CONTEXT},
        "tokenizer_config.json": {"bos_token": "<|endoftext|>", "chat_template": TEMPLATE},
        "generation_config.json": {"temperature": 0.6, "top_k": 0},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@dataclass
class ScriptedBackend:
    """Plays `script`; remembers requests and how their runs ended."""

    script: Script
    model_name: str = MODEL
    created_s: int = 1_764_000_000
    request_tokens_max: int = 0
    generates: bool = True
    embeds: bool = False
    embedding_tokens_max: int = 0
    ignored: dict[str, str] = field(default_factory=dict)
    not_ready: str = ""
    adapters: dict[str, Adapter] = field(default_factory=dict)
    adapter_trouble: str | None = None
    requests: list[Request] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    drained: list[tuple[str, bool]] = field(default_factory=list)
    ordered: list[Asked] = field(default_factory=list)
    answer: orders.Answer = field(default_factory=lambda: orders.Answer(change=1))
    flushed: list[float] = field(default_factory=list)
    flushes: dict[str, str] = field(default_factory=lambda: {"prefill-0#1": ""})
    feed: Feed = field(default_factory=lambda: feed_of(Connections(b"")))
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    ids_given: int = 0

    @property
    def served(self) -> Served:
        return Served(self.model_name, frozenset(self.adapters))

    async def load_adapter(self, name: str, path: str, pinned: bool) -> str | None:
        if self.adapter_trouble is None:
            self.adapters[name] = Adapter(name, path, pinned, self.created_s)
        return self.adapter_trouble

    async def unload_adapter(self, name: str) -> str | None:
        return None if self.adapters.pop(name, None) else f"there is no adapter '{name}' here"

    async def run(self, request: Request, sink: Sink) -> None:
        self.requests.append(request)
        ending = "cancelled"
        try:
            await self.script(Running(request, sink))
            ending = "finished"
        finally:
            self.closed.append(ending)
            self.ended.set()

    def ready(self) -> tuple[bool, str]:
        return not self.not_ready, self.not_ready

    def status(self, owner: bytes | None) -> dict[str, Any]:
        live = [each.id for each in self.requests if owner is None or (owner and each.owner == owner)]
        return {"engines": [], "live": live}

    async def loads(self) -> dict[str, Any]:
        return {"prefill-0#1": []}

    async def engine_metrics(self, engine_id: str | None) -> list[Told]:
        head = "# HELP sglang:x a\n# TYPE sglang:x gauge\n"
        ids = [each for each in ("prefill-0", "decode-0") if engine_id in (None, each)]
        return [Told(f'engine="{each}"', [MetricFamily(head, f'sglang:x{{engine="{each}"}} 1.0\n')]) for each in ids]

    async def flush_caches(self, wait_s: float) -> dict[str, str]:
        self.flushed.append(wait_s)
        return self.flushes

    def owner_of(self, request_id: str) -> bytes | None:
        return next((each.owner for each in self.requests if each.id == request_id), None)

    def timeline(self, request_id: str) -> dict[str, Any]:
        found = next(each for each in self.requests if each.id == request_id)
        return {"id": found.id, "facts": found.facts.shown()}

    def cancel(self, request_id: str) -> bool:
        return any(each.id == request_id for each in self.requests)

    async def engine_log(self, engine_id: str, lines: int) -> str | None:
        return f"{engine_id} {lines}\n" if engine_id == "prefill-0" else None

    async def drain(self, engine_id: str, restart: bool) -> str | None:
        self.drained.append((engine_id, restart))
        return None if engine_id == "prefill-0" else f"there is no engine {engine_id}"

    async def change(self, asked: Asked) -> orders.Answer:
        self.ordered.append(asked)
        return self.answer

    async def changes(self, show: int) -> Status:
        return Status(None, (Revision(1, 0.0, "started", "version: 1" if show == 1 else ""),))

    def new_request_id(self) -> str:
        self.ids_given += 1
        return f"0001{self.ids_given - 1:028x}"

    def figures(self) -> Figures:
        return Figures({}, {}, {})

    def metrics(self, others: Sequence[Figures]) -> bytes:
        return b"disagg_requests_live 0\n"


def says(*texts: str, reason: Any = "stop", gap_s: float = 0.0) -> Script:
    """A piece of one token for each text; the last one carries the reason."""

    async def script(running: Running) -> None:
        for index, text in enumerate(texts):
            await asyncio.sleep(gap_s)
            await running.say(text, [index], reason if index == len(texts) - 1 else None)

    return script


def fails(error: Exception, *texts: str) -> Script:
    async def script(running: Running) -> None:
        for index, text in enumerate(texts):
            await running.say(text, [index])
            await asyncio.sleep(0.02)  # a step later, so that the client has seen what came before
        raise error

    return script


def hangs(*texts: str) -> Script:
    async def script(running: Running) -> None:
        for index, text in enumerate(texts):
            await running.say(text, [index])
        await asyncio.Event().wait()

    return script


@asynccontextmanager
async def serving(backend: ScriptedBackend, codec: Codec, **options: Any) -> AsyncIterator[Frontend]:
    own = {name: options.pop(name) for name in ("parsing", "refuses_unknown") if name in options}
    frontend = Frontend(backend, OwnTokenizer(codec, lambda: backend.served, **own), **options)
    await frontend.start("127.0.0.1", 0)
    try:
        yield frontend
    finally:
        await frontend.stop(0.2)


def http_request(method: str, path: str, body: bytes = b"", headers: Iterable[str] = ()) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def ask(path: str = "/v1/chat/completions", **changes: Any) -> bytes:
    """A good request, with changes; a value of `...` leaves the field out."""
    start: dict[str, Any] = {"model": MODEL}
    if path.endswith("chat/completions"):
        start["messages"] = [{"role": "user", "content": "Hi"}]
    else:
        start["prompt"] = "Hi"
    body = {name: value for name, value in (start | changes).items() if value is not ...}
    return http_request("POST", path, json.dumps(body).encode())


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[str]:
        """The data of each server-sent event."""
        return [line.removeprefix("data: ") for line in self.body.decode().split("\n") if line.startswith("data: ")]


async def exchange(port: int, request: bytes, limit_s: float = 10) -> Answer:
    """One request on a connection of its own, its answer read to the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await asyncio.wait_for(read_answer(reader), limit_s)
    finally:
        writer.close()


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    body = b""
    if headers.get("transfer-encoding") == "chunked":
        while size := int((await reader.readuntil(b"\r\n"))[:-2], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    else:
        body = await reader.readexactly(int(headers["content-length"]))
    return Answer(int(head[0].split()[1]), headers, body)


async def until(condition: Callable[[], bool], limit_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        await asyncio.sleep(0.005)
